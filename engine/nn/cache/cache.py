"""The cache for one sequence: each layer stores keys and values, or a recurrent state.

A full-attention layer can be rewound to any token. A windowed layer can be rewound only while its
buffers still hold the whole window at that token. A recurrent layer can be rewound only to a saved
snapshot.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx

from engine.errors import ContextOverflow
from engine.kernels.base import Rows
from engine.nn.cache.spec import Q8_GROUP, STEP, WINDOW_SLACK, CacheSpec

READ, WHOLE, DECODED = range(3)  # in a partial block, in a whole block, or one by one
REWIND = 16  # save a snapshot this many tokens before a prompt's end; templates append fewer


class Buffer:
    """A float16 or float32 tensor (1, K, T, d) that grows along the token axis, axis 2."""

    def __init__(self, heads: int, dims: int, dtype: mx.Dtype) -> None:
        self.arrays = [mx.zeros((1, heads, 0, dims), dtype=dtype)]

    def write(self, start: int, values: mx.array) -> None:
        """Store values (1, K, n, d) at token positions start..start+n."""
        self._store(start, values)

    def read(self, length: int) -> mx.array:
        """Return the first `length` tokens: (1, K, length, d)."""
        return self.arrays[0][:, :, :length]

    def rows(self, length: int) -> Rows:
        """Return the first `length` tokens of a single-head buffer in its storage type."""
        return Rows(*(array[0, 0, :length] for array in self.arrays))

    def drop(self, count: int) -> None:
        """Remove the first `count` tokens, so that the next token becomes the first."""
        self.arrays = [array[:, :, count:] for array in self.arrays]

    def _store(self, start: int, *parts: mx.array) -> None:
        end = start + parts[0].shape[2]
        self.arrays = [_with_room(array, end) for array in self.arrays]
        for array, part in zip(self.arrays, parts, strict=True):
            array[:, :, start:end] = part.astype(array.dtype)


class Q8Buffer(Buffer):
    """An int8 buffer with one float16 scale per group of values in a head.

    A group has gcd(d, 32) values.
    """

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
    """Tensors with one row per token, such as keys and values.

    window: how many of the most recent tokens to keep, or 0 to keep all. stride: how many tokens
    share a row. A row is written once its last token is there, and positions count rows.
    """

    def __init__(
        self, buffers: list[Buffer], context: int, window: int = 0, stride: int = 1
    ) -> None:
        self.buffers, self.context, self.window, self.stride = buffers, context, window, stride
        self.base = 0  # position of the first token in the buffers

    def extend(
        self, start: int, parts: Sequence[mx.array], first: int = 0
    ) -> tuple[list[mx.array], int]:
        """Append n tokens at position `start`: one part (1, K, n, d) per buffer.

        first: the earliest position that a new token attends to. Returns the tokens from `first`
        on, (1, K, start+n - first, d) per buffer, and `first`.
        """
        added = parts[0].shape[2]
        if start == 0:
            self.base = 0
        if self.window and start + added - self.base > self.window + WINDOW_SLACK:
            unseen = min(first, start) - self.base
            for buffer in self.buffers:
                buffer.drop(unseen)
            self.base += unseen
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer.write(start - self.base, part)
        return self.read(first, start + added), first

    def read(self, first: int, end: int) -> list[mx.array]:
        """Return the tokens at positions first..end: (1, K, end - first, d) per buffer."""
        since = first - self.base
        return [buffer.read(end - self.base)[:, :, since:] for buffer in self.buffers]

    def rewindable_length(self, length: int) -> int:
        """Return the greatest length, at most `length`, that this cache can be rewound to."""
        sees_all = self.base == 0 or self.base <= length - self.window + 1
        return length if sees_all else 0


class StateCache:
    """A recurrent state, which can be rewound only to a saved snapshot.

    states: snapshots, keyed by the number of tokens processed: the newest, the previous one
    (because generation runs one token ahead), and one at `mark`, shortly before the end of the most
    recent prompt. A conversation continues from `mark` if its answer was dropped or stored without
    its thinking.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.states: dict[int, tuple[mx.array, ...]] = {}
        self.mark = 0

    def state(self, start: int) -> tuple[mx.array, ...] | None:
        """Return the state after `start` tokens, or None if `start` is 0."""
        return self.states[start] if start else None

    def stops(self, start: int, count: int) -> list[int]:
        """Return where to save snapshots when processing `count` tokens from `start`.

        Deletes snapshots after `start`, because the cache has been rewound to `start`.
        """
        self.states = {at: old for at, old in self.states.items() if at <= start}
        end = start + count
        if count < REWIND:
            return [end]
        self.mark = end - REWIND
        return [end] if self.mark == start else [self.mark, end]

    def save(self, end: int, state: tuple[mx.array, ...]) -> None:
        """Save the state after `end` tokens and delete outdated snapshots."""
        recent = (self.mark, end - 1)
        self.states = {at: old for at, old in self.states.items() if at in recent}
        self.states[end] = state

    def rewindable_length(self, length: int) -> int:
        return max((at for at in self.states if at <= length), default=0)


