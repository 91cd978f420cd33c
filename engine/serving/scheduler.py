"""Run answers step by step in one thread: read prompts in chunks, and decode token by token.

At most `parallel` answers run at once and take turns, one chunk or one token each. The turns never
change a result: chunks end at fixed positions, and each answer has a cache of its own. Decoding one
token of each running answer in a single batch would replace `_turn`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

from engine.errors import EngineError
from engine.serving.fair_queue import FairQueue

if TYPE_CHECKING:
    from engine.generate import TokenStream
    from engine.sampling import Settings
    from engine.serving.prefixes import Lane, Prefixes
    from engine.streaming import StoreStats
    from engine.text.constrained import Guide
    from engine.text.reasoning import Part

T = TypeVar("T")
# What a failed answer may raise. Anything else is a bug, and ends the thread.
FAILURES = (EngineError, OSError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True, slots=True)
class Reading:
    """A chunk of the prompt was read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """A token was decoded. The last event of an answer's text has no token."""

    token: int | None
    parts: list[Part]


@dataclass(slots=True)
class Finished:
    """The answer has ended. finish, cut_by: as in TokenStream, or finish is "error".

    experts: what the store of experts on the disk had counted before and after; None without one,
    or if other answers ran meanwhile.
    """

    finish: str
    cut_by: str | None = None
    found_stop: bool = False
    error: BaseException | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    thinking_tokens: int = 0
    waited_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    experts: tuple[StoreStats, StoreStats] | None = None


Happening = Reading | Decoded | Finished


@dataclass(eq=False)
class Job:
    """One answer to generate.

    guide: makes the constraints for a prompt. shown, calls: as for `TokenStream.steps`. client: who
    asked, for the queue. emit: receives each event, in the scheduler's thread.
    """

    prefixes: Prefixes
    tokens: list[int]
    settings: Settings
    emit: Callable[[Happening], None]
    guide: Callable[[list[int]], Guide | None] = lambda tokens: None
    shown: frozenset[int] = frozenset()
    calls: bool = False
    client: str = ""
    cancelled: bool = False
    alone: bool = True
    stop: Callable[[], None] = lambda: None  # ends a step that waits for the disk
    queued_s: float = field(default_factory=time.perf_counter)


class _Cancelled(Exception):
    """The answer was cancelled while its prompt was read."""


