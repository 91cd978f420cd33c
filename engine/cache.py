"""What a sequence remembers: the keys and values of every token so far, layer by layer.

A cache also keeps the ids it was fed, so that the next turn of a conversation can find the prefix
that it shares with this one. The whole context is promised at the start and allocated in steps.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from engine.config import ModelConfig
from engine.errors import ContextOverflow

STEP = 256  # tokens by which the buffers grow
KV_TYPES = ("f16", "q8", "f32")
Q8_GROUP = 32


class Buffer(Protocol):
    """One growing tensor (1, K, T, d) in some storage type."""

    def write(self, start: int, values: mx.array) -> None:
        """Store values (1, K, n, d) at tokens start..start+n."""

    def read(self, length: int) -> mx.array:
        """Give back the first `length` tokens: (1, K, length, d)."""


class FloatBuffer:
    """Keys or values in float16 or float32."""

    def __init__(self, heads: int, dims: int, dtype: mx.Dtype) -> None:
        self.array = mx.zeros((1, heads, 0, dims), dtype=dtype)

    def write(self, start: int, values: mx.array) -> None:
        self.array = _with_room(self.array, start + values.shape[2])
        self.array[:, :, start : start + values.shape[2]] = values.astype(self.array.dtype)

    def read(self, length: int) -> mx.array:
        return self.array[:, :, :length]


class Q8Buffer:
    """Keys or values as 8-bit numbers, one float16 scale for each 32 (or a divisor) of a head."""

    def __init__(self, heads: int, dims: int) -> None:
        self.group = math.gcd(dims, Q8_GROUP)
        self.numbers = mx.zeros((1, heads, 0, dims), dtype=mx.int8)
        self.scales = mx.zeros((1, heads, 0, dims // self.group), dtype=mx.float16)

    def write(self, start: int, values: mx.array) -> None:
        end = start + values.shape[2]
        grouped = values.astype(mx.float32).reshape(*values.shape[:3], -1, self.group)
        scales = mx.abs(grouped).max(axis=-1) / 127
        inverse = mx.where(scales > 0, 1 / scales, 0)
        numbers = mx.round(grouped * inverse[..., None]).astype(mx.int8)
        self.numbers = _with_room(self.numbers, end)
        self.scales = _with_room(self.scales, end)
        self.numbers[:, :, start:end] = numbers.reshape(values.shape)
        self.scales[:, :, start:end] = scales.astype(mx.float16)

    def read(self, length: int) -> mx.array:
        numbers = self.numbers[:, :, :length].astype(mx.float32)
        grouped = numbers.reshape(*numbers.shape[:3], -1, self.group)
        return (grouped * self.scales[:, :, :length, :, None]).reshape(numbers.shape)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The keys and values of one attention layer."""

    keys: Buffer
    values: Buffer

    def extend(self, start: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add the next tokens, (1, K, n, d) each, and give back all: (1, K, start+n, d)."""
        self.keys.write(start, keys)
        self.values.write(start, values)
        length = start + keys.shape[2]
        return self.keys.read(length), self.values.read(length)


class Cache:
    """The memory of one sequence of at most `context` tokens.

    tokens: the ids whose keys and values are held, in order. layers: what the model's layers made
    to hold them.
    """

    def __init__(self, layers: Any, context: int) -> None:
        self.layers, self.context = layers, context
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        """Count the tokens held."""
        return len(self.tokens)

    def require(self, count: int) -> None:
        """Raise ContextOverflow unless `count` more tokens have room."""
        if self.length + count > self.context:
            raise ContextOverflow(self.length + count, self.context)

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens; what is stored beyond is written over."""
        del self.tokens[length:]

    def shared_prefix(self, tokens: list[int]) -> int:
        """Count the leading tokens that this sequence has in common with `tokens`."""
        pairs = zip(self.tokens, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(self.length, len(tokens)))


def new_layer_cache(heads: int, key_dim: int, value_dim: int, kv_type: str) -> LayerCache:
    """Make the empty cache of one layer."""
    return LayerCache(_buffer(heads, key_dim, kv_type), _buffer(heads, value_dim, kv_type))


def kv_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Say how many bytes a cache of `context` tokens takes when full."""
    tokens = math.ceil(context / STEP) * STEP
    return int(tokens * config.kv_values() * bytes_per_value(config, kv_type))


def bytes_per_value(config: ModelConfig, kv_type: str) -> float:
    """Say what one key or value costs in this storage type, its share of a scale included."""
    if kv_type == "q8":
        return 1 + 2 / math.gcd(config.key_dim, config.value_dim, Q8_GROUP)
    return {"f16": 2.0, "f32": 4.0}[kv_type]


def _buffer(heads: int, dims: int, kv_type: str) -> Buffer:
    if kv_type == "q8":
        return Q8Buffer(heads, dims)
    return FloatBuffer(heads, dims, mx.float16 if kv_type == "f16" else mx.float32)


def _with_room(array: mx.array, tokens: int) -> mx.array:
    """Grow the token axis, in steps, until it holds `tokens`."""
    missing = tokens - array.shape[2]
    if missing <= 0:
        return array
    steps = math.ceil(missing / STEP)
    room = mx.zeros((*array.shape[:2], steps * STEP, array.shape[3]), dtype=array.dtype)
    return mx.concatenate([array, room], axis=2)
