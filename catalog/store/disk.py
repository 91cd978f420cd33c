"""The room on a disk, and what it refuses: one rule for everything that is fetched."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog.errors import NoSpace, StoreError

SPARE_BYTES = 2**30  # left free on the disk
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_space(folder: Path, need_bytes: int) -> None:
    """Raise NoSpace unless the disk of `folder`, which need not exist, keeps 1 GiB free."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    missing_bytes = need_bytes + SPARE_BYTES - shutil.disk_usage(existing).free
    if missing_bytes > 0:
        raise NoSpace(
            f"the disk of {folder} has {missing_bytes:,} bytes too few for this and 1 GiB to spare"
        )


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into StoreError."""
    try:
        yield
    except BrokenPipeError:  # whoever is told of the progress has gone; no disk says this
        raise
    except OSError as error:
        where = error.filename or folder
        if error.errno in _FULL:
            raise StoreError(f"{where}: the disk is full; what came is kept") from error
        raise StoreError(f"{where}: {error.strerror or error}") from error