class Scheduler:
    """Runs jobs in one thread, which also loads models: see `call`. parallel: jobs at a time."""

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel
        self._changed = threading.Condition()
        self._waiting: FairQueue[Job] = FairQueue()
        self._calls: deque[Callable[[], None]] = deque()
        self._running: dict[Job, Iterator[None]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Queue a job. Return how many answers are before it."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed")
            self._waiting.push(job.client, job)
            self._changed.notify()
            free = self.parallel - len(self._running)
            return 0 if len(self._waiting) <= free else len(self._waiting) - 1 + len(self._running)

    def cancel(self, job: Job) -> None:
        """End a job before its next step. Does nothing if it has ended."""
        with self._changed:
            job.cancelled = True
            job.stop()
            if self._waiting.remove(job):
                job.emit(Finished("interrupted", prompt_tokens=len(job.tokens)))

    def call(
        self, function: Callable[[], T], failures: tuple[type[BaseException], ...] = FAILURES
    ) -> Future[T]:
        """Run a function in the scheduler's thread, between two steps.

        failures: the exceptions that the result may raise. Any other ends the thread.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except failures as error:
                future.set_exception(error)

        with self._changed:
            self._calls.append(run)
            self._changed.notify()
        return future

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """False if the thread has ended."""
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Cancel all jobs, and end the thread after the current step."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *self._running]:
                job.cancelled = True
                job.stop()
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while self._admit():
                for job in list(self._running):
                    self._turn(job)
        finally:
            with self._changed:
                self._closed = True
                left = [*self._running, *self._waiting]
            for job in left:
                job.emit(Finished("interrupted", prompt_tokens=len(job.tokens)))

    def _admit(self) -> bool:
        """Start waiting jobs while there is room. Waits if there is nothing to do."""
        with self._changed:
            idle = not (self._running or self._waiting or self._calls or self._closed)
            while idle:
                self._changed.wait()
                idle = not (self._waiting or self._calls or self._closed)
            if self._closed and not self._running:
                return False
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            while len(self._waiting) and len(self._running) < self.parallel and not self._closed:
                job = self._waiting.pop()
                self._running[job] = self._answer(job)
                if len(self._running) > 1:
                    for running in self._running:
                        running.alone = False
        for run in calls:
            run()
        return True

    def _turn(self, job: Job) -> None:
        """Run one step of a job, and report its end."""
        try:
            next(self._running[job])
            return
        except StopIteration:
            pass
        with self._changed:
            del self._running[job]

    def _answer(self, job: Job) -> Iterator[None]:
        """Yield after each step of a job: a chunk of its prompt, or a token."""
        end = Finished("error", prompt_tokens=len(job.tokens))
        store = job.prefixes.model.expert_store
        before = store.stats() if store is not None else None
        started = time.perf_counter()
        end.waited_s = started - job.queued_s
        try:
            yield from self._steps(job, end)
        except _Cancelled:
            end.finish = "interrupted"
        except FAILURES as error:
            end.error = error
        now = time.perf_counter()
        if end.prefill_s:
            end.decode_s = now - started - end.prefill_s
        else:
            end.prefill_s = now - started
        if store is not None and before is not None and job.alone:
            end.experts = before, store.stats()
        job.emit(end)
        job.prefixes.save()

    def _steps(self, job: Job, end: Finished) -> Iterator[None]:
        begun = time.perf_counter()
        start, sound = job.prefixes.take(job.tokens), False
        lane, tokens = start.lane, start.tokens
        try:
            end.prompt_tokens, end.cached_tokens = len(tokens), lane.cache.length
            yield from self._read(job, lane, tokens, start.save_at)
            stream = job.prefixes.model.generate(
                tokens,
                job.settings,
                lane.cache,
                on_prefill=lambda done, total: self._check(job),
                guide=job.guide(tokens),
            )
            job.stop = stream.stop
            with closing(stream.steps(job.shown, job.calls)) as steps:  # type: ignore[type-var]
                for token, parts in steps:
                    if not end.prefill_s:
                        end.prefill_s = time.perf_counter() - begun
                        job.prefixes.mark_prompt(lane, len(tokens))
                    job.emit(Decoded(token, parts))
                    self._count(stream, end)
                    if token is not None:
                        self._settle(stream)
                    if job.cancelled:
                        stream.stop()
                    elif token is not None:
                        yield
            stream.settle()
            self._count(stream, end)
            end.finish = stream.finish or "stop"
            end.cut_by, end.found_stop = stream.cut_by, stream.found_stop
            sound = True
        except _Cancelled:
            sound = True
            raise
        finally:
            mx.synchronize()  # a step that ran ahead no longer writes to the lane
            job.prefixes.give(lane, sound)

    def _read(self, job: Job, lane: Lane, tokens: list[int], save_at: int) -> Iterator[None]:
        """Read all chunks of a prompt but the last, which `generate` reads."""
        model, cache = job.prefixes.model, lane.cache
        size = model.prompt_chunk(cache.context)
        first, stops = cache.length, [save_at] if save_at else []
        ends = range(first - first % size + size, len(tokens), size)
        if cache.block and ends:  # a longer prompt computes an unfilled block again
            stops.append(ends[-1])
        for at in sorted({*ends, *stops}):
            self._check(job)
            mx.synchronize()  # cancelling this chunk must not cancel another answer's step
            model.prefill(tokens[cache.length : at], cache, lambda done, total: self._check(job))
            if at in stops:
                job.prefixes.mark(lane, at)
            job.emit(Reading(at, len(tokens)))
            yield
        mx.synchronize()

    def _settle(self, stream: TokenStream) -> None:
        """Let a step that runs ahead end before another answer's step, which may stop the disk."""
        if len(self._running) > 1:
            stream.settle()

    def _check(self, job: Job) -> None:
        if job.cancelled:
            raise _Cancelled

    def _count(self, stream: TokenStream, end: Finished) -> None:
        end.decoded_tokens = stream.stats.decoded_tokens
        end.thinking_tokens = stream.stats.thinking_tokens
