"""Free-space checks, disk errors and file hashes."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog.errors import NoSpace, StoreError

SPARE_BYTES = 2**30  # always left free on the disk
HASH_BYTES = 2**22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_space(folder: Path, need_bytes: int) -> None:
    """Raise NoSpace unless 1 GiB would remain free after writing. `folder` need not exist."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    short_bytes = need_bytes + SPARE_BYTES - shutil.disk_usage(existing).free
    if short_bytes > 0:
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
        if error.errno in _FULL:
            raise StoreError(
                f"{where}: the disk is full; the partial download has been kept"
            ) from error
        raise StoreError(f"{where}: {error.strerror or error}") from error


def hash_file(path: Path, on_progress: Callable[[int], None]) -> str:
    """Return a file's SHA-256 in hex, reporting the bytes read so far. Raises StoreError."""
    digest, done = hashlib.sha256(), 0
    with disk_failures(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(HASH_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    return digest.hexdigest()
