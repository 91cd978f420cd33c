"""A model's file, mapped into memory.

The file may shrink, or its disk may fail, while it is mapped. If the native extension is loaded, the
lost part then reads as zeros, and `check` tells. Otherwise the system ends the program, unless
`check` noticed first that the file had shrunk.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from engine.errors import FileShrank, ReadFailed
from engine.kernels.native import watch


class MappedFile:
    """A read-only mapping of a whole file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)
        self._watch = watch(self.view)

    def check(self) -> None:
        """Raise FileShrank or ReadFailed if a part of the file was lost since it was mapped."""
        mapped, now = len(self._map), self._map.size()
        if now < mapped:
            raise FileShrank(
                f"{self.path.name} shrank from {mapped:,} to {now:,} bytes while it was in use"
            )
        if self._watch is not None and self._watch.lost:
            raise ReadFailed(f"the disk failed to read a part of {self.path.name}")
