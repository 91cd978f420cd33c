"""Signal handlers for a clean exit. In chat, Ctrl-C cancels the current answer, not the session.

At a prompt and while a model loads, Ctrl-C raises KeyboardInterrupt. During an answer, Ctrl-C stops
the answer. At any other time, Ctrl-C is recorded and stops the next answer unless the user sends a
message first. Each action runs at most once, so a second Ctrl-C cannot interrupt cleanup. At a
prompt, however, another Ctrl-C more than AGAIN_S seconds later raises KeyboardInterrupt again,
because the first exception is lost if it was raised in a destructor.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN_S = 0.2  # if the prompt is still open by then, the first exception was lost
RESEND_S = 0.01  # by then, a destructor that dropped an exception has returned


class Ended(SystemExit):
    """Raised on SIGTERM and SIGHUP. A SystemExit, because event loops do not swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds, even within a regular expression."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def catch_signals() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP raise exceptions, so that cleanup code runs."""
    raising = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end, signal.SIGHUP: _end}
    for number, handler in raising.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, handler)
    sys.unraisablehook = _resend


def _resend(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again if its exception was raised in a destructor, where Python drops it."""
    if isinstance(lost.exc_value, Ended):
        number = lost.exc_value.number
        signal.signal(number, _end)
        threading.Timer(RESEND_S, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(lost)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # do not interrupt cleanup
    raise Ended(number)


class Interrupts:
    """The current Ctrl-C action. Create an instance with `scope`."""

    def __init__(self) -> None:
        self._action: Callable[[], None] | None = None
        self._noted = False
        self._asking = False
        self._struck_s = 0.0

    def forget(self) -> None:
        """Discard a recorded Ctrl-C."""
        self._noted = False

    @contextmanager
    def propagate(self) -> Iterator[None]:
        """Make Ctrl-C raise KeyboardInterrupt. Discards a recorded Ctrl-C."""
        self.forget()
        try:
            self._asking = True
            self._action = _raise
            yield
        finally:
            self._asking, self._action = False, None

    @contextmanager
    def on_interrupt(self, action: Callable[[], None]) -> Iterator[None]:
        """Make Ctrl-C call `action` once. If a Ctrl-C is recorded, call `action` immediately."""
        try:
            self._action = action
            if self._noted:
                self._strike()
            yield
        finally:
            self._action = None
            self._noted = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
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
def scope() -> Iterator[Interrupts]:
    """Handle Ctrl-C inside the `with` block, unless SIGINT is ignored."""
    interrupts = Interrupts()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