class Cache:
    """The cache for one sequence of at most `context` tokens. tokens: the ids processed so far.

    rewindable_length: a function that returns the greatest length, at most its argument, that
    `layers` can be rewound to.
    block: the tokens in a block that is computed differently if a prompt fills it; 0 for none.
    kinds: how each token was computed: READ, WHOLE or DECODED.
    """

    def __init__(
        self,
        layers: Any,
        context: int,
        rewindable_length: Callable[[int], int],
        block: int = 0,
    ) -> None:
        self.layers, self.context, self.block = layers, context, block
        self._rewindable_length = rewindable_length
        self.tokens: list[int] = []
        self.kinds = bytearray()

    @property
    def length(self) -> int:
        return len(self.tokens)

    def require(self, count: int) -> None:
        """Raise ContextOverflow unless `count` more tokens fit."""
        if self.length + count > self.context:
            raise ContextOverflow(self.length + count, self.context)

    def extend(self, tokens: list[int], kind: int) -> None:
        """Record tokens that were processed at the end of the sequence."""
        self.tokens.extend(tokens)
        self.kinds[self.length - len(tokens) :] = bytes([kind]) * len(tokens)

    def reuse(self, prompt: list[int]) -> None:
        """Rewind to the longest start of `prompt` whose results do not depend on the rest.

        The prompt then gives the same logits as with an empty cache. Its last token is always
        computed again. Decoded tokens stay as they are.
        """
        self.trim(min(self.shared_prefix(prompt), len(prompt) - 1))
        while (length := self.fixed_length(self.length, len(prompt))) < self.length:
            self.trim(length)

    def fixed_start(self, shared: int, total: int) -> int:
        """Return how many of the first `shared` tokens other prompts compute in the same way.

        total: tokens in the whole prompt. In a block that the prompt fills, each token's result
        depends on the whole block.
        """
        start = shared - shared % self.block if self.block else shared
        return start if self.block and start + self.block <= total else shared

    def fixed_length(self, length: int, total: int) -> int:
        """Return the end of the blocks that a prompt of `total` tokens computes in the same way."""
        for start in range(0, length, self.block) if self.block else ():
            held = self.kinds[start : min(start + self.block, length)]
            filled = start + self.block <= total
            same = WHOLE in held and len(held) == self.block if filled else WHOLE not in held
            if DECODED not in held and not same:
                return start
        return length

    def trim(self, length: int) -> None:
        """Rewind to the first `length` tokens, or to fewer if a layer cannot be rewound that far.

        Read `length` afterwards for the actual length. New tokens overwrite the rows after it.
        """
        length = self._rewindable_length(min(length, self.length))
        del self.tokens[length:], self.kinds[length:]

    def rewindable_to(self, length: int) -> int:
        """Return the greatest length, at most `length`, that every layer can be rewound to."""
        return self._rewindable_length(length)

    def shared_prefix(self, tokens: list[int]) -> int:
        """Return the number of leading tokens shared with `tokens`."""
        pairs = zip(self.tokens, tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(self.length, len(tokens)))


class PartedCache:
    """The caches of a layer that has several."""

    def __init__(self, parts: Sequence[TokenCache | StateCache]) -> None:
        self.parts, self.context = parts, parts[0].context

    def rewindable_length(self, length: int) -> int:
        return rewindable_length(self.parts, length)


LayerCache = TokenCache | StateCache | PartedCache


def parts_of(layers: Iterable[LayerCache]) -> list[TokenCache | StateCache]:
    """Return the caches of all layers, part by part."""
    pairs = (layer.parts if isinstance(layer, PartedCache) else (layer,) for layer in layers)
    return [part for parts in pairs for part in parts]


def new_layer_cache(spec: CacheSpec, context: int, kv_type: str) -> LayerCache:
    """Create an empty cache for one layer."""
    if spec.parts:
        return PartedCache(parts_of(new_layer_cache(part, context, kv_type) for part in spec.parts))
    if spec.state_values:
        return StateCache(context)
    dtype = mx.float16 if kv_type == "f16" else mx.float32
    shapes = () if spec.borrowed else spec.buffers
    buffers = [Q8Buffer(*shape) if kv_type == "q8" else Buffer(*shape, dtype) for shape in shapes]
    return TokenCache(buffers, context, spec.window, spec.stride)


def rewindable_length(caches: Sequence[LayerCache], length: int) -> int:
    """Return the greatest length, at most `length`, that all these caches can be rewound to."""
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
