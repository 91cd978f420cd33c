"""Detect writes to an open file by other processes."""

from __future__ import annotations

import os
import time
from contextlib import suppress

AHEAD_S = 10  # the mark lies this far in the future, where no other write puts it
REFRESH_S = 5.0
MOST_S = 5.0  # time to spend on marks; only a slow file system needs more


class Watch:
    """Watches a file for writes by others, through its modification time.

    After each of our own writes, `mark` sets the time to a moment in the future. Any other write
    sets it to the present, which `check` detects. If times cannot be set, `check` is False.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._untouched = True
        self._mark_ns = 0
        self._refreshed = -REFRESH_S
        self._spent_s = 0.0
        self.mark()

    def check(self) -> bool:
        """True if no other process has written to the file since the watch began."""
        if self._untouched:
            start = time.monotonic()
            self._untouched = os.fstat(self._handle).st_mtime_ns == self._mark_ns
            self._spend(start)
        return self._untouched

    def mark(self) -> None:
        """Mark the file after one of our own writes."""
        if not self._untouched:
            return
        start = time.monotonic()
        try:
            if start - self._refreshed >= REFRESH_S:
                self._set(int((time.time() + AHEAD_S) * 10**9))
                self._mark_ns = os.fstat(self._handle).st_mtime_ns  # may be rounded
                self._refreshed = start
            else:
                self._set(self._mark_ns)
        except OSError:
            self._untouched = False
        self._spend(start)

    def end(self) -> None:
        """Set the modification time to the present."""
        with suppress(OSError):
            os.utime(self._handle)

    def _set(self, at_ns: int) -> None:
        os.utime(self._handle, ns=(at_ns, at_ns))

    def _spend(self, start: float) -> None:
        self._spent_s += time.monotonic() - start
        if self._spent_s > MOST_S:
            self._untouched = False
