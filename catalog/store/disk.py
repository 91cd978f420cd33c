"""Free-space checks, disk errors and file hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from catalog.errors import NoSpace, StoreError, why
from catalog.files import open_regular

SPARE_BYTES = 2**30  # always left free on the disk
HASH_BYTES = 2**22
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this file system or `ulimit -f` allows",
}


def free_bytes(folder: Path) -> int | None:
    """Return the free space for a folder, which need not exist; None if it is unknown."""
    with suppress(OSError):
        usage = shutil.disk_usage(existing(folder))
        return usage.free if usage.total else None  # some network file systems report zeros
    return None


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest of its parents that exists."""
    return next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path("/"))


def require_space(folder: Path, need_bytes: int) -> None:
    """Raise NoSpace unless 1 GiB would remain free after writing. `folder` need not exist."""
    free = free_bytes(folder)
    if free is not None and (short_bytes := need_bytes + SPARE_BYTES - free) > 0:
        raise NoSpace(
            f"not enough disk space at {folder}: free up {short_bytes:,} more bytes "
            "(the download must leave 1 GiB free)"
        )


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Convert any OSError in the block to StoreError."""
    try:
        yield
    except BrokenPipeError:  # from a progress callback, not the disk
        raise
    except OSError as error:
        where = error.filename or folder
        if reason := _FULL.get(error.errno or 0):
            raise StoreError(f"{where}: {reason}; the partial download has been kept") from error
        raise StoreError(f"{where}: {why(error)}") from error


def hash_file(path: Path, on_progress: Callable[[int], None]) -> str:
    """Return a file's SHA-256 in hex, reporting the bytes read so far. Raises StoreError."""
    digest, done = hashlib.sha256(), 0
    with disk_failures(path), open_regular(path) as file:
        while chunk := file.read(HASH_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    return digest.hexdigest()
