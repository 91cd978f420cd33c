"""Download the missing bytes of one file in parallel byte ranges, hashing them along the way.

The first request runs alone. More requests join it unless it is already fast enough to saturate
this machine. After a failure, a single stream retries, with exponential backoff or the delay that
the server sent. Downloading and hashing run in threads; the calling thread reports progress.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from catalog.download import byte_ranges
from catalog.download.part_file import PartFile
from catalog.errors import NotAModel
from catalog.hub.client import Hub, RangeResponse, RemoteFile
from catalog.hub.retry import RetryPolicy
from catalog.hub.session import TransientError

MAGIC = b"GGUF"
STREAMS = 4
MOST_BYTES = 64 * 2**20  # per request, so that hashing reads from the page cache
LEAST_BYTES = 4 * 2**20  # requests shrink near the end, so that streams finish together
PROGRESS_BYTES = 2**20  # this much progress resets the failure count
RATE_BYTES = 8 * 2**20  # measure the rate over this many bytes
FAST_BYTES_PER_S = 150e6  # above this rate, more streams would only wait for the GIL
SYNC_EVERY_BYTES = 256 * 2**20  # at most this much is lost in a power cut
HASH_BYTES = 2**20
PROGRESS_EVERY_S = 0.1
CHECKING_S = 1.0  # report hashing if it takes this much longer than the download
END_S = 2.0  # how long to wait for stopped threads


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Progress callbacks. All of them run in the calling thread.

    on_progress: receives (bytes done, total bytes), summed over all files.
    on_wait: called once if another process is already downloading the file.
    on_retry: receives (reason, seconds until the next attempt).
    on_hash: called if hashing continues after the download is complete.
    on_refused: receives operations that the file system does not support, such as "chmod".
    """

    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_wait: Callable[[], None] = lambda: None
    on_retry: Callable[[str, float], None] = lambda reason, wait_s: None
    on_hash: Callable[[], None] = lambda: None
    on_refused: Callable[[set[str]], None] = lambda operations: None


def download(
    hub: Hub, file: RemoteFile, partial: PartFile, callbacks: Callbacks, retry: RetryPolicy
) -> str:
    """Download the missing bytes of a partial file. Returns the whole file's SHA-256 in hex.

    Raises NotAModel if the file is not GGUF, TransientError after too many failures, or OSError.
    """
    partial.write(0, hub.head(file), partial.version)
    callbacks.on_progress(partial.size_bytes, file.size_bytes)
    scheduler = RangeScheduler(partial, retry)
    pool = ThreadPoolExecutor(STREAMS + 1, thread_name_prefix="transfer")
    threads: list[Future[Any]] = []
    complete_since, reported = 0.0, False
    try:  # a signal may arrive as soon as the first thread starts
        threads.append(digest := pool.submit(_hash, file, partial))
        for _ in range(STREAMS):
            threads.append(pool.submit(_stream, hub, file, partial, scheduler))
        running = set(threads)
        while running:
            ended, running = wait(running, PROGRESS_EVERY_S, FIRST_EXCEPTION)
            for future in ended:
                future.result()
            while scheduler.failures:
                callbacks.on_retry(*scheduler.failures.popleft())
            callbacks.on_progress(partial.size_bytes, file.size_bytes)
            if running == {digest}:
                complete_since = complete_since or time.monotonic()
                if not reported and time.monotonic() - complete_since > CHECKING_S:
                    reported = True
                    callbacks.on_hash()
        return digest.result()
    finally:
        scheduler.stop()
        if not all(thread.done() for thread in threads):
            partial.close()  # ignore later writes from threads that have not stopped
        pool.shutdown(wait=False, cancel_futures=True)
        wait(threads, END_S)


def _hash(file: RemoteFile, partial: PartFile) -> str:
    version, done, synced = partial.version, 0, 0
    digest = hashlib.sha256()
    with partial.reader() as source:
        while found := partial.wait_for(done, version):
            ready, now = found
            if now != version:
                version, done, synced, digest = now, 0, 0, hashlib.sha256()
                continue
            while done < ready and (chunk := os.pread(source, min(HASH_BYTES, ready - done), done)):
                if done == 0 and not chunk.startswith(MAGIC[: len(chunk)]):
                    raise NotAModel(f"{file.name} is not a GGUF file")
                digest.update(chunk)
                done += len(chunk)
            if done < ready and version == partial.version:
                raise OSError(errno.EIO, "file shrank while it was being hashed", str(partial.path))
            if done == partial.limit_bytes:
                break
            if done >= synced + SYNC_EVERY_BYTES:
                partial.sync()
                synced = done
    return digest.hexdigest()


def _stream(hub: Hub, file: RemoteFile, partial: PartFile, scheduler: RangeScheduler) -> None:
    while (span := scheduler.take()) is not None:
        try:
            version = partial.version
            with hub.open(file, *span, partial.etag) as response, scheduler.watching(response):
                if not response.whole or scheduler.may_take_all(span):
                    _receive(response, file, partial, version, scheduler)
        except TransientError as error:
            scheduler.failed(span, error)
        finally:
            scheduler.release(span)


