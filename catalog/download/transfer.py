"""Fetching one file's missing bytes by several ranges at once, hashed as they come.

It starts with one request; once that has brought something, others join it, unless it is as fast
as this machine can take. A failure leaves one stream to try again, after a wait that doubles, or is
as long as the server asks. Streams and the hash run in threads of their own; whoever called waits,
and is told how far it is.
"""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from catalog.download import byte_ranges
from catalog.download.part_file import Partial
from catalog.errors import NotAModel
from catalog.hub.client import Answer, Hub, Interrupted, RemoteFile

MAGIC = b"GGUF"
STREAMS = 4
MOST_BYTES = 64 * 2**20  # of one request: what a hash has to catch up with stays in memory
LEAST_BYTES = 4 * 2**20  # towards the end requests shrink, so that streams end together
MADE_HEADWAY_BYTES = 2**20  # so much new forgives the failures before it
PACE_BYTES = 8 * 2**20  # over so much the rate is taken
FAST_BYTES_PER_S = 150e6  # faster than that, more streams only wait for each other's Python
SYNC_EVERY_BYTES = 256 * 2**20  # the most that a power cut makes us fetch again
HASH_BYTES = 2**20
MAX_WAIT_S = 300.0
TELL_EVERY_S = 0.1
CHECKING_S = 1.0  # a hash that takes longer than the bytes by so much is told
END_S = 2.0  # threads that are told to end have so long before they are left to themselves


@dataclass(frozen=True, slots=True)
class Patience:
    """How a transfer takes failures: `retries` in a row, waiting `wait_s`, twice that, ..."""

    retries: int = 5
    wait_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told what, always in the thread that called.

    progress: (bytes here, bytes in all) of everything that was asked for.
    waiting: another process fetches this file; it is waited for.
    retrying: (what went wrong, seconds until it is tried again).
    checking: all bytes of a file are here, and their hash takes a while.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    waiting: Callable[[], None] = lambda: None
    retrying: Callable[[str, float], None] = lambda reason, wait_s: None
    checking: Callable[[], None] = lambda: None


def fill(
    hub: Hub,
    file: RemoteFile,
    partial: Partial,
    patience: Patience,
    tell: Callable[[int], None],
    observer: Observer,
) -> str:
    """Fetch what a partial file lacks; return the SHA-256 of the whole, as hex.

    Raises NotAModel for other than GGUF, Interrupted once patience is at its end, OSError as the
    disk does.
    """
    partial.write(0, hub.head(file), partial.edition)
    plan = _Plan(partial, patience)
    pool = ThreadPoolExecutor(STREAMS + 1, thread_name_prefix="transfer")
    threads: list[Future[Any]] = []
    whole_since, told = 0.0, False
    try:  # a signal may come as soon as the first thread runs
        threads.append(digest := pool.submit(_hash, file, partial))
        for _ in range(STREAMS):
            threads.append(pool.submit(_stream, hub, file, partial, plan))
        running = set(threads)
        while running:
            ended, running = wait(running, TELL_EVERY_S, FIRST_EXCEPTION)
            for future in ended:
                future.result()
            while plan.failures_to_tell:
                observer.retrying(*plan.failures_to_tell.popleft())
            tell(partial.size_bytes)
            if running == {digest}:
                whole_since = whole_since or time.monotonic()
                if not told and time.monotonic() - whole_since > CHECKING_S:
                    told = True
                    observer.checking()
        return digest.result()
    finally:
        plan.stop()
        if not all(thread.done() for thread in threads):
            partial.close()  # what a thread that does not end still brings is dropped
        pool.shutdown(wait=False, cancel_futures=True)
        wait(threads, END_S)


def _hash(file: RemoteFile, partial: Partial) -> str:
    """Hash the file as it fills up from its start, and have the disk keep it now and then."""
    edition, done, synced = partial.edition, 0, 0
    digest = hashlib.sha256()
    with partial.path.open("rb", buffering=0) as source:
        while found := partial.wait_for(done, edition):
            ready, now = found
            if now != edition:
                edition, done, synced, digest = now, 0, 0, hashlib.sha256()
                source.seek(0)
                continue
            while done < ready and (chunk := source.read(min(HASH_BYTES, ready - done))):
                if done == 0 and not chunk.startswith(MAGIC[: len(chunk)]):
                    raise NotAModel(f"{file.name} is not a GGUF file")
                digest.update(chunk)
                done += len(chunk)
            if done < ready and edition == partial.edition:
                raise OSError(errno.EIO, "shrank while it was read", str(partial.path))
            if done == partial.limit_bytes:
                break
            if done >= synced + SYNC_EVERY_BYTES:
                partial.sync()
                synced = done
    return digest.hexdigest()


