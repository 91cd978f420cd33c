"""Measure random direct reads of a disk, as experts are read: many at once, past the page cache."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

DEPTH = 8  # reads at once, as the store of experts has
PROBE_S = 2.0
PAGE = 4096
TEMPORARY_BYTES = 10**9  # larger than what a disk's own cache holds
PIECE = 8 << 20
NO_CACHE = 48  # F_NOCACHE of macOS, which Python does not name


def random_read_rate(
    path: Path,
    read_bytes: int,
    seconds: float = PROBE_S,
    on_read: Callable[[int, int | None], None] | None = None,
) -> float:
    """Return the rate of random reads of a file in bytes a second. Raises OSError.

    read_bytes: of each read, rounded up to whole pages. on_read: receives (reads done, None).
    """
    with _opened(path) as (descriptor, direct):
        return _rate(descriptor, direct, read_bytes, seconds, on_read)


def temporary_read_rate(
    folder: Path,
    read_bytes: int,
    seconds: float = PROBE_S,
    on_read: Callable[[int, int | None], None] | None = None,
    size_bytes: int = TEMPORARY_BYTES,
) -> float:
    """Return the rate of random reads of a temporary file in a folder. Raises OSError.

    The file has no name once it is open, so that nothing is left of it however this ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".conifer-disk-{os.getpid()}-{random.getrandbits(32):08x}"
    writing = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            with _opened(path) as (descriptor, direct):
                path.unlink()
                _fill(writing, size_bytes)
                return _rate(descriptor, direct, read_bytes, seconds, on_read)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(writing)


def _fill(descriptor: int, size_bytes: int) -> None:
    """Write data that no file system can compress, and wait until the disk has it."""
    piece = random.Random(0).randbytes(PIECE)
    left = size_bytes
    while left:
        left -= os.write(descriptor, piece[: min(left, PIECE)])
    os.fsync(descriptor)
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, bool]]:
    """Open a file for direct reads. Yields a descriptor, and whether reads pass the page cache."""
    descriptor, direct = -1, True
    if sys.platform == "linux":
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:  # such as on tmpfs
            descriptor, direct = os.open(path, os.O_RDONLY), False
    else:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.fcntl(descriptor, NO_CACHE, 1)
    try:
        yield descriptor, direct
    finally:
        os.close(descriptor)


def _rate(
    descriptor: int,
    direct: bool,
    read_bytes: int,
    seconds: float,
    on_read: Callable[[int, int | None], None] | None,
) -> float:
    whole = os.fstat(descriptor).st_size // PAGE * PAGE
    read_bytes = min(max(PAGE, -(-read_bytes // PAGE) * PAGE), whole)
    if read_bytes == 0:
        raise OSError(None, "the file is too small to measure the disk with")
    stop, started = threading.Event(), time.perf_counter()

    counts = [0] * DEPTH

    def read(number: int) -> int:
        done = 0
        places = random.Random()
        with mmap.mmap(-1, read_bytes) as buffer:  # begins at a page, as direct reads require
            while True:  # at least once, so that a busy machine's rate is not nought
                at = places.randrange((whole - read_bytes) // PAGE + 1) * PAGE
                done += os.preadv(descriptor, [buffer], at)
                counts[number] += 1
                if not direct:
                    os.posix_fadvise(descriptor, at, read_bytes, os.POSIX_FADV_DONTNEED)
                if stop.is_set() or time.perf_counter() - started >= seconds:
                    return done

    with ThreadPoolExecutor(DEPTH) as pool:
        try:
            readers = [pool.submit(read, number) for number in range(DEPTH)]
            while wait(readers, timeout=0.1).not_done:
                if on_read is not None:
                    on_read(sum(counts), None)
        finally:
            stop.set()
        done = sum(reader.result() for reader in readers)
    return done / (time.perf_counter() - started)
