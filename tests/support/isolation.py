"""Isolate tests from the signals pytest inherited and from other tests that run in parallel."""

from __future__ import annotations

import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
ENDING = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
# Locks on two source files: nothing to clean up, and one pair of locks per checkout.
GATE, ROOM = Path(__file__).with_name("__init__.py"), Path(__file__)
_process_allowed = True


@contextmanager
def foreground_signals() -> Iterator[None]:
    """Undo the ignored signals that a background job or `nohup` leaves to pytest.

    A child resets a handled signal to its default on exec, but keeps an ignored one. A handler that
    does nothing therefore gives children the default and still keeps pytest alive.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ENDING, _survive)}
    ignored = [number for number in handlers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _survive(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Hold this checkout's lock for one test: shared, or exclusive if it must run alone.

    Everyone passes the gate first, so a test that waits to be alone is next.
    """
    with ExitStack() as held:
        gate, room = held.enter_context(GATE.open()), held.enter_context(ROOM.open())
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def only_one_process(path: Path) -> Iterator[None]:
    """Hold a lock file, so that parallel workers do the work inside one after another."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def starting_programs(*, allowed: bool) -> Iterator[None]:
    """Fail the running test if it starts a program without the mark `process`."""
    global _process_allowed
    _process_allowed = allowed
    try:
        yield
    finally:
        _process_allowed = True


def _audit(event: str, arguments: object) -> None:
    if event in STARTS and not _process_allowed:
        pytest.fail(f"{event}: a test that starts a program needs pytest.mark.process")


sys.addaudithook(_audit)
