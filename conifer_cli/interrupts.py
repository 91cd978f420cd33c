"""What signals do: they end the program, so that what was begun is cleared away; but Ctrl-C in a
conversation stops what can be stopped there, and never the conversation itself.

While a conversation goes on, the signal's handler does one of three things, by where the program
is: at a prompt, and while another model is opened, it raises KeyboardInterrupt; in an answer it
tells that to stop; anywhere else it leaves a note. A note stops the answer that begins next, unless
a message was typed since. It acts once for each time it was armed, so that nothing ever strikes the
code that deals with the first one; only at a prompt that is still there a moment later it raises
again, as an exception that met a destructor is lost.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN_S = 0.2  # after which a prompt that goes on has not met the first exception


class Ended(BaseException):
    """A signal asked this process to end. Like KeyboardInterrupt, it is no Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def catch_signals() -> None:
    """Have Ctrl-C, SIGTERM and SIGHUP raise, so that what was begun is cleared away."""
    raising = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end, signal.SIGHUP: _end}
    for number, handler in raising.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has SIGHUP
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # once is enough, and clearing away takes a moment
    raise Ended(number)


class Interrupts:
    """What Ctrl-C does now. Make one with `owned`."""

    def __init__(self) -> None:
        self._action: Callable[[], None] | None = None
        self._noted = False
        self._asking = False
        self._struck_s = 0.0

    def forget(self) -> None:
        """Drop the note of one that came before now."""
        self._noted = False

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Have Ctrl-C raise KeyboardInterrupt within, once; forget one that came before."""
        self.forget()
        try:
            self._asking = True
            self._action = _raise
            yield
        finally:
            self._asking, self._action = False, None

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Have Ctrl-C call `action` within, once; at once if one came since the prompt."""
        try:
            self._action = action
            if self._noted:
                self._strike()
            yield
        finally:
            self._action = None
            self._noted = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Be the signal's handler."""
        if self._asking and time.monotonic() - self._struck_s > AGAIN_S:
            self._action = _raise
        if self._action is None:
            self._noted = True
        else:
            self._strike()

    def _strike(self) -> None:
        action, self._action, self._noted = self._action, None, False
        self._struck_s = time.monotonic()
        if action is not None:
            action()


def _raise() -> None:
    raise KeyboardInterrupt


@contextmanager
def owned() -> Iterator[Interrupts]:
    """Decide within what Ctrl-C does, unless it was ignored before."""
    interrupts = Interrupts()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
