"""What signals do: they end the program, so that what was begun is cleared away; but Ctrl-C in a
conversation stops what can be stopped there, and never the conversation itself.

While a conversation goes on, the signal's handler does one of three things, by where the program
is: at a prompt it raises KeyboardInterrupt; in an answer it tells that to stop; anywhere else it
leaves a note. A note stops the answer that begins next, and is dropped at a prompt. It acts once
for each time it was armed, so that nothing ever strikes the code that deals with the first one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


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

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Have Ctrl-C raise KeyboardInterrupt within, once; forget one that came before."""
        self._noted = False
        try:
            self._action = _raise
            yield
        finally:
            self._action = None

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
        if self._action is None:
            self._noted = True
        else:
            self._strike()

    def _strike(self) -> None:
        action, self._action, self._noted = self._action, None, False
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
