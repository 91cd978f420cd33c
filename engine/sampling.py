"""Sample a token from logits on the device: penalties, temperature, top-k, top-p and min-p.

`sample` is the reference implementation in MLX; kernels may provide their own. Temperature is
applied first, then top-k, top-p and min-p. The recommended settings in model cards, which the
catalog uses, assume this order. Axes: V vocabulary, C remaining candidates.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

PENALTY_WINDOW = 64  # recent tokens that penalties apply to
MIN_TEMPERATURE = 1e-6
NOT_FINITE = -1  # returned in place of a token if a logit is NaN or infinite
FORBIDDEN = -1e30  # a masked token's logit; the sum of many of them is still finite
SEED_BITS = 64
MAX_TOP_K = 1 << 24  # far above any vocabulary, and a 32-bit number for the kernels

Processor = Callable[[mx.array, mx.array], mx.array]  # (recent tokens, logits (V,)) -> logits (V,)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to sample tokens and when to stop. Raises ValueError if a value is out of range.

    max_tokens: None means up to the end of the context. temperature: 0 means greedy; the default is
    0.7. top_k 0, top_p 1, min_p 0, repetition_penalty 1 and presence_penalty 0 have no effect.
    stop: strings that end the answer. processors: functions of (recent tokens (n,), logits (V,))
    that return new logits. ignore_end: continue past end-of-generation tokens.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    processors: tuple[Processor, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        ranges = (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", 0 <= self.top_k <= MAX_TOP_K, "between 0 and 2^24"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("seed", self.seed is None or 0 <= self.seed < 1 << 64, "between 0 and 2^64 - 1"),
            ("stop", all(self.stop), "a sequence of non-empty strings"),
        )
        for name, holds, allowed in ranges:
            if not holds:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")


# (logits (V,), settings, SEED_BITS fresh random bits) -> token () int32
Sample = Callable[[mx.array, Settings, int], mx.array]


class Sampler:
    """Sample tokens according to `settings`. Stores the recent tokens and the random generator."""

    def __init__(self, settings: Settings, prompt: list[int], sample: Sample) -> None:
        self.settings, self.sample = settings, sample
        self.recent = mx.array(prompt[-PENALTY_WINDOW:], dtype=mx.int32)
        self.looks_back = bool(
            settings.repetition_penalty != 1.0 or settings.presence_penalty or settings.processors
        )
        seed = secrets.randbits(SEED_BITS) if settings.seed is None else settings.seed
        self.chance = random.Random(seed)

    def choose(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """Sample a token: logits (V,) -> () int32, or NOT_FINITE. Does not wait for the device.

        allowed: (V,) bool mask of permitted tokens; None permits all of them.
        """
        masked = bool(self.settings.processors) or allowed is not None
        finite = mx.isfinite(logits.sum()) if masked else None
        if self.settings.repetition_penalty != 1.0:
            logits = apply_repetition_penalty(logits, self.recent, self.settings.repetition_penalty)
        if self.settings.presence_penalty != 0.0:
            logits = apply_presence_penalty(logits, self.recent, self.settings.presence_penalty)
        for process in self.settings.processors:
            logits = process(self.recent, logits)
        if allowed is not None:
            logits = mx.where(allowed, logits, FORBIDDEN)
        if finite is not None:  # preserve NaN; -inf from a processor means masked
            logits = mx.where(finite, mx.maximum(logits, FORBIDDEN), mx.nan)
        token = self.sample(logits, self.settings, self.chance.getrandbits(SEED_BITS))
        if self.looks_back:
            self.recent = mx.concatenate([self.recent, token[None]])[-PENALTY_WINDOW:]
        return token


def apply_repetition_penalty(logits: mx.array, recent: mx.array, penalty: float) -> mx.array:
    """Make recent tokens less likely (arXiv 1909.05858).

    Positive logits are divided by `penalty`; negative ones are multiplied by it.
    """
    seen = logits[recent]
    logits = mx.array(logits)  # copy, so that the caller's array does not change
    logits[recent] = mx.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def apply_presence_penalty(logits: mx.array, recent: mx.array, penalty: float) -> mx.array:
    """Subtract `penalty` from each recent token's logit, once, however often the token occurs."""
    lowered = logits[recent] - penalty
    logits = mx.array(logits)
    logits[recent] = lowered
    return logits


def sample(logits: mx.array, settings: Settings, bits: int) -> mx.array:
    """Sample a token: logits (V,) -> () int32, or NOT_FINITE."""
    greedy = settings.temperature == 0
    token = logits.argmax() if greedy else draw(logits, settings, mx.random.key(bits))
    return mx.where(mx.isfinite(logits.sum()), token.astype(mx.int32), NOT_FINITE)


def draw(logits: mx.array, settings: Settings, key: mx.array) -> mx.array:
    """Sample a token from logits (V,) at a temperature above 0."""
    # Subtract the maximum so that a tiny temperature produces -inf, not NaN.
    logits = (logits - logits.max()) / max(settings.temperature, MIN_TEMPERATURE)
    if settings.top_k == 0 and settings.top_p == 1.0 and settings.min_p == 0.0:
        return mx.random.categorical(logits, key=key)
    ids = mx.arange(logits.size)
    if 0 < settings.top_k < logits.size:
        ids = mx.argpartition(-logits, kth=settings.top_k - 1)[: settings.top_k]
    ids = ids[mx.argsort(-logits[ids])]  # (C,), most likely first
    logits = logits[ids]
    probs = mx.softmax(logits, precise=True)
    if settings.top_p < 1.0:  # includes the candidate that crosses top_p
        keep = mx.cumsum(probs) - probs < settings.top_p
        logits = mx.where(keep, logits, -mx.inf)
        probs = mx.where(keep, probs, 0)
    if settings.min_p > 0.0:
        logits = mx.where(probs >= settings.min_p * probs[0], logits, -mx.inf)
    return ids[mx.random.categorical(logits, key=key)]
