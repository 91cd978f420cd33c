"""A model's file, read piece by piece past the page cache.

The pieces lie in memory of their own, so the file takes no other memory, and nothing of it is lost
if the file shrinks.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path

from engine.errors import FileShrank, ReadFailed
from engine.streaming import PAGE_BYTES

READ_BYTES = 64 << 20  # at a time


class DirectFile:
    """A file that is read, not mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._file).st_size
        self._direct = self._bypass_cache()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _bypass_cache(self) -> bool:
        """Ask for direct reads. Returns False if the file system refuses them."""
        try:
            if hasattr(fcntl, "F_NOCACHE"):
                fcntl.fcntl(self._file, fcntl.F_NOCACHE, 1)
            else:
                flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
                fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            return False
        return True

    def blocks(self, start: int, end: int) -> memoryview:
        """Read bytes start..end. Raises FileShrank or ReadFailed."""
        first = start - start % PAGE_BYTES
        memory = mmap.mmap(-1, -(-(end - first) // PAGE_BYTES) * PAGE_BYTES)
        into, at = memoryview(memory), 0
        while at < end - first:
            try:
                got = os.preadv(self._file, [into[at : at + READ_BYTES]], first + at)
            except OSError as error:
                if not self._direct:
                    where = f"byte {first + at:,} of {self.path.name}"
                    raise ReadFailed(f"the disk failed to read {where}: {error}") from error
                self._use_cache()
                continue
            if got == 0:
                raise FileShrank(
                    f"{self.path.name} shrank to {first + at:,} bytes while it was in use"
                )
            done = at + got >= end - first
            at += got if done or not self._direct else got - got % PAGE_BYTES
            if not done and self._direct and got < PAGE_BYTES:
                self._use_cache()
        if not self._direct:
            with contextlib.suppress(OSError, AttributeError):
                os.posix_fadvise(self._file, first, end - first, os.POSIX_FADV_DONTNEED)
        return into[start - first : end - first]

    def _use_cache(self) -> None:
        self._direct = False
        if hasattr(os, "O_DIRECT"):
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~os.O_DIRECT)

    def forget_cached(self) -> None:
        """Let the system drop what its page cache has of the file."""
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def release(self, start: int, end: int) -> None:
        """Do nothing: a piece is freed with its last view."""

    def check(self) -> None:
        """Raise FileShrank if the file is shorter than it was."""
        now = os.fstat(self._file).st_size
        if now < self.size_bytes:
            raise FileShrank(
                f"{self.path.name} shrank from {self.size_bytes:,} to {now:,} bytes "
                "while it was in use"
            )
