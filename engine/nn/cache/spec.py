"""What each layer caches of a sequence, and how many bytes that takes. Imports no MLX.

`ModelConfig.cache_specs` lists the specs of a model; the caches, the estimate of memory use and the
bytes that a token reads all follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

STEP = 256  # tokens by which buffers grow
KV_TYPES = ("f16", "q8", "f32")
Q8_GROUP = 32  # values that share a scale
WINDOW_SLACK = 512  # extra tokens that a window holds, so that it can be rewound
SNAPSHOTS = 3  # saved states of a recurrent layer


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What one layer caches.

    buffers: (heads, values per head) of each tensor with a row per token. window: how many of the
    last tokens the buffers hold, 0 for all. chosen: how many tokens a new token reads from the
    first buffer at most, 0 for all. state_values: float32 values, independent of the length.
    """

    buffers: tuple[tuple[int, int], ...] = ()
    chosen: int = 0
    window: int = 0
    state_values: int = 0


def kv_bytes(layers: Iterable[CacheSpec], context: int, kv_type: str) -> int:
    """Return the bytes of a full cache of `context` tokens."""
    total = 0
    for spec in layers:  # rounding up to whole steps may meet an odd number of tokens
        held = min(context, spec.window + WINDOW_SLACK + STEP) if spec.window else context
        tokens = math.ceil(held / STEP) * STEP
        total += int(tokens * token_bytes(spec, kv_type)) + SNAPSHOTS * 4 * spec.state_values
    return total


def kv_read_bytes(layers: Iterable[CacheSpec], depth: int, kv_type: str) -> int:
    """Return the bytes of the cache that a token at `depth` reads, plus the states it writes."""
    total = 0.0
    for spec in layers:
        tokens = min(depth, spec.window or depth)
        total += tokens * token_bytes(spec, kv_type) + 2 * 4 * spec.state_values
        if 0 < spec.chosen < depth:
            first = CacheSpec(spec.buffers[:1])
            total -= (depth - spec.chosen) * token_bytes(first, kv_type)
    return int(total)


def token_bytes(spec: CacheSpec, kv_type: str) -> float:
    """Return the bytes one layer caches per token, including its share of scales."""
    return sum(heads * dims * _value_bytes(dims, kv_type) for heads, dims in spec.buffers)


def _value_bytes(dims: int, kv_type: str) -> float:
    if kv_type == "q8":
        return 1 + 2 / math.gcd(dims, Q8_GROUP)
    return {"f16": 2.0, "f32": 4.0}[kv_type]
