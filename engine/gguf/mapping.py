"""Map a file into memory, or read it if it cannot be mapped."""

from __future__ import annotations

import errno
import mmap
from typing import BinaryIO

CANNOT_MAP = (errno.ENODEV, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # from mmap()


def map_file(
    file: BinaryIO, limit: int = -1, mapping: type[mmap.mmap] = mmap.mmap
) -> mmap.mmap | bytes:
    """Map an open file, or read it if its file system cannot map files. Raises OSError.

    limit: the number of bytes to read in that case; -1 for all. mapping: the class to map it with.
    """
    try:
        return mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno not in CANNOT_MAP:
            raise
    file.seek(0)
    return file.read(limit)
