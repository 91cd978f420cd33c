"""Measure a loaded model's prefill and decode rates.

All measurements go through `generate`, just as real answers do. Each function first does an
unmeasured warm-up run, which loads the weights into memory, and then yields one result per run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.sampling import Settings

if TYPE_CHECKING:
    from engine.generate import Stats
    from engine.model import Model
    from engine.nn.cache.cache import Cache
    from engine.streaming import StoreStats

SEED = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. per_s: tokens per second. experts: what it read, if experts stay in the file."""

    per_s: float
    experts: StoreStats | None


def prefill_runs(model: Model, length: int, repeat: int, kv_type: str) -> Iterator[Measured]:
    """Yield runs that process `length` prompt tokens and generate the first token of the answer."""
    for run in range(repeat + 1):
        tokens = prompt(model.config.vocab, length)
        stats, read = _run(model, tokens, 1, model.new_cache(length + 1, kv_type))
        if run > 0:
            yield Measured(stats.prompt_per_s, read)


def decode_runs(
    model: Model, depth: int, count: int, repeat: int, kv_type: str
) -> Iterator[Measured]:
    """Yield runs that decode `count` tokens after `depth` others.

    If experts stay in the file, the last token of the prompt is another one in each run: the same
    tokens would find all of the experts that the run before has read.
    """
    # The first run prefills the `depth` tokens. Later runs find them in the cache.
    cache = model.new_cache(decode_context(depth, count), kv_type)
    for run in range(repeat + 1):
        tokens = prompt(model.config.vocab, depth + 1)
        if model.expert_store is not None:
            tokens[-1] = random.Random(SEED + run).randrange(model.config.vocab)
        stats, read = _run(model, tokens, count + 1, cache)
        if run > 0:
            yield Measured(stats.decode_per_s, read)


def _run(
    model: Model, tokens: list[int], count: int, cache: Cache
) -> tuple[Stats, StoreStats | None]:
    settings = Settings(max_tokens=count, temperature=0, ignore_end=True)
    store = model.expert_store
    before = store.stats() if store else None
    stream = model.generate(tokens, settings, cache)
    for _ in stream:
        pass
    return stream.stats, store.stats() - before if store and before else None


def decode_context(depth: int, count: int) -> int:
    """Return the context size, in tokens, that `decode_runs` needs."""
    return depth + 1 + count + 1


def prompt(vocab: int, length: int) -> list[int]:
    """Return a prompt of random tokens, the same on every call.

    Repeating one token would send every position to the same experts.
    """
    draw = random.Random(SEED)
    return [draw.randrange(vocab) for _ in range(length)]
