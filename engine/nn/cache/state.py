"""Convert a cache to arrays that can be stored, so that a later session can continue it.

The arrays are the layers' buffers, in layer order and in their storage types. Loading checks that
their shapes and types match the model.

Axes: K kv heads, T tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.errors import CacheStateError
from engine.nn.cache.cache import DECODED, StateCache, TokenCache, parts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.model import Model
    from engine.nn.cache.cache import Cache
    from engine.nn.cache.spec import CacheSpec

    Array = NDArray[Any]


@dataclass(frozen=True)
class CacheState:
    """The contents of a cache: its tokens, each layer's positions, and all arrays.

    positions: one list per layer. An attention layer stores the position of its first token. A
    recurrent layer stores `mark`, then the number of tokens before each snapshot. Fused layers
    store one list per attention layer, then one list for all recurrent layers. Each number in that
    list is 1 higher, so that 0 means no snapshot. One more list has `Cache.kinds` as runs: a kind,
    its number of tokens, the next kind, and so on.
    """

    tokens: list[int]
    positions: list[list[int]]
    arrays: list[Array]


def cache_format(model: Model, kv_type: str) -> str:
    """Return the name of a model's cache format. A state loads only into the same format."""
    fused = not isinstance(model.new_cache(1, kv_type).layers, list)
    return f"{'fused' if fused else 'plain'} {kv_type}"


def dump(model: Model, cache: Cache) -> CacheState:
    """Return a cache's state. Its arrays may be views: use them before the cache changes."""
    import numpy as np

    mx.synchronize()
    length = cache.length
    kinds = _runs(cache.kinds.ljust(length, bytes([DECODED])))
    if not isinstance(cache.layers, list):
        bases, marks = cache.layers.bases, cache.layers.marks
        positions, arrays = [[base] for base in bases], _views(model, cache, bases, length)
        if len(marks) > 1:
            marks = [marks[0], *(at if at <= length else -1 for at in marks[1:])]
            positions.append([at + 1 for at in marks])  # 0: no snapshot
            arrays += _states(cache, marks)
        return CacheState(list(cache.tokens), [*positions, kinds], arrays)
    layers = [_dump_layer(layer, length) for layer in parts_of(cache.layers)]
    arrays = [np.asarray(array) for _, held in layers for array in held]
    positions = [positions for positions, _ in layers]
    return CacheState(list(cache.tokens), [*positions, kinds], arrays)


def load(model: Model, state: CacheState, cache: Cache) -> None:
    """Load a state into an empty cache.

    Raises CacheStateError if the state does not match the model, or ContextOverflow if the cache is
    too small. Either error leaves the cache empty.
    """
    tokens, length = state.tokens, len(state.tokens)
    cache.require(length)
    if tokens and not 0 <= min(tokens) <= max(tokens) < model.config.vocab:
        raise CacheStateError("some token ids are outside the vocabulary")
    if not state.positions:
        raise CacheStateError("the number of layers does not match this model")
    kinds = _read_kinds(state.positions[-1], length)
    state = replace(state, positions=state.positions[:-1])
    if isinstance(cache.layers, list):
        _load_layers(model, state, cache)
    else:
        bases, marks = _read_bases(model, state, cache), _read_marks(state, cache)
        views = _views(model, cache, bases, length) + _states(cache, marks)
        _require(state.arrays, [(view.shape, str(view.dtype)) for view in views])
        for view, array in zip(views, state.arrays, strict=True):
            view[:] = array
        cache.layers.bases, cache.layers.marks = bases, marks
    cache.tokens[:], cache.kinds[:] = tokens, kinds


def _runs(kinds: bytearray) -> list[int]:
    return [number for kind, run in groupby(kinds) for number in (kind, sum(1 for _ in run))]


def _read_kinds(runs: list[int], length: int) -> bytes:
    kinds, counts = runs[::2], runs[1::2]
    if len(kinds) != len(counts) or sum(counts) != length or not set(kinds) <= {*range(3)}:
        raise CacheStateError("the kinds of the tokens are invalid")
    return b"".join(bytes([kind]) * count for kind, count in zip(kinds, counts, strict=True))


def _read_bases(model: Model, state: CacheState, cache: Cache) -> list[int]:
    slots, length = cache.layers.slots, len(state.tokens)
    positions = state.positions[: len(slots)]
    recurrent = len(cache.layers.marks) > 1
    if len(state.positions) != len(slots) + recurrent or any(len(at) != 1 for at in positions):
        raise CacheStateError("the number of layers does not match this model")
    bases = [at[0] for at in positions]
    for spec, base, room in zip(_attention_specs(model), bases, slots, strict=True):
        if not 0 <= base <= (length if spec.window else 0) or length - base > room:
            raise CacheStateError("a layer has an invalid first position")
    return bases


def _attention_specs(model: Model) -> list[CacheSpec]:
    return [spec for spec in model.config.cache_specs if spec.buffers and not spec.borrowed]


