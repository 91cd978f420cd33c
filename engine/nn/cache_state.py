"""A cache as arrays that can be stored, and back: what makes a conversation go on another day.

The arrays are those of the layers, in their order and storage types. What comes back is not
trusted: its shapes are held to those that this model makes. This module knows no files.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.errors import CacheStateError
from engine.nn.cache import FloatBuffer, Q8Buffer, StateCache, TokenCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.model import Model
    from engine.nn.cache import Cache
    from engine.nn.cache_spec import CacheSpec

    Array = NDArray[Any]


@dataclass(frozen=True)
class Kept:
    """What a cache held: its tokens, whole numbers for each layer, and all layers' arrays."""

    tokens: list[int]
    marks: list[list[int]]
    arrays: list[Array]


def form(model: Model, kv_type: str) -> str:
    """Name the form of a model's caches: what was kept in another one does not fit them."""
    fused = not isinstance(model.new_cache(1, kv_type).layers, list)
    return f"{'fused' if fused else 'plain'} {kv_type}"


def keep(model: Model, cache: Cache) -> Kept:
    """Take what a cache holds. Views where they can be: use them before the cache goes on."""
    import numpy as np

    mx.synchronize()
    length = cache.length
    if not isinstance(cache.layers, list):
        bases, states = cache.layers.bases, cache.layers.marks
        marks, arrays = [[base] for base in bases], _views(model, cache, bases)
        if len(states) > 1:
            states = [states[0], *(at if at <= length else -1 for at in states[1:])]
            marks.append([at + 1 for at in states])  # none is 0
            arrays += _states(cache, states)
        return Kept(list(cache.tokens), marks, arrays)
    marks, arrays = [], []
    for layer in cache.layers:
        numbers, held = _held(layer, length)
        marks.append(numbers)
        arrays += [np.asarray(array) for array in held]
    return Kept(list(cache.tokens), marks, arrays)


def restore(model: Model, kept: Kept, cache: Cache) -> None:
    """Fill an empty cache. Raises CacheStateError, leaving it empty, for another model's state.

    ContextOverflow where it does not fit in.
    """
    tokens, length = kept.tokens, len(kept.tokens)
    cache.require(length)
    if tokens and not 0 <= min(tokens) <= max(tokens) < model.config.vocab:
        raise CacheStateError("it holds tokens outside the vocabulary")
    if isinstance(cache.layers, list):
        _restore_layers(model, kept, cache, length)
    else:
        bases, states = _bases(model, kept, cache), _states_seen(kept, cache)
        views = _views(model, cache, bases, length) + _states(cache, states)
        _require(kept.arrays, [(view.shape, str(view.dtype)) for view in views])
        for view, array in zip(views, kept.arrays, strict=True):
            view[:] = array
        cache.layers.bases, cache.layers.marks = bases, states
    cache.tokens[:] = tokens


def _bases(model: Model, kept: Kept, cache: Cache) -> list[int]:
    """Read the tokens that fused layers begin with. Raises CacheStateError for what cannot be."""
    slots, length = cache.layers.slots, len(kept.tokens)
    marks = kept.marks[: len(slots)]
    more = len(cache.layers.marks) > 1  # of states
    if len(kept.marks) != len(slots) + more or any(len(mark) != 1 for mark in marks):
        raise CacheStateError("it is of another number of layers")
    bases = [mark[0] for mark in marks]
    specs = _attention_specs(model)
    for number, (base, room) in enumerate(zip(bases, slots, strict=True)):
        moves = specs[number].window > 0
        if not 0 <= base <= (length if moves else 0) or length - base > room:
            raise CacheStateError("a layer begins where none can")
    return bases


def _attention_specs(model: Model) -> list[CacheSpec]:
    """List the cache specs of layers that keep a row per token."""
    return [spec for spec in model.config.cache_specs if spec.buffers]


def _states_seen(kept: Kept, cache: Cache) -> list[int]:
    """Read what fused states have seen. Raises CacheStateError for what cannot be."""
    places = len(cache.layers.marks)
    if places == 1:
        return [-1]
    marks = [at - 1 for at in kept.marks[-1]]
    if len(marks) != places or not all(-1 <= at <= len(kept.tokens) for at in marks):
        raise CacheStateError("its states are of tokens that it has not")
    held = [at for at in marks[1:] if at >= 0]
    if len(kept.tokens) not in held or len(set(held)) != len(held):
        raise CacheStateError("it has no state of its last token")
    return marks


def _states(cache: Cache, marks: list[int]) -> list[Array]:
    """View the fused states that are in use, float32."""
    parts = [view.view("f4") for view in cache.layers.states()]
    each = len(parts) // max(len(marks) - 1, 1)
    return [
        part
        for place, at in enumerate(marks[1:])
        if at >= 0
        for part in parts[place * each : (place + 1) * each]
    ]


