"""Control the terminal's settings from the start of a conversation to its end.

Outside the line editor, the terminal neither echoes keys nor collects them into lines. A thread
keeps them for the next prompt, so that the terminal's small buffer never fills, which would also
block Ctrl-C. The settings are restored whenever the program stops, exits or crashes, and applied
again when it continues.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING

with contextlib.suppress(ImportError):  # on Windows, where `app.main` prints what to do
    import termios

if TYPE_CHECKING:
    from threading import Thread

PASTE_ON, PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"
CURSOR_ON, STYLES_OFF = b"\x1b[?25h", b"\x1b[0m"
RECHECK_S = 0.2  # how often to check for being in the foreground again
IFLAG, LFLAG, CC = 0, 3, 6  # indices into termios settings
END_OF_INPUT = b"\x04"  # Ctrl-D; in line mode, Linux stores it as a zero byte

Settings = list[int | list[bytes | int]]


class Mode(Enum):
    """The reader of the terminal."""

    AHEAD = auto()  # the collector, for the next prompt
    EDITOR = auto()  # the line editor, which handles Ctrl-Z itself
    LINES = auto()  # a plain question
    LENT = auto()  # another program, which changes the settings itself


class Keyboard:
    """The terminal on descriptor 0. Until `take`, and after `release`, every method does nothing.

    resumed: how often the program was stopped and continued.
    """

    def __init__(self) -> None:
        self.resumed = 0
        self._theirs: Settings | None = None
        self._ours: Settings = []
        self._mode = Mode.AHEAD
        self._typed = bytearray()
        self._pasting = False  # True if the terminal can mark pastes
        self._stopping = False
        self._collector: Thread | None = None
        self._halt: tuple[int, int] | None = None
        self._watcher: tuple[int, int] | None = None  # process id, and the descriptor that ends it
        self._editor: tuple[Callable[[], None], Callable[[], None]] | None = None

    def take(self) -> None:
        """Stop echoing keys, if descriptors 0 and 1 are terminals and this is the foreground job.

        Keys remain in the terminal's buffer, so that `release` leaves them to the next program.
        """
        if self._theirs is not None or not (os.isatty(0) and os.isatty(1) and _in_foreground()):
            return
        with contextlib.suppress(termios.error, OSError):
            theirs = termios.tcgetattr(0)
            flags = termios.ECHO | termios.ICANON | termios.IEXTEN
            self._ours = _changed(theirs, flags, termios.ICRNL)
            self._pasting = not dumb()
            self._watcher = _watch(theirs, self._pasting)
            self._theirs = theirs
            self._take_again()
            for number, handler in self._handlers():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, handler)
            signal.siginterrupt(signal.SIGCONT, False)  # avoid EINTR from the terminal

    def collect(self) -> None:
        """Collect keys for the next prompt from now on."""
        self.take()
        if self._theirs is not None:
            self._halt = os.pipe()
            self._typed += _waiting().replace(b"\0", END_OF_INPUT)
            self._start()

    def release(self) -> None:
        """Restore the settings for good."""
        self._pause()
        if self._theirs is None:
            return
        self._restore()
        self._theirs, self._mode = None, Mode.AHEAD
        for number, handler in self._handlers():
            if signal.getsignal(number) == handler:
                signal.signal(number, signal.SIG_DFL)
        if self._watcher is not None:
            child, descriptor = self._watcher
            os.close(descriptor)
            os.waitpid(child, 0)
            self._watcher = None

    def typed(self) -> bytes:
        """Return the keys collected so far, and forget them."""
        if self._mode is Mode.EDITOR:  # in line mode, reading here would swallow Ctrl-D
            self._typed += _waiting()
        typed, self._typed = bytes(self._typed), bytearray()
        return typed

    @contextlib.contextmanager
    def lines(self, lent: bool = False) -> Iterator[None]:
        """Use the terminal's own settings: for a question or, if `lent`, for another program.

        Keys collected earlier do not answer the question. They remain for the next prompt.
        """
        if self._theirs is None:
            yield
            return
        with self._reading(Mode.LENT if lent else Mode.LINES):
            before = self._current()
            self._restore()
            try:
                yield
            finally:
                _apply(before)

    @contextlib.contextmanager
    def editing(self, stop: Callable[[], None], redraw: Callable[[], None]) -> Iterator[None]:
        """Let a line editor read keys, which sets the terminal itself.

        stop, redraw: called in a signal handler, when the program is stopped and continued.
        """
        if self._theirs is None:
            yield
            return
        self._editor = stop, redraw
        with self._reading(Mode.EDITOR):
            self.unprocessed()
            yield

    def unprocessed(self) -> None:
        """Let every key reach the line editor, Ctrl-C and Ctrl-Z too."""
        if self._theirs is not None:
            _apply(_changed(self._ours, termios.ISIG, termios.IXON))

    def stop(self, group: bool = False) -> None:
        """Stop this process or its group, as Ctrl-Z does, with the terminal's own settings.

        Return when it continues. Then apply the previous settings again.
        """
        before = self._ours
        if self._theirs is not None and self._mode is not Mode.LENT:
            before = self._current()
            if self._mode is Mode.AHEAD:
                self._write(STYLES_OFF)
            self._restore()
        self._stopping = True
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(0 if group else os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stopped)
        self._stopping = False
        self.resumed += 1
        if self._mode is not Mode.LENT and _in_foreground():
            _apply(before)
            if self._mode is Mode.AHEAD:
                self._write(PASTE_ON)

    @contextlib.contextmanager
    def _reading(self, mode: Mode) -> Iterator[None]:
        before, self._mode = self._mode, mode
        if before is Mode.AHEAD:
            self._pause()
        try:
            yield
        finally:
            self._mode = before
            if before is Mode.AHEAD and self._theirs is not None:
                self._take_again()
                self._start()

    def _current(self) -> Settings:
        try:
            return termios.tcgetattr(0)
        except termios.error:  # the terminal is gone
            return self._ours

    def _take_again(self) -> None:
        if self._mode is Mode.AHEAD and _in_foreground():
            _apply(self._ours)
            self._write(PASTE_ON)

    def _restore(self) -> None:
        if self._theirs is not None and _in_foreground():
            _apply(self._theirs)
            self._write(PASTE_OFF)

    def _write(self, text: bytes) -> None:
        if self._pasting:  # directly: a signal may have interrupted a write to sys.stdout
            with contextlib.suppress(OSError):
                os.write(1, text)

    def _handlers(self) -> list[tuple[signal.Signals, Callable[[int, object], None]]]:
        return [(signal.SIGTSTP, self._stopped), (signal.SIGCONT, self._woken)]

    def _stopped(self, number: int, frame: object) -> None:
        if self._mode is Mode.EDITOR and self._editor is not None:
            self._editor[0]()
        else:
            self.stop()

    def _woken(self, number: int, frame: object) -> None:
        if self._stopping or not _in_foreground():
            return
        self.resumed += 1
        if self._mode is Mode.EDITOR and self._editor is not None:
            self._editor[1]()
        else:
            self._take_again()

    def _start(self) -> None:
        from threading import Thread

        if self._halt is not None and self._collector is None:
            collector = Thread(target=self._collect_keys, daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread left: the terminal keeps the keys
                collector.start()
                self._collector = collector

    def _pause(self) -> None:
        if self._collector is not None and self._halt is not None:
            os.write(self._halt[1], b"x")
            self._collector.join()
            os.read(self._halt[0], 64)
            self._collector = None
            self._typed += _waiting()

    def _collect_keys(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # main thread only
        assert self._halt is not None
        halt = self._halt[0]
        while True:
            if not _in_foreground():  # keys are meant for another job
                if select.select([halt], [], [], RECHECK_S)[0]:
                    return
                continue
            if halt in select.select([0, halt], [], [])[0]:
                return
            try:
                data = os.read(0, 1 << 16)
            except OSError:
                data = b""
            if not data and _in_foreground():  # the terminal is gone
                return
            self._typed += data


def dumb() -> bool:
    """True if the terminal supports neither styles nor cursor movement."""
    return os.environ.get("TERM") in (None, "", "dumb", "unknown")


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _waiting() -> bytes:
    """Read the keys that are available without waiting."""
    data = bytearray()
    with contextlib.suppress(OSError):
        while _in_foreground() and select.select([0], [], [], 0)[0]:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                break
            data += chunk
    return bytes(data)


def _apply(settings: Settings) -> None:
    with contextlib.suppress(termios.error):
        termios.tcsetattr(0, termios.TCSANOW, settings)


def _changed(settings: Settings, local: int, inputs: int = 0) -> Settings:
    """Return settings without these flags, in which Ctrl-C keeps typed text."""
    changed = [list(value) if isinstance(value, list) else value for value in settings]
    iflag, lflag, characters = settings[IFLAG], settings[LFLAG], changed[CC]
    assert isinstance(iflag, int) and isinstance(lflag, int) and isinstance(characters, list)
    changed[IFLAG], changed[LFLAG] = iflag & ~inputs, lflag & ~local | termios.NOFLSH
    if local & termios.ICANON:
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return changed


def _watch(theirs: Settings, escapes: bool) -> tuple[int, int] | None:
    """Start a child that restores the settings if this process is killed or crashes.

    Return its process id and the descriptor whose closing ends it, or None if it cannot start.
    """
    ends, ended = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(ends)
        os.close(ended)
        return None
    if child:
        os.close(ends)
        return child, ended
    try:
        for number in (*range(1, 4), signal.SIGTERM, signal.SIGTSTP, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        os.close(ended)
        os.close(2)
        os.read(ends, 1)
        flags = termios.tcgetattr(0)[LFLAG]
        # Replace only our own settings: the shell may have restored its settings by now.
        if isinstance(flags, int) and flags & (termios.NOFLSH | termios.ECHO) == termios.NOFLSH:
            _apply(theirs)
            if escapes:
                os.write(1, STYLES_OFF + PASTE_OFF + CURSOR_ON)
    finally:
        os._exit(0)


keyboard = Keyboard()
