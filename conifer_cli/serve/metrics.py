"""Counts of what the server has done."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.serving.scheduler import Finished
    from engine.streaming import StoreStats

RECENT = 20  # answers that the shown rates cover


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Choices whose expert was in memory or not, and what experts on the disk have cost."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_s: float = 0.0

    def plus(self, stats: StoreStats | None) -> ExpertCounts:
        """Return the counts with those of a model."""
        if stats is None:
            return self
        return ExpertCounts(
            self.hits + stats.hits,
            self.misses + stats.misses,
            self.bytes_read + stats.bytes_read,
            self.wait_s + stats.wait_s + stats.prompt_wait_s,
        )


@dataclass
class Metrics:
    """Totals since the start. rates: (prompt tokens/s, decoded tokens/s) of the last answers."""

    started_s: float = field(default_factory=time.time)
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # (path, status)
    finishes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    waited_s: float = 0.0
    queued_answers: int = 0
    cache_hits: int = 0
    recent: deque[Finished] = field(default_factory=lambda: deque(maxlen=RECENT))
    experts: ExpertCounts = field(default_factory=lambda: ExpertCounts())

    def streamed(self, stats: StoreStats) -> None:
        """Count what the experts of a model that makes way have cost."""
        self.experts = self.experts.plus(stats)

    def asked(self, position: int) -> None:
        """Count an answer that was queued behind `position` others."""
        self.queued_answers += position > 0

    def answered(self, end: Finished) -> None:
        """Count an answer that has ended."""
        self.finishes[end.finish] += 1
        self.prompt_tokens += end.prompt_tokens
        self.cached_tokens += end.cached_tokens
        self.decoded_tokens += end.decoded_tokens
        self.prefill_s += end.prefill_s
        self.decode_s += end.decode_s
        self.waited_s += end.waited_s
        self.cache_hits += end.cached_tokens > 0
        if end.decoded_tokens:
            self.recent.append(end)

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens read per second in the last answers."""
        read = sum(end.prompt_tokens - end.cached_tokens for end in self.recent)
        return read / (sum(end.prefill_s for end in self.recent) or 1.0)

    @property
    def decode_per_s(self) -> float:
        """Tokens decoded per second in the last answers, without the first of each."""
        decoded = sum(end.decoded_tokens - 1 for end in self.recent)
        return decoded / (sum(end.decode_s for end in self.recent) or 1.0)
