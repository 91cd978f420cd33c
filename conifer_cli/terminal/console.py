"""The only writer to stdout and stderr, and the only reader of stdin.

stdout carries the answer or the data; everything else is stderr. Text goes out as UTF-8 whatever
the locale, cleaned (`escapes`), and with no escape sequence of our own but those that dim thinking
on a terminal: a progress line is redrawn with a carriage return. It knows no models.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NoReturn, TextIO

from conifer_cli.errors import UsageError
from conifer_cli.terminal.format import duration, size
from conifer_cli.terminal.sanitize import clean, clean_line

PROGRESS_EVERY_S = 10.0  # without a terminal
REDRAW_EVERY_S = 0.1  # on one
SILENT_START_S = 1.0  # what is done sooner needs no progress
STDIN_PATIENCE_S = 2.0
MIN_STYLED_WIDTH = 20
BAR_WIDTH = 20
MAX_STDIN_BYTES = 64 * 10**6


class ReaderGone(Exception):
    """Whoever read our stdout has closed it."""


class OutputError(Exception):
    """Standard output cannot be written, for another reason than a reader that left."""


def prepare() -> None:
    """Make the standard streams speak UTF-8, never fail on a character, and keep their numbers.

    A file that is opened later must not become stream 0, 1 or 2.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nothing, number)
    if nothing > 2:
        os.close(nothing)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - input() insists on one
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def finish(code: int) -> NoReturn:
    """Leave with `code`; at once and in silence where the work was broken off.

    Queued computations, and output that nobody reads, must not hold the process back.
    """
    if code == 130 and is_terminal(sys.stderr):
        log()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        os._exit(code)  # what could not be written would fail once more on the usual way out
    if code >= 128:
        os._exit(code)
    sys.exit(code)


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether `stream` is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def shows_thinking(wish: bool | None) -> bool:
    """Tell whether thinking is shown: as asked, else where a person reads stderr."""
    return is_terminal(sys.stderr) if wish is None else wish


def take_keyboard() -> None:
    """Read the keyboard from now on, where stdin was a pipe. Raises UsageError without one."""
    if is_terminal(sys.stdin):
        return
    try:
        keyboard = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        raise UsageError("-i/--interactive needs a terminal to go on in") from error
    os.dup2(keyboard, 0)
    os.close(keyboard)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def dumb() -> bool:
    """Tell whether the terminal only prints: no styles, and no cursor that moves."""
    return os.environ.get("TERM") in (None, "", "dumb", "unknown")


def dimensions() -> tuple[int, int]:
    """Say how wide and how high the terminal is, in cells."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines


def styles() -> bool:
    """Tell whether answers may be styled: on a terminal that can, for a person who wants it."""
    plain = "NO_COLOR" in os.environ or dumb()
    return is_terminal(sys.stdout) and not plain and dimensions()[0] >= MIN_STYLED_WIDTH


@contextlib.contextmanager
def keys(quiet: bool) -> Iterator[None]:
    """Take the keyboard within as a prompt wants it that comes later, or else as usual.

    quiet: what is typed stays off the screen and waits as it is; Ctrl-C stays Ctrl-C.
    """
    if dumb() or not is_terminal(sys.stdin):
        yield
        return
    import termios

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = list(before)
    usual, typed = termios.ECHO | termios.ICANON, termios.ICRNL
    changed[0] = before[0] & ~typed if quiet else before[0] | typed
    changed[3] = before[3] & ~usual if quiet else before[3] | usual
    changed[3] = changed[3] | termios.NOFLSH if quiet else changed[3] & ~termios.NOFLSH
    try:
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def conversing() -> bool:
    """Tell whether both ends of a conversation are a terminal."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def can_ask() -> bool:
    """Tell whether there is a person to ask and a place to ask at."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


# Writing


def write_stdout(text: str) -> None:
    """Write text that is already clean to stdout, at once."""
    if sys.stdout is None:
        if text:
            raise OutputError("standard output is closed")
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data to stdout."""
    write_stdout("".join(clean(line) + "\n" for line in lines))


def print_json(value: object) -> None:
    """Print one JSON document to stdout, in ASCII."""
    write_stdout(json.dumps(value, indent=2) + "\n")


def log_text(text: str) -> None:
    """Print several lines to stderr as they are laid out."""
    write_stderr(clean(text).rstrip("\n") + "\n")


def log(text: str = "") -> None:
    """Print one line to stderr."""
    write_stderr(clean_line(text) + "\n")


