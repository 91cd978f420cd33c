"""Keep the caches of past conversations, so that a prompt is read only from where it is new.

A lane is a cache in which an answer can run. When a lane is needed for another conversation, its
contents are copied to memory if the budget allows, and copied back when that conversation goes on.
The least recently used copies are dropped first. Copies may also be kept on a disk, for later
servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from operator import eq
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import CacheStateError
from engine.limits import enough_memory
from engine.nn.cache.cache import REWIND
from engine.nn.cache.rewind import SavedPoint, last_mark, needs_points, restore_point, save_point
from engine.nn.cache.state import CacheState, dump, load
from engine.text.tokenizer import retokenized

if TYPE_CHECKING:
    from engine.model import Model
    from engine.nn.cache.cache import Cache

MIN_TOKENS = 64  # reading fewer tokens is as fast as copying them
MAX_POINTS = 8  # saved positions in one conversation


class Disk(Protocol):
    """Where conversations are kept for later."""

    def find(self, tokens: list[int], above: int) -> CacheState | None:
        """Return the state that shares the longest prefix with `tokens`, if more than `above`."""

    def keep(self, kept: CacheState) -> None:
        """Store a state, if it is worth it."""


@dataclass(eq=False)
class Lane:
    """A cache in which one answer at a time runs, with saved points of its conversation."""

    cache: Cache
    points: list[SavedPoint] = field(default_factory=list)
    used: int = 0  # the time of its last use, as a count

    @property
    def tokens(self) -> list[int]:
        return self.cache.tokens

    def reach(self, shared: int) -> int:
        """Return how many of the first `shared` tokens need not be read again."""
        saved = (point.length for point in self.points if point.length <= shared)
        return max(self.cache.rewindable_to(shared), max(saved, default=0))


@dataclass(eq=False)
class StoredLane:
    """A copy of a lane's contents."""

    state: CacheState
    points: list[SavedPoint]
    rewindable: bool
    used: int

    @property
    def tokens(self) -> list[int]:
        return self.state.tokens

    @property
    def size_bytes(self) -> int:
        points = sum(point.size_bytes for point in self.points)
        return sum(array.nbytes for array in self.state.arrays) + points

    def reach(self, shared: int) -> int:
        """Return how many of the first `shared` tokens need not be read again."""
        if self.rewindable:
            return shared
        return max((length for length in self.ends if length <= shared), default=0)

    @property
    def ends(self) -> list[int]:
        """The lengths at which an answer can start in a model that cannot rewind."""
        return [*(point.length for point in self.points), len(self.tokens)]

    def covers(self, other: StoredLane) -> bool:
        """Return whether this copy spares every answer as much reading as the other."""
        begins = self.tokens[: len(other.tokens)] == other.tokens
        return begins and all(self.reach(length) == length for length in other.ends)


@dataclass(frozen=True, slots=True)
class Start:
    """Where an answer starts: its lane, already rewound, and the prompt in the lane's spelling.

    save_at: a position at which to save a point, because prompts part there; 0 for none.
    """

    lane: Lane
    tokens: list[int]
    save_at: int


