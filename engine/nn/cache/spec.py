"""Describe what each layer caches and compute its size in bytes. Does not import MLX.

`ModelConfig.cache_specs` lists a model's specs. They determine the caches, the memory estimate and
the number of bytes that each token reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    the most recent tokens the buffers hold, or 0 for all. chosen: the maximum number of tokens that
    a new token reads from the first buffer, or 0 for all. state_values: number of float32 values in
    the recurrent state. borrowed: the buffers belong to an earlier layer; this one only reads them.
    """

    buffers: tuple[tuple[int, int], ...] = ()
    chosen: int = 0
    window: int = 0
    state_values: int = 0
    borrowed: bool = False


def kv_bytes(layers: Iterable[CacheSpec], context: int, kv_type: str) -> int:
    """Return the size in bytes of a full cache for `context` tokens."""
    total = 0
    for spec in layers:
        if spec.borrowed:
            continue
        held = min(context, spec.window + WINDOW_SLACK + STEP) if spec.window else context
        tokens = math.ceil(held / STEP) * STEP
        total += int(tokens * token_bytes(spec, kv_type)) + SNAPSHOTS * 4 * spec.state_values
    return total


def kv_read_bytes(layers: Iterable[CacheSpec], depth: int, kv_type: str) -> int:
    """Return the cache traffic in bytes for one token at `depth`.

    This includes rows read, and recurrent states read and written.
    """
    total = 0.0
    for spec in layers:
        tokens = min(depth, spec.window or depth)
        total += tokens * token_bytes(spec, kv_type) + 2 * 4 * spec.state_values
        if 0 < spec.chosen < depth:
            first = CacheSpec(spec.buffers[:1])
            total -= (depth - spec.chosen) * token_bytes(first, kv_type)
    return int(total)


def token_bytes(spec: CacheSpec, kv_type: str) -> float:
    """Return the bytes that one layer caches per token, including q8 scales."""
    return sum(heads * dims * _value_bytes(dims, kv_type) for heads, dims in spec.buffers)


def _value_bytes(dims: int, kv_type: str) -> float:
    if kv_type == "q8":
        return 1 + 2 / math.gcd(dims, Q8_GROUP)
    return {"f16": 2.0, "f32": 4.0}[kv_type]
