"""Measure a loaded model's prefill and decode rates.

All measurements go through `generate`, just as real answers do. Each function first does an
unmeasured warm-up run, which loads the weights into memory, and then yields one rate per run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.sampling import Settings

if TYPE_CHECKING:
    from engine.generate import Stats
    from engine.model import Model
    from engine.nn.cache.cache import Cache

SEED = 0


def prefill_rates(model: Model, length: int, repeat: int, kv_type: str) -> Iterator[float]:
    """Yield prefill rates in tokens per second.

    Each run processes `length` prompt tokens and generates the first token of the answer.
    """
    for run in range(repeat + 1):
        stats = _run(model, length, 1, model.new_cache(length + 1, kv_type))
        if run > 0:
            yield stats.prompt_per_s


def decode_rates(
    model: Model, depth: int, count: int, repeat: int, kv_type: str
) -> Iterator[float]:
    """Yield decode rates in tokens per second, for `count` tokens that follow `depth` others."""
    # The first run prefills the `depth` tokens. Later runs find them in the cache.
    cache = model.new_cache(decode_context(depth, count), kv_type)
    for run in range(repeat + 1):
        stats = _run(model, depth + 1, count + 1, cache)
        if run > 0:
            yield stats.decode_per_s


def _run(model: Model, length: int, count: int, cache: Cache) -> Stats:
    settings = Settings(max_tokens=count, temperature=0, ignore_end=True)
    stream = model.generate(prompt(model.config.vocab, length), settings, cache)
    for _ in stream:
        pass
    return stream.stats


def decode_context(depth: int, count: int) -> int:
    """Return the context size, in tokens, that `decode_rates` needs."""
    return depth + 1 + count + 1


def prompt(vocab: int, length: int) -> list[int]:
    """Return a prompt of random tokens, the same on every call.

    Repeating one token would send every position to the same experts.
    """
    draw = random.Random(SEED)
    return [draw.randrange(vocab) for _ in range(length)]