def _views(model: Model, cache: Cache, bases: list[int], length: int | None = None) -> list[Array]:
    """View what fused layers hold of `length` tokens: (K, T, d) in the types of the memory.

    bases: the token that each begins with. length: that of the cache unless given.
    """
    length = cache.length if length is None else length
    parts, views, specs = iter(cache.layers.memory()), [], _attention_specs(model)
    for number, (base, slots) in enumerate(zip(bases, cache.layers.slots, strict=True)):
        for heads, dims in specs[number].buffers:
            values = next(parts)
            width = values.nbytes // (heads * slots * dims)
            whole = [values.view({4: "f4", 2: "f2", 1: "i1"}[width]).reshape(heads, slots, dims)]
            if width == 1:
                whole.append(next(parts).view("f2").reshape(heads, slots, -1))
            views += [view[:, : length - base] for view in whole]
    return views


def _held(layer: object, length: int) -> tuple[list[int], list[mx.array]]:
    """Take what one layer's cache holds of the first `length` tokens."""
    if isinstance(layer, StateCache):
        states = {at: state for at, state in layer.states.items() if at <= length}
        return [layer.mark, *states], [array for state in states.values() for array in state]
    assert isinstance(layer, TokenCache)
    rows = length - layer.base
    return [layer.base], [array[:, :, :rows] for array in _stored(layer)]


def _stored(layer: TokenCache) -> list[mx.array]:
    found = []
    for buffer in layer.buffers:
        if isinstance(buffer, Q8Buffer):
            found += [buffer.numbers, buffer.scales]
        else:
            assert isinstance(buffer, FloatBuffer)
            found.append(buffer.array)
    return found


def _restore_layers(model: Model, kept: Kept, cache: Cache, length: int) -> None:
    """Check everything against what this model makes of a token, and only then fill the layers."""
    if len(kept.marks) != len(cache.layers):
        raise CacheStateError("it is of another number of layers")
    probe = model.new_cache(1, "f32")
    if any(isinstance(layer, StateCache) for layer in cache.layers):
        model.step([0], probe)
    else:
        probe.layers = cache.layers
    wanted: list[tuple[tuple[int, ...], str]] = []
    for layer, like, marks in zip(cache.layers, probe.layers, kept.marks, strict=True):
        wanted += _shapes(layer, like, marks, length)
    _require(kept.arrays, wanted)
    rest = iter(kept.arrays)
    for layer, like, marks in zip(cache.layers, probe.layers, kept.marks, strict=True):
        arrays = [_copied(next(rest)) for _ in _shapes(layer, like, marks, length)]
        if isinstance(layer, StateCache):
            each = len(like.states[1])
            cut = range(0, len(arrays), each)
            layer.mark = marks[0]
            layer.states = dict(
                zip(marks[1:], (tuple(arrays[i : i + each]) for i in cut), strict=True)
            )
        else:
            _fill(layer, marks[0], arrays)


def _copied(array: Array) -> mx.array:
    """Copy an array, which may lie at any byte of a file, for MLX."""
    import numpy as np

    return mx.array(np.require(array, requirements=["ALIGNED"]))


def _shapes(
    layer: object, like: object, marks: list[int], length: int
) -> list[tuple[tuple[int, ...], str]]:
    """Say which arrays a layer has for these numbers; CacheStateError where they make no sense."""
    if isinstance(layer, StateCache):
        assert isinstance(like, StateCache)
        if len(marks) < 2 or not all(0 < at <= length for at in marks[1:]) or len(marks) > 9:
            raise CacheStateError("its states are of tokens that it has not")
        return [(array.shape, _name(array)) for _ in marks[1:] for array in like.states[1]]
    assert isinstance(layer, TokenCache)
    base = marks[0] if len(marks) == 1 else -1
    if base and not (layer.window and 0 < base <= length - layer.window + 1):
        raise CacheStateError("it begins with a token that it has not")
    rows = length - base
    return [((*array.shape[:2], rows, array.shape[3]), _name(array)) for array in _stored(layer)]


def _fill(layer: TokenCache, base: int, arrays: list[mx.array]) -> None:
    layer.base = base
    rest = iter(arrays)
    for buffer in layer.buffers:
        if isinstance(buffer, Q8Buffer):
            buffer.numbers, buffer.scales = next(rest), next(rest)
        else:
            assert isinstance(buffer, FloatBuffer)
            buffer.array = next(rest)


def _name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _require(arrays: Sequence[Array], wanted: Sequence[tuple[tuple[int, ...], str]]) -> None:
    found = [(tuple(array.shape), str(array.dtype)) for array in arrays]
    if found != [(tuple(shape), name) for shape, name in wanted]:
        raise CacheStateError("its arrays are not those of this model")
