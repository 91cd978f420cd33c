"""Describe what each layer caches and compute its size in bytes. Does not import MLX.

`ModelConfig.cache_specs` lists a model's specs. They determine the caches, the memory estimate and
the number of bytes that each token reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STEP = 256  # buffers grow in steps of this many tokens
KV_TYPES = ("f16", "q8", "f32")
Q8_GROUP = 32  # values that share a scale
WINDOW_SLACK = 512  # extra tokens kept beyond the window, so that it can be rewound
SNAPSHOTS = 3  # saved states per recurrent layer


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The contents of one layer's cache.

    buffers: (heads, values per head) for each tensor with one row per token. window: how many of
    the most recent tokens the buffers hold, or 0 for all. stride: how many tokens share a row.
    chosen: the maximum number of rows that a new token reads from the first `choosy` buffers, or 0
    for all. state_values: number of float32 values in the recurrent state. borrowed: the buffers
    belong to an earlier layer; this one only reads them. parts: the caches of a layer that has
    several, in place of all of the above.
    """

    buffers: tuple[tuple[int, int], ...] = ()
    chosen: int = 0
    window: int = 0
    state_values: int = 0
    borrowed: bool = False
    stride: int = 1
    choosy: int = 1
    parts: tuple[CacheSpec, ...] = ()


def flat(layers: Iterable[CacheSpec]) -> Iterator[CacheSpec]:
    """Yield the caches of all layers, part by part."""
    for spec in layers:
        yield from spec.parts or (spec,)


def kv_bytes(layers: Iterable[CacheSpec], context: int, kv_type: str) -> int:
    """Return the size in bytes of a full cache for `context` tokens."""
    total = 0
    for spec in flat(layers):
        if spec.borrowed:
            continue
        rows = int(rows_held(spec, context) * row_bytes(spec, kv_type))
        total += rows + SNAPSHOTS * 4 * spec.state_values
    return total


def rows_held(spec: CacheSpec, context: int) -> int:
    """Return how many rows the buffers of a cache without parts have room for at the end."""
    held = min(context, spec.window + WINDOW_SLACK + STEP) if spec.window else context
    return math.ceil(held // spec.stride / STEP) * STEP


def kv_read_bytes(layers: Iterable[CacheSpec], depth: int, kv_type: str) -> int:
    """Return the cache traffic in bytes for one token at `depth`.

    This includes rows read, and recurrent states read and written.
    """
    total = 0.0
    for spec in flat(layers):
        rows = min(depth, spec.window or depth) // spec.stride
        total += rows * row_bytes(spec, kv_type) + 2 * 4 * spec.state_values
        if 0 < spec.chosen < rows:
            total -= (rows - spec.chosen) * row_bytes(
                CacheSpec(spec.buffers[: spec.choosy]), kv_type
            )
    return int(total)


def token_bytes(spec: CacheSpec, kv_type: str) -> float:
    """Return the bytes that one layer caches per token, including q8 scales.

    Of several caches, those with a window do not count: they do not grow with the context.
    """
    kept = [part for part in spec.parts if not part.window] if spec.parts else [spec]
    return sum(row_bytes(part, kv_type) / part.stride for part in kept)


def row_bytes(spec: CacheSpec, kv_type: str) -> float:
    """Return the bytes of a row of all buffers of a cache without parts."""
    return sum(heads * dims * _value_bytes(dims, kv_type) for heads, dims in spec.buffers)


def _value_bytes(dims: int, kv_type: str) -> float:
    if kv_type == "q8":
        return 1 + 2 / math.gcd(dims, Q8_GROUP)
    return {"f16": 2.0, "f32": 4.0}[kv_type]
