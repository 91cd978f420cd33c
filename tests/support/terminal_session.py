"""Drive a program at a pseudo-terminal, with a deadline on everything that is waited for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from types import TracebackType

from support.plain_words import seen

DEADLINE_S = 30.0


class TerminalSession:
    """A child process whose three standard streams are one terminal.

    screen: everything it has printed so far, as text.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.screen = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, environment)

    @property
    def settings(self) -> list[object]:
        """The terminal's settings, as `stty` would say them."""
        return termios.tcgetattr(self._fd)

    def __enter__(self) -> TerminalSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def type(self, text: str) -> None:
        """Press these keys; \\x03 is Ctrl-C and \\x04 Ctrl-D. A lone surrogate is a byte."""
        os.write(self._fd, text.encode(errors="surrogateescape"))

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect_quiet(self) -> None:
        """Wait until keys are not echoed."""
        deadline = time.monotonic() + DEADLINE_S
        while termios.tcgetattr(self._fd)[3] & termios.ECHO:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def expect(self, text: str, deadline_s: float = DEADLINE_S) -> str:
        """Wait until `text` is on the screen; return what came before it and forget both."""
        deadline = time.monotonic() + deadline_s
        while text not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"no {text!r} in {self.screen!r}"
        before, _, self.screen = self.screen.partition(text)
        return before

    def expect_more(self) -> None:
        """Wait until anything more is printed."""
        assert self._read(DEADLINE_S), f"no more after {self.screen!r}"

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + deadline_s
        while self._read(deadline - time.monotonic()):
            pass
        assert time.monotonic() < deadline, f"still running after {self.screen!r}"
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _read(self, timeout_s: float) -> bool:
        """Take in what was printed; False at the end of it or of the time."""
        if not select.select([self._fd], [], [], max(timeout_s, 0))[0]:
            return False
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # how Linux reports that the other side has closed
            return False
        text = data.decode(errors="replace")
        self.screen += text
        seen(text)
        return bool(data)
