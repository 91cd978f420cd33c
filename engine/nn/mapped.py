"""A model's file, mapped into memory.

The file may shrink, or its disk may fail, while it is mapped. With the native extension, the lost
part then reads as zeros, and `check` raises. Without it, the system ends the program if it reads
that part before `check` notices that the file has shrunk.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import FileShrank, ReadFailed
from engine.gguf.mapping import map_file
from engine.kernels.native import watch

if TYPE_CHECKING:
    from engine.kernels.native._native import Watch


class _WatchedMap(mmap.mmap):
    """A mapping that is watched until its last view is gone: a step that is under way reads it."""

    watched: Watch | None


class MappedFile:
    """A read-only mapping of a whole file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            data = map_file(file, mapping=_WatchedMap)  # a copy, if it cannot be mapped
        self.view = memoryview(data)
        self._map = data if isinstance(data, _WatchedMap) else None
        if self._map is not None:
            self._map.watched = watch(self.view)

    @property
    def size_bytes(self) -> int:
        """The size of the file when it was mapped."""
        return len(self.view)

    def blocks(self, start: int, end: int) -> memoryview:
        """Return a view of bytes start..end."""
        return self.view[start:end]

    def release(self, start: int, end: int) -> None:
        """Let the system take back the pages of a part of the file, which was copied."""
        if self._map is not None:
            first = start - start % mmap.ALLOCATIONGRANULARITY
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)

    def check(self) -> None:
        """Raise FileShrank or ReadFailed if a part of the file was lost since it was mapped."""
        if self._map is None:
            return
        mapped, now = len(self._map), self._map.size()
        if now < mapped:
            raise FileShrank(
                f"{self.path.name} shrank from {mapped:,} to {now:,} bytes while it was in use"
            )
        if self._map.watched is not None and self._map.watched.lost:
            raise ReadFailed(f"the disk failed to read a part of {self.path.name}")
