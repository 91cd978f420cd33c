"""Processors of logits that requests ask for: biases, a frequency penalty and log probabilities.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx

MAX_TOP = 20  # alternatives per token


class Logprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass
class LogitBias:
    """Add a number to the logits of some tokens. Raises ValueError for ids outside V."""

    biases: Mapping[int, float]

    @cached_property
    def _arrays(self) -> tuple[mx.array, mx.array]:
        return mx.array(list(self.biases), dtype=mx.int32), mx.array(list(self.biases.values()))

    def __call__(self, recent: mx.array, logits: mx.array) -> mx.array:
        if not 0 <= min(self.biases) <= max(self.biases) < logits.size:  # MLX would write there
            raise ValueError("a biased token is outside the vocabulary")
        ids, biases = self._arrays
        return logits.at[ids].add(biases)


@dataclass
class FrequencyPenalty:
    """Subtract `penalty` from a token's logit for each time that the answer contains it."""

    penalty: float
    _counts: mx.array | None = None

    def __call__(self, recent: mx.array, logits: mx.array) -> mx.array:
        if self._counts is None:  # the answer is empty
            self._counts = mx.zeros(logits.shape)
            return logits
        self._counts = self._counts.at[recent[-1]].add(1.0)
        return logits - self.penalty * self._counts


@dataclass
class LogprobRecorder:
    """Record the log probabilities of each step, before temperature. Changes no logit.

    top: how many of the most likely tokens to report.
    """

    top: int
    _steps: deque[mx.array] = field(default_factory=deque)

    def __call__(self, recent: mx.array, logits: mx.array) -> mx.array:
        self._steps.append(logits - mx.logsumexp(logits))
        return logits

    def next(self, token: int) -> tuple[float, list[Logprob]]:
        """Return the log probability of the next token and the most likely tokens, best first."""
        step = self._steps.popleft()
        chosen: Any = step[token].item()
        if not self.top:
            return float(chosen), []
        ids = mx.argpartition(-step, kth=self.top - 1)[: self.top]
        tokens: Any = ids.tolist()
        values: Any = step[ids].tolist()
        top = sorted(map(Logprob, tokens, values), key=lambda row: -row.logprob)
        return float(chosen), top