def _receive(
    response: RangeResponse,
    file: RemoteFile,
    partial: PartFile,
    requested_version: int,
    scheduler: RangeScheduler,
) -> None:
    version = partial.check_etag(response.etag, requested_version)
    at = response.start
    for chunk in response.chunks:
        if at + len(chunk) > response.end:
            raise TransientError(f"{file.name}: the server sent more bytes than requested")
        if version is None or not partial.write(at, chunk, version):
            return
        at += len(chunk)
        scheduler.progressed()
        if partial.size_bytes == file.size_bytes:  # a whole-file response may have bytes left
            return
    if at < response.end:
        raise TransientError(f"{file.name}: the connection closed early")


class RangeScheduler:
    """A thread-safe scheduler that assigns byte ranges to streams."""

    def __init__(self, partial: PartFile, retry: RetryPolicy) -> None:
        self.failures: deque[tuple[str, float]] = deque()
        self._partial, self._retry = partial, retry
        self._changed = threading.Condition()
        self._taken: dict[byte_ranges.ByteRange, float] = {}  # range -> start time
        self._responses: list[RangeResponse] = []
        # The range whose stream receives the whole file.
        self._all: byte_ranges.ByteRange | None = None
        self._streams = 1  # the maximum number of active streams
        self._failures, self._failed_at, self._wait_until = 0, 0.0, 0.0
        self._mark_bytes = partial.size_bytes  # progress is measured from here
        self._rate_from = (partial.size_bytes, time.monotonic())
        self._measured = False  # True if measured since the most recent failure
        self._stopped = False

    def take(self) -> byte_ranges.ByteRange | None:
        """Wait for the next range to download. Returns None if no range is left."""
        with self._changed:
            while not self._stopped:
                missing = self._partial.missing()
                if not missing:
                    break
                pause_s = self._wait_until - time.monotonic()
                free = byte_ranges.without(missing, list(self._taken))
                busy = self._all is not None or len(self._taken) >= self._streams
                if free and not busy and pause_s <= 0:
                    start, end = free[0]
                    size = min(byte_ranges.count(free) // (2 * STREAMS), MOST_BYTES)
                    size = max(size, LEAST_BYTES)
                    span = (start, start + size if end - start >= size + LEAST_BYTES else end)
                    self._taken[span] = time.monotonic()
                    return span
                self._changed.wait(pause_s if pause_s > 0 else None)
        return None

    def release(self, span: byte_ranges.ByteRange) -> None:
        with self._changed:
            del self._taken[span]
            if self._all == span:
                self._all = None
            self._changed.notify_all()

    def may_take_all(self, span: byte_ranges.ByteRange) -> bool:
        """Return True if the stream downloading this range may receive the whole file.

        Used if the server ignores ranges. Only one stream at a time may receive the whole file.
        """
        with self._changed:
            self._all = self._all or span
            return self._all == span

    def progressed(self) -> None:
        """Record progress: reset the failure count and adjust the number of streams."""
        size_bytes = self._partial.size_bytes
        if self._mark_bytes <= size_bytes < self._mark_bytes + PROGRESS_BYTES:
            return
        with self._changed:
            if size_bytes > self._mark_bytes:  # false if all bytes were discarded
                self._failures = 0
                self._adapt(size_bytes)
            self._mark_bytes = size_bytes

    def _adapt(self, size_bytes: int) -> None:
        before_bytes, before = self._rate_from
        brought, now = size_bytes - before_bytes, time.monotonic()
        if self._measured and 0 <= brought < RATE_BYTES:
            return
        fast = brought > FAST_BYTES_PER_S * (now - before)
        self._streams, self._measured = 1 if fast else STREAMS, True
        self._rate_from = (size_bytes, now)
        self._changed.notify_all()

    def failed(self, span: byte_ranges.ByteRange, error: TransientError) -> None:
        """Schedule a retry. Raises `error` after too many failures."""
        with self._changed:
            if self._stopped:
                return
            if self._taken[span] >= self._failed_at:  # otherwise it is part of the previous failure
                self._failures += 1
            self._streams, self._measured, self._failed_at = 1, False, time.monotonic()
            if self._failures > self._retry.retries:
                self._stopped = True
                raise error
            wait_s = self._retry.delay_s(self._failures, error.retry_after_s)
            self._wait_until = max(self._wait_until, self._failed_at + wait_s)
            self.failures.append((str(error), wait_s))

    @contextmanager
    def watching(self, response: RangeResponse) -> Iterator[None]:
        """Abort the response if the scheduler stops during the block."""
        with self._changed:
            self._responses.append(response)
            if not self._measured:
                self._rate_from = (self._partial.size_bytes, time.monotonic())
            if self._stopped:
                response.abort()
        try:
            yield
        finally:
            with self._changed:
                self._responses.remove(response)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            for response in self._responses:
                response.abort()
            self._changed.notify_all()