def write_stderr(text: str) -> None:
    """Write text that is already clean to stderr. Nobody listening is no reason to stop."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def bar(done: int, total: int) -> str:
    """Draw how much of it is done."""
    filled = min(BAR_WIDTH * done // max(total, 1), BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]"


class Progress:
    """One live line on a terminal, else at most a line every ten seconds; always on stderr.

    always: also where stderr is no terminal.
    """

    def __init__(self, label: str, unit: str = "bytes", always: bool = True) -> None:
        self._label = clean_line(label)
        self._unit = unit
        self._start = self._last = time.monotonic()
        self._first = None if unit == "bytes" else 0  # a transfer may be taken up in its middle
        self._drawn = 0  # width of the line that is on the screen
        self._live = is_terminal(sys.stderr) and not dumb()
        self._silent = not (always or is_terminal(sys.stderr))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def update(self, done: int, total: int | None) -> None:
        """Say how far it is, unless that was said a moment ago."""
        if self._silent:
            return
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        pause_s = REDRAW_EVERY_S if self._live else PROGRESS_EVERY_S
        if now - self._start < SILENT_START_S or now - self._last < pause_s:
            return
        self._last = now
        line = self._line(done, total, (done - self._first) / (now - self._start))
        if self._live:
            self._draw(f"{bar(done, total)} {line}" if total else line)
        else:
            log(line)

    def clear(self) -> None:
        """Take the live line off the screen."""
        if self._drawn:
            self._draw("")
            write_stderr("\r")

    def _line(self, done: int, total: int | None, per_s: float) -> str:
        text, whole, rate = (
            f"{done:,}",
            f"{total or 0:,} {self._unit}",
            f"{per_s:,.0f} {self._unit}/s",
        )
        if self._unit == "bytes":
            text, whole, rate = size(done), size(total or 0), f"{size(int(per_s))}/s"
        if total:
            text += f" of {whole}"
            rate += f", {duration((total - done) / per_s)} left" if per_s > 0 else ""
        return f"{self._label}: {text}, {rate}"

    def _draw(self, line: str) -> None:
        line = line[: max(shutil.get_terminal_size().columns - 1, 0)]
        write_stderr("\r" + line.ljust(self._drawn))
        self._drawn = len(line)


# Reading


def piped() -> str:
    """Read stdin to its end. Bytes that are not UTF-8 are replaced, which is said once."""
    data = bytearray()
    for chunk in _chunks():
        data += chunk
        if len(data) > MAX_STDIN_BYTES:
            raise UsageError(
                f"standard input is longer than the {size(MAX_STDIN_BYTES)} that are read"
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        log("conifer: standard input is not all UTF-8; the other bytes were replaced by '\ufffd'")
        text = data.decode("utf-8", errors="replace")
    return text.removeprefix("\ufeff")


def _chunks() -> Iterator[bytes]:
    """Yield what arrives on stdin, and say once that we are waiting for it."""
    import select

    if sys.stdin is None or sys.stdin.closed:
        return
    fd = sys.stdin.fileno()
    patience_s: float | None = STDIN_PATIENCE_S
    how = " (Ctrl-D ends it)" if is_terminal(sys.stdin) else ""
    while True:
        if not select.select([fd], [], [], patience_s)[0]:
            log(f"conifer: waiting for the end of standard input{how}")
            patience_s = None
            continue
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:  # another reader of a pipe that does not block was quicker
            continue
        except OSError as error:
            raise UsageError(f"cannot read standard input: {error.strerror}") from error
        if not data:
            return
        yield data


def ask(prompt: str) -> str | None:
    """Ask a person for a line, with editing keys where there is readline; None at its end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    try:
        return input(prompt)
    except EOFError:
        write_stdout("\n")
        return None


def confirm(question: str) -> bool:
    """Ask a person yes or no, through stderr; Enter means yes, the end of input no."""
    write_stderr(clean_line(question) + " [Y/n] ")
    reply = sys.stdin.readline()
    if not reply:
        log()
    return reply.strip().lower() in ("y", "yes") or reply == "\n"


def log_drawing(picture: Callable[[int, bool], list[str]]) -> None:
    """Print a picture of our own making to stderr, with no text of anybody else's in it.

    picture: is told how many columns there are and whether it may have colours, as escapes.
    """
    coloured = is_terminal(sys.stderr) and "NO_COLOR" not in os.environ and not dumb()
    lines = picture(shutil.get_terminal_size().columns, coloured)
    write_stderr("".join(line + "\n" for line in lines))


# The former names, until every caller has the new ones.
write, out, out_json, say = write_stdout, print_lines, print_json, log
