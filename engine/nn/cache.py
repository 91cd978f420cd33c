"""What a sequence remembers, layer by layer: keys and values of its tokens, or a recurrent state.

A cache also keeps the ids it was fed, so that the next turn of a conversation can find the prefix
that it shares with this one. The whole context is promised at the start and allocated in steps.
Keys and values of all tokens can go back to any of them; a window, only as far as it still holds
what that token saw; a recurrent state, only to where it was kept.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from engine.errors import ContextOverflow
from engine.kernels.base import Rows
from engine.nn.cache_spec import Q8_GROUP, STEP, WINDOW_SLACK, CacheSpec

REWIND = 16  # tokens before a prompt's end: more than a template puts before an answer


class Buffer(Protocol):
    """One growing tensor (1, K, T, d) in some storage type."""

    def write(self, start: int, values: mx.array) -> None:
        """Store values (1, K, n, d) at tokens start..start+n."""

    def read(self, length: int) -> mx.array:
        """Give back the first `length` tokens: (1, K, length, d)."""

    def rows(self, length: int) -> Rows:
        """Give back the first `length` tokens of the only head as they are stored."""

    def drop(self, count: int) -> None:
        """Forget the first `count` tokens; those behind them move up."""


class FloatBuffer:
    """Keys or values in float16 or float32."""

    def __init__(self, heads: int, dims: int, dtype: mx.Dtype) -> None:
        self.array = mx.zeros((1, heads, 0, dims), dtype=dtype)

    def write(self, start: int, values: mx.array) -> None:
        self.array = _with_room(self.array, start + values.shape[2])
        self.array[:, :, start : start + values.shape[2]] = values.astype(self.array.dtype)

    def read(self, length: int) -> mx.array:
        return self.array[:, :, :length]

    def rows(self, length: int) -> Rows:
        return Rows(self.array[0, 0, :length])

    def drop(self, count: int) -> None:
        self.array = self.array[:, :, count:]


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
        return Rows(self.numbers[:, :, :length], self.scales[:, :, :length]).floats()

    def rows(self, length: int) -> Rows:
        return Rows(self.numbers[0, 0, :length], self.scales[0, 0, :length])

    def drop(self, count: int) -> None:
        self.numbers, self.scales = self.numbers[:, :, count:], self.scales[:, :, count:]


class LayerCache(Protocol):
    """What one layer remembers; the layer itself writes and reads it."""

    context: int  # tokens of the sequence at most

    def reach(self, length: int) -> int:
        """Say how many tokens, `length` at most, it can go back to; 0 is starting anew."""


class TokenCache:
    """What an attention layer keeps for each token, such as keys and values.

    window: the last tokens that are to be kept, 0 for all of them.
    """

    def __init__(self, buffers: list[Buffer], context: int, window: int = 0) -> None:
        self.buffers, self.context, self.window = buffers, context, window
        self.base = 0  # the token that the buffers begin with

    def extend(
        self, start: int, parts: Sequence[mx.array], first: int = 0
    ) -> tuple[list[mx.array], int]:
        """Add the next tokens, one part (1, K, n, d) for each buffer.

        first: the first token that any of the new ones sees. Returns for each buffer
        (1, K, start+n - base, d), and base, the token it begins with: `first`.
        """
        added = parts[0].shape[2]
        if start == 0:
            self.base = 0
        if self.window and start + added - self.base > self.window + WINDOW_SLACK:
            unseen = min(first, start) - self.base
            for buffer in self.buffers:
                buffer.drop(unseen)
            self.base += unseen
        held = start - self.base
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer.write(held, part)
        since = first - self.base
        return [buffer.read(held + added)[:, :, since:] for buffer in self.buffers], first

    def reach(self, length: int) -> int:
        sees_all = self.base == 0 or self.base <= length - self.window + 1
        return length if sees_all else 0


class StateCache:
    """The state of a recurrent layer, which cannot go back but to where it was kept.

    Kept are the newest state, the one before it (generation runs one token ahead), and the one a
    little before the end of the last prompt: there a conversation goes on whose answer was dropped,
    or was stored without its thinking, and so its opening.

    states: the arrays, by the tokens that they have seen. mark: where that last one is.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.states: dict[int, tuple[mx.array, ...]] = {}
        self.mark = 0

    def state(self, start: int) -> tuple[mx.array, ...] | None:
        """Give back the arrays as they were after `start` tokens; None stands for nothing seen."""
        return self.states[start] if start else None

    def stops(self, start: int, count: int) -> list[int]:
        """Say after which tokens, of `count` that follow `start`, the state is to be kept.

        What was kept of other tokens behind `start` is forgotten.
        """
        self.states = {at: old for at, old in self.states.items() if at <= start}
        end = start + count
        if count < REWIND:
            return [end]
        self.mark = end - REWIND
        return [end] if self.mark == start else [self.mark, end]

    def keep(self, end: int, state: tuple[mx.array, ...]) -> None:
        """Store the arrays as they are after `end` tokens."""
        kept = (self.mark, end - 1)
        self.states = {at: old for at, old in self.states.items() if at in kept}
        self.states[end] = state

    def reach(self, length: int) -> int:
        return max((at for at in self.states if at <= length), default=0)


class Cache:
    """The memory of one sequence of at most `context` tokens.

    tokens: the ids that have been seen, in order. layers: what the model's layers made to remember
    them. reach: how many tokens, some number at most, those can go back to.
    """

    def __init__(self, layers: Any, context: int, reach: Callable[[int], int]) -> None:
        self.layers, self.context, self._reach = layers, context, reach
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
        """Forget all but the first `length` tokens, or fewer where a layer cannot go back to there.

        What is stored beyond is written over. `length` says afterwards what is left.
        """
        del self.tokens[self._reach(min(length, self.length)) :]

    def shared_prefix(self, tokens: list[int]) -> int:
        """Count the leading tokens that this sequence has in common with `tokens`."""
        pairs = zip(self.tokens, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(self.length, len(tokens)))


def new_layer_cache(spec: CacheSpec, context: int, kv_type: str) -> LayerCache:
    """Make the empty cache of one layer."""
    if spec.state_values:
        return StateCache(context)
    buffers = [_buffer(heads, dims, kv_type) for heads, dims in spec.buffers]
    return TokenCache(buffers, context, spec.window)


def common_reach(caches: Sequence[LayerCache], length: int) -> int:
    """Say how many tokens, `length` at most, all of these layers can go back to."""
    while (shortest := min(cache.reach(length) for cache in caches)) < length:
        length = shortest
    return length


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