def _read_marks(state: CacheState, cache: Cache) -> list[int]:
    places = len(cache.layers.marks)
    if places == 1:
        return [-1]
    marks = [at - 1 for at in state.positions[-1]]
    if len(marks) != places or not all(-1 <= at <= len(state.tokens) for at in marks):
        raise CacheStateError("the snapshot positions are invalid")
    held = [at for at in marks[1:] if at >= 0]
    if len(state.tokens) not in held or len(set(held)) != len(held):
        raise CacheStateError("the snapshot for the last token is missing")
    return marks


def state_views(cache: Cache, snapshot: int) -> list[Array]:
    """Return float32 views of one of the snapshots of fused recurrent layers."""
    parts = [view.view("f4") for view in cache.layers.states()]
    each = len(parts) // max(len(cache.layers.marks) - 1, 1)
    return parts[snapshot * each : (snapshot + 1) * each]


def _states(cache: Cache, marks: list[int]) -> list[Array]:
    """Return float32 views of the fused snapshots in use."""
    parts = [view.view("f4") for view in cache.layers.states()]
    each = len(parts) // max(len(marks) - 1, 1)
    return [part for i, part in enumerate(parts) if marks[1 + i // each] >= 0]


def _views(model: Model, cache: Cache, bases: list[int], length: int) -> list[Array]:
    """Return (K, T, d) views of fused layers' first `length` tokens, in their storage types."""
    layers = zip(bases, buffer_views(model, cache), strict=True)
    return [view[:, : length - base] for base, (*_, views) in layers for view in views]


def buffer_views(model: Model, cache: Cache) -> Iterator[tuple[int, int, list[Array]]]:
    """Yield (window, position of the first row, (K, slots, d) views) of each fused layer."""
    parts, layers = iter(cache.layers.buffers()), cache.layers
    for spec, base, slots in zip(_attention_specs(model), layers.bases, layers.slots, strict=True):
        views: list[Array] = []
        for heads, dims in spec.buffers:
            values = next(parts)
            width = values.nbytes // (heads * slots * dims)
            views.append(values.view({4: "f4", 2: "f2", 1: "i1"}[width]))
            views[-1] = views[-1].reshape(heads, slots, dims)
            if width == 1:
                views.append(next(parts).view("f2").reshape(heads, slots, -1))
        yield spec.window, base, views


def _dump_layer(layer: object, length: int) -> tuple[list[int], list[mx.array]]:
    if isinstance(layer, StateCache):
        states = {at: state for at, state in layer.states.items() if at <= length}
        return [layer.mark, *states], [array for state in states.values() for array in state]
    assert isinstance(layer, TokenCache)
    rows = length // layer.stride - layer.base
    return [layer.base], [array[:, :, :rows] for array in _stored(layer)]


def _stored(layer: TokenCache) -> list[mx.array]:
    return [array for buffer in layer.buffers for array in buffer.arrays]


def _load_layers(model: Model, state: CacheState, cache: Cache) -> None:
    import numpy as np

    parts = parts_of(cache.layers)
    if len(state.positions) != len(parts):
        raise CacheStateError("the number of layers does not match this model")
    probe = model.new_cache(1, "f32")
    if any(isinstance(part, StateCache) for part in parts):
        model.step([0], probe)
    else:
        probe.layers = cache.layers
    layers = list(zip(parts, parts_of(probe.layers), state.positions, strict=True))
    shapes = [_shapes(*layer, len(state.tokens)) for layer in layers]
    _require(state.arrays, [shape for of_layer in shapes for shape in of_layer])
    # A file may store arrays at unaligned offsets.
    arrays = (mx.array(np.require(array, requirements=["ALIGNED"])) for array in state.arrays)
    for layer, like, positions in layers:
        if isinstance(layer, StateCache):
            assert isinstance(like, StateCache)
            layer.mark, *seen = positions
            layer.states = {at: tuple(next(arrays) for _ in like.states[1]) for at in seen}
        else:
            layer.base = positions[0]
            for buffer in layer.buffers:
                buffer.arrays = [next(arrays) for _ in buffer.arrays]


def _shapes(
    layer: object, like: object, positions: list[int], length: int
) -> list[tuple[tuple[int, ...], str]]:
    if isinstance(layer, StateCache):
        assert isinstance(like, StateCache)
        seen = positions[1:]
        if not 1 <= len(seen) <= 8 or not all(0 < at <= length for at in seen):
            raise CacheStateError("the snapshot positions are invalid")
        return [(array.shape, _name(array)) for _ in seen for array in like.states[1]]
    assert isinstance(layer, TokenCache)
    base = positions[0] if len(positions) == 1 else -1
    if base and not (layer.window and 0 < base <= length - layer.window + 1):
        raise CacheStateError("a layer has an invalid first position")
    rows = length // layer.stride - base
    return [((*array.shape[:2], rows, array.shape[3]), _name(array)) for array in _stored(layer)]


def _name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _require(arrays: Sequence[Array], expected: Sequence[tuple[tuple[int, ...], str]]) -> None:
    found = [(tuple(array.shape), str(array.dtype)) for array in arrays]
    if found != [(tuple(shape), name) for shape, name in expected]:
        raise CacheStateError("the arrays do not match this model")
