"""The cache of a sequence, layer by layer: keys and values of its tokens, or a recurrent state.

Keys and values of all tokens can be rewound to any token, a window only as far as it still holds
every token needed there, and a recurrent state only to a saved snapshot.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from engine.errors import ContextOverflow
from engine.kernels.base import Rows
from engine.nn.cache.spec import Q8_GROUP, STEP, WINDOW_SLACK, CacheSpec

REWIND = 16  # tokens before a prompt's end; a template adds fewer before an answer


class Buffer:
    """A growing tensor (1, K, T, d) in float16 or float32, stored as arrays with token axis 2."""

    def __init__(self, heads: int, dims: int, dtype: mx.Dtype) -> None:
        self.arrays = [mx.zeros((1, heads, 0, dims), dtype=dtype)]

    def write(self, start: int, values: mx.array) -> None:
        """Store values (1, K, n, d) at tokens start..start+n."""
        self._store(start, values)

    def read(self, length: int) -> mx.array:
        """Return the first `length` tokens: (1, K, length, d)."""
        return self.arrays[0][:, :, :length]

    def rows(self, length: int) -> Rows:
        """Return the first `length` tokens of the only head, as stored."""
        return Rows(*(array[0, 0, :length] for array in self.arrays))

    def drop(self, count: int) -> None:
        """Remove the first `count` tokens and move the others up."""
        self.arrays = [array[:, :, count:] for array in self.arrays]

    def _store(self, start: int, *parts: mx.array) -> None:
        end = start + parts[0].shape[2]
        self.arrays = [_with_room(array, end) for array in self.arrays]
        for array, part in zip(self.arrays, parts, strict=True):
            array[:, :, start:end] = part.astype(array.dtype)


class Q8Buffer(Buffer):
    """A growing tensor as int8, with a float16 scale per 32 values (or a divisor) of a head."""

    def __init__(self, heads: int, dims: int) -> None:
        self.group = math.gcd(dims, Q8_GROUP)
        numbers = mx.zeros((1, heads, 0, dims), dtype=mx.int8)
        self.arrays = [numbers, mx.zeros((1, heads, 0, dims // self.group), dtype=mx.float16)]

    def write(self, start: int, values: mx.array) -> None:
        grouped = values.astype(mx.float32).reshape(*values.shape[:3], -1, self.group)
        scales = mx.abs(grouped).max(axis=-1) / 127
        inverse = mx.where(scales > 0, 1 / scales, 0)
        numbers = mx.round(grouped * inverse[..., None]).astype(mx.int8)
        self._store(start, numbers.reshape(values.shape), scales)

    def read(self, length: int) -> mx.array:
        return Rows(*(array[:, :, :length] for array in self.arrays)).floats()


class TokenCache:
    """Tensors with a row per token, such as keys and values.

    window: how many of the last tokens to keep, 0 for all.
    """

    def __init__(self, buffers: list[Buffer], context: int, window: int = 0) -> None:
        self.buffers, self.context, self.window = buffers, context, window
        self.base = 0  # the first token in the buffers

    def extend(
        self, start: int, parts: Sequence[mx.array], first: int = 0
    ) -> tuple[list[mx.array], int]:
        """Append tokens, one part (1, K, n, d) per buffer.

        first: the first token that any new token attends to. Returns (1, K, start+n - first, d) per
        buffer, and `first`, the token they begin with.
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

    def rewindable_length(self, length: int) -> int:
        """Return the most tokens, up to `length`, this cache can be rewound to; 0 if none."""
        sees_all = self.base == 0 or self.base <= length - self.window + 1
        return length if sees_all else 0


class StateCache:
    """Recurrent state; can only be rewound to a saved snapshot.

    states: the newest state, the one before it (generation runs one token ahead), and one at
    `mark`, shortly before the end of the last prompt, by number of tokens seen. A conversation
    continues from `mark` if its answer was dropped or stored without its thinking.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.states: dict[int, tuple[mx.array, ...]] = {}
        self.mark = 0

    def state(self, start: int) -> tuple[mx.array, ...] | None:
        """Return the state after `start` tokens, None for 0."""
        return self.states[start] if start else None

    def stops(self, start: int, count: int) -> list[int]:
        """Return where to save snapshots while running `count` tokens from `start`.

        Deletes snapshots after `start`, which belong to other tokens.
        """
        self.states = {at: old for at, old in self.states.items() if at <= start}
        end = start + count
        if count < REWIND:
            return [end]
        self.mark = end - REWIND
        return [end] if self.mark == start else [self.mark, end]

    def save(self, end: int, state: tuple[mx.array, ...]) -> None:
        """Save the state after `end` tokens, and delete the snapshots it replaces."""
        recent = (self.mark, end - 1)
        self.states = {at: old for at, old in self.states.items() if at in recent}
        self.states[end] = state

    def rewindable_length(self, length: int) -> int:
        return max((at for at in self.states if at <= length), default=0)


class Cache:
    """The cache of one sequence of at most `context` tokens. tokens: the ids fed so far.

    rewindable_length: returns the most tokens, up to a number, that `layers` can be rewound to.
    """

    def __init__(self, layers: Any, context: int, rewindable_length: Callable[[int], int]) -> None:
        self.layers, self.context = layers, context
        self._rewindable_length = rewindable_length
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def require(self, count: int) -> None:
        """Raise ContextOverflow unless `count` more tokens fit."""
        if self.length + count > self.context:
            raise ContextOverflow(self.length + count, self.context)

    def trim(self, length: int) -> None:
        """Rewind to the first `length` tokens, or fewer if a layer cannot be rewound to there.

        Read `length` afterwards. Later rows are overwritten by the next tokens.
        """
        del self.tokens[self._rewindable_length(min(length, self.length)) :]

    def shared_prefix(self, tokens: list[int]) -> int:
        """Return the number of leading tokens shared with `tokens`."""
        pairs = zip(self.tokens, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(self.length, len(tokens)))


LayerCache = TokenCache | StateCache


def new_layer_cache(spec: CacheSpec, context: int, kv_type: str) -> LayerCache:
    """Create the empty cache of one layer."""
    if spec.state_values:
        return StateCache(context)
    dtype = mx.float16 if kv_type == "f16" else mx.float32
    buffers = [
        Q8Buffer(*shape) if kv_type == "q8" else Buffer(*shape, dtype) for shape in spec.buffers
    ]
    return TokenCache(buffers, context, spec.window)


def rewindable_length(caches: Sequence[LayerCache], length: int) -> int:
    """Return the most tokens, up to `length`, that all of these layers can be rewound to."""
    while (shortest := min(cache.rewindable_length(length) for cache in caches)) < length:
        length = shortest
    return length


def _with_room(array: mx.array, tokens: int) -> mx.array:
    missing = tokens - array.shape[2]
    if missing <= 0:
        return array
    steps = math.ceil(missing / STEP)
    room = mx.zeros((*array.shape[:2], steps * STEP, array.shape[3]), dtype=array.dtype)
    return mx.concatenate([array, room], axis=2)