class Prefixes:
    """The lanes and stored conversations of one model.

    lanes: how many answers may run at once, each with a cache for `context` tokens. budget_bytes:
    memory for stored conversations and saved points. disk: where they are kept besides.
    """

    def __init__(
        self,
        model: Model,
        context: int,
        kv_type: str,
        lanes: int,
        budget_bytes: int,
        disk: Disk | None = None,
    ) -> None:
        self.model, self.context, self.budget_bytes = model, context, budget_bytes
        self._disk = disk
        self._unsaved: list[Lane] = []  # answered since the disk was written
        self._idle = [Lane(model.new_cache(context, kv_type)) for _ in range(lanes)]
        self._stored: list[StoredLane] = []
        self._pointed = needs_points(model)
        self._clock = count(1)

    @property
    def stored_bytes(self) -> int:
        """The memory that stored conversations and saved points take."""
        points = sum(point.size_bytes for lane in self._idle for point in lane.points)
        return points + sum(stored.size_bytes for stored in self._stored)

    def take(self, prompt: list[int]) -> Start:
        """Return an idle lane that already holds as much of the prompt as possible."""
        held = [lane.tokens for lane in self._idle] + [stored.tokens for stored in self._stored]
        known = max(_common(tokens, prompt) for tokens in held)
        self._recall(prompt, known)
        lane, tokens, shared = self._best(prompt)
        shared = min(shared, len(tokens) - 1)
        length = lane.reach(shared)
        while (fixed := lane.cache.fixed_length(length, len(tokens))) < length:
            length = lane.reach(fixed)
        point = next((point for point in lane.points if point.length == length), None)
        if point is not None and lane.cache.rewindable_to(length) < length:
            restore_point(self.model, lane.cache, point)
        lane.cache.trim(length)
        lane.cache.reuse(tokens)
        lane.points = [point for point in lane.points if point.length <= lane.cache.length]
        self._idle.remove(lane)
        fixed = lane.cache.fixed_start(min(max(shared, known), len(tokens) - 1), len(tokens))
        part = self._pointed and fixed - lane.cache.length >= MIN_TOKENS
        return Start(lane, tokens, fixed if part else 0)

    def mark(self, lane: Lane, length: int) -> None:
        """Save a point at a position of the lane, if the model needs points."""
        if not self._pointed or length < MIN_TOKENS:
            return
        if all(point.length != length for point in lane.points):
            point = save_point(self.model, lane.cache, length)
            if point is not None and point.size_bytes <= self.budget_bytes // 2:
                lane.points = _thinned(sorted([*lane.points, point], key=lambda p: p.length))

    def mark_prompt(self, lane: Lane, prompt_tokens: int) -> None:
        """Save a point shortly before the end of a prompt that has just been read.

        Later prompts part from this one no earlier than there: after the end of a message.
        """
        if self._pointed:
            self.mark(lane, last_mark(lane.cache) or prompt_tokens - REWIND)

    def give(self, lane: Lane, sound: bool = True) -> None:
        """Take back a lane. sound: whether its contents can be used again."""
        if not sound:
            lane.cache.trim(0)
            lane.points = []
        lane.used = next(self._clock)
        self._idle.append(lane)
        self._make_room(0)
        if sound and self._disk is not None:
            self._unsaved.append(lane)

    def save(self) -> None:
        """Write to the disk what has been answered. Call this between two answers' steps."""
        for lane in self._unsaved:
            if self._disk is not None and lane in self._idle:
                self._disk.keep(dump(self.model, lane.cache))
        self._unsaved = []

    def _recall(self, prompt: list[int], known: int) -> None:
        """Find a conversation on the disk if it shares more of the prompt than those in memory."""
        found = self._disk and self._disk.find(prompt, known + MIN_TOKENS - 1)
        if found and len(found.tokens) <= self.context:
            self._stored.append(StoredLane(found, [], True, next(self._clock)))

    def _best(self, prompt: list[int]) -> tuple[Lane, list[int], int]:
        """Return the lane to use, the prompt in its spelling and the length of their prefix."""
        lane = max(self._idle, key=lambda lane: (self._reach(lane, prompt)[0], -lane.used))
        held, tokens, shared = self._reach(lane, prompt)
        stored = max(self._stored, key=lambda s: self._reach(s, prompt)[0], default=None)
        found = self._reach(stored, prompt) if stored is not None else (0, prompt, 0)
        if stored is not None and found[0] >= held + MIN_TOKENS:
            lane = self._least_used()
            self._load(stored, lane, found[2])
            return lane, *found[1:]
        if held < MIN_TOKENS:
            lane = self._least_used()
            held, tokens, shared = self._reach(lane, prompt)
        if lane.cache.length - held >= MIN_TOKENS:
            self._store(lane, shared)
        return lane, tokens, shared

    def _least_used(self) -> Lane:
        return min(self._idle, key=lambda lane: (lane.cache.length > 0, lane.used))

    def _reach(self, held: Lane | StoredLane, prompt: list[int]) -> tuple[int, list[int], int]:
        shared = _common(held.tokens, prompt)
        if MIN_TOKENS <= shared < min(len(held.tokens), len(prompt)):
            prompt = retokenized(held.tokens, prompt, self.model.tokenizer)
            shared = _common(held.tokens, prompt)
        return held.reach(min(shared, len(prompt) - 1)), prompt, shared

    def _store(self, lane: Lane, shared: int) -> None:
        """Copy a lane's contents to memory, unless the next prompt continues all that matters."""
        state = dump(self.model, lane.cache)
        kept = StoredLane(state, list(lane.points), not self._pointed, next(self._clock))
        if not kept.tokens or kept.size_bytes > self.budget_bytes:
            return
        if (same := next((old for old in self._stored if old.covers(kept)), None)) is not None:
            same.used = kept.used
            return
        self._stored = [old for old in self._stored if not kept.covers(old)]
        self._make_room(kept.size_bytes)
        with enough_memory():
            kept.state = replace(state, arrays=[_copy(array) for array in state.arrays])
        self._stored.append(kept)

    def _load(self, stored: StoredLane, lane: Lane, shared: int) -> None:
        if lane.cache.length >= MIN_TOKENS:
            self._store(lane, 0)
        lane.cache.trim(0)
        with suppress(CacheStateError):  # only one from a disk can be of another shape
            load(self.model, stored.state, lane.cache)
            lane.points = list(stored.points)
        stored.used = next(self._clock)
        if len(stored.tokens) - shared < MIN_TOKENS and stored in self._stored:
            self._stored.remove(stored)

    def _make_room(self, size_bytes: int) -> None:
        """Drop stored conversations, then saved points, until the budget has room."""
        self._stored.sort(key=lambda stored: stored.used)
        while self._stored and self.stored_bytes + size_bytes > self.budget_bytes:
            self._stored.pop(0)
        for lane in sorted(self._idle, key=lambda lane: lane.used):
            if self.stored_bytes + size_bytes > self.budget_bytes:
                lane.points = []


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(takewhile(bool, map(eq, held, wanted)))


def _copy(array: Any) -> Any:
    import numpy as np

    return np.array(array)


def _thinned(points: list[SavedPoint]) -> list[SavedPoint]:
    """Drop the point nearest to its predecessor if there are too many. Keeps both ends."""
    if len(points) <= MAX_POINTS:
        return points
    inner = range(1, len(points) - 1)
    drop = min(inner, key=lambda at: points[at].length - points[at - 1].length)
    return [*points[:drop], *points[drop + 1 :]]