def _stream(hub: Hub, file: RemoteFile, partial: Partial, plan: _Plan) -> None:
    """Fetch one range after the other until none is left."""
    while (span := plan.take()) is not None:
        try:
            edition = partial.edition
            with hub.open(file, *span, partial.etag) as answer, plan.watching(answer):
                if not answer.whole or plan.may_take_all(span):
                    _receive(answer, file, partial, edition, plan)
        except Interrupted as error:
            plan.failed(span, error)
        finally:
            plan.give_back(span)


def _receive(
    answer: Answer, file: RemoteFile, partial: Partial, asked_in: int, plan: _Plan
) -> None:
    """Write one answer's bytes. Raises Interrupted if it ends before its range does."""
    edition = partial.agree(answer.etag, asked_in)
    at = answer.start
    for chunk in answer.chunks:
        if at + len(chunk) > answer.end:
            raise Interrupted(f"{file.name}: the server sent more than it said")
        if edition is None or not partial.write(at, chunk, edition):
            return
        at += len(chunk)
        plan.progressed()
        if partial.size_bytes == file.size_bytes:  # an answer with the whole file brings more
            return
    if at < answer.end:
        raise Interrupted(f"{file.name}: the answer ended early")


class _Plan:
    """Which stream fetches what, and when. Any thread may call anything here."""

    def __init__(self, partial: Partial, patience: Patience) -> None:
        self.failures_to_tell: deque[tuple[str, float]] = deque()
        self._partial, self._patience = partial, patience
        self._changed = threading.Condition()
        self._taken: dict[byte_ranges.Span, float] = {}  # and since when
        self._answers: list[Answer] = []
        self._all: byte_ranges.Span | None = None  # whose stream takes the whole file
        self._streams = 1  # that may run
        self._failures, self._failed_at, self._wait_until = 0, 0.0, 0.0
        self._mark_bytes = partial.size_bytes  # headway is what is beyond
        self._pace = (partial.size_bytes, time.monotonic())  # since when the rate is taken
        self._measured = False  # since the start, or the last failure
        self._stopped = False

    def take(self) -> byte_ranges.Span | None:
        """Wait for something to fetch; None once there is nothing left."""
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

    def give_back(self, span: byte_ranges.Span) -> None:
        """Say that a stream is done with what it took, for better or worse."""
        with self._changed:
            del self._taken[span]
            if self._all == span:
                self._all = None
            self._changed.notify_all()

    def may_take_all(self, span: byte_ranges.Span) -> bool:
        """Give the whole file to a stream whose server knows no ranges, unless another has it."""
        with self._changed:
            self._all = self._all or span
            return self._all == span

    def progressed(self) -> None:
        """Note headway: it forgives failures, and lets other streams join in or not."""
        size_bytes = self._partial.size_bytes
        if self._mark_bytes <= size_bytes < self._mark_bytes + MADE_HEADWAY_BYTES:
            return
        with self._changed:
            if size_bytes > self._mark_bytes:  # and not begun anew
                self._failures = 0
                self._keep_pace(size_bytes)
            self._mark_bytes = size_bytes

    def _keep_pace(self, size_bytes: int) -> None:
        """Let several streams run only where one is slow."""
        before_bytes, before = self._pace
        brought, now = size_bytes - before_bytes, time.monotonic()
        if self._measured and 0 <= brought < PACE_BYTES:
            return
        fast = brought > FAST_BYTES_PER_S * (now - before)
        self._streams, self._measured, self._pace = 1 if fast else STREAMS, True, (size_bytes, now)
        self._changed.notify_all()

    def failed(self, span: byte_ranges.Span, error: Interrupted) -> None:
        """Plan another try. Raises the error instead, once patience is at its end."""
        with self._changed:
            if self._stopped:
                return
            if self._taken[span] >= self._failed_at:  # else it failed along with the last one
                self._failures += 1
            self._streams, self._measured, self._failed_at = 1, False, time.monotonic()
            if self._failures > self._patience.retries:
                self._stopped = True
                raise error
            wait_s = self._patience.wait_s * 2.0 ** (self._failures - 1) * random.uniform(1, 1.25)
            wait_s = min(max(wait_s, error.retry_after_s or 0), MAX_WAIT_S)
            self._wait_until = max(self._wait_until, self._failed_at + wait_s)
            self.failures_to_tell.append((str(error), wait_s))

    @contextmanager
    def watching(self, answer: Answer) -> Iterator[None]:
        """Break an answer off when everything is stopped."""
        with self._changed:
            self._answers.append(answer)
            if not self._measured:
                self._pace = (self._partial.size_bytes, time.monotonic())
            if self._stopped:
                answer.abort()
        try:
            yield
        finally:
            with self._changed:
                self._answers.remove(answer)

    def stop(self) -> None:
        """Have every stream end."""
        with self._changed:
            self._stopped = True
            for answer in self._answers:
                answer.abort()
            self._changed.notify_all()
