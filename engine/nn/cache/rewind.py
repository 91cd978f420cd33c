"""Save the parts of a cache that cannot be rewound, at one position of its sequence.

Full attention keeps every token, so it can be rewound to any of them. Recurrent states and the
rows of windowed layers are overwritten, so a `SavedPoint` holds a copy of them. With it, a
conversation continues from an earlier message although the model has read on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.nn.cache.cache import StateCache, TokenCache, parts_of
from engine.nn.cache.spec import flat
from engine.nn.cache.state import buffer_views, state_views

if TYPE_CHECKING:
    from engine.model import Model
    from engine.nn.cache.cache import Cache


@dataclass(frozen=True)
class SavedPoint:
    """What must be restored to rewind a cache to its first `length` tokens.

    firsts: the position of each windowed layer's first row, by layer. arrays: copies of windowed
    rows and recurrent states, in layer order.
    """

    length: int
    firsts: list[int]
    arrays: list[Any]

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def needs_points(model: Model) -> bool:
    """True if some layer of the model cannot be rewound to every token."""
    return any(spec.state_values or spec.window for spec in flat(model.config.cache_specs))


def last_mark(cache: Cache) -> int:
    """Return where the cache's recurrent states were saved before the end of the last prompt.

    0 if there is no such position.
    """
    if not isinstance(cache.layers, list):
        marks = cache.layers.marks
        return max(marks[0], 0) if marks[0] in marks[1:] else 0
    recurrent = [part for part in parts_of(cache.layers) if isinstance(part, StateCache)]
    marks = {part.mark for part in recurrent}
    held = [part.states for part in recurrent]
    mark = marks.pop() if len(marks) == 1 else 0
    return mark if all(mark in states for states in held) else 0


def save_point(model: Model, cache: Cache, length: int) -> SavedPoint | None:
    """Copy what rewinding to `length` needs. None if the cache no longer holds it."""
    if not 0 < length <= cache.length or cache.rewindable_to(length) != length:
        return None
    mx.synchronize()
    save = _save_plain if isinstance(cache.layers, list) else _save_fused
    return save(model, cache, length)


def restore_point(model: Model, cache: Cache, point: SavedPoint) -> None:
    """Rewind a cache that holds the point's sequence to the point."""
    mx.synchronize()
    if isinstance(cache.layers, list):
        _restore_plain(cache, point)
    else:
        _restore_fused(model, cache, point)
    del cache.tokens[point.length :], cache.kinds[point.length :]


def _first_row(base: int, window: int, length: int) -> int:
    return max(base, length - window)


def _save_plain(model: Model, cache: Cache, length: int) -> SavedPoint:
    firsts: list[int] = []
    arrays: list[mx.array] = []
    for layer in parts_of(cache.layers):
        if isinstance(layer, StateCache):
            arrays += map(mx.array, layer.states[length])
        elif isinstance(layer, TokenCache) and layer.window:
            firsts.append(_first_row(layer.base, layer.window, length))
            rows = slice(firsts[-1] - layer.base, length - layer.base)
            arrays += [mx.contiguous(array[:, :, rows]) for array in _stored(layer)]
    mx.eval(arrays)
    return SavedPoint(length, firsts, arrays)


def _restore_plain(cache: Cache, point: SavedPoint) -> None:
    firsts, arrays = iter(point.firsts), iter(point.arrays)
    for layer in parts_of(cache.layers):
        if isinstance(layer, StateCache):
            like = next(iter(layer.states.values()))
            layer.states = {point.length: tuple(next(arrays) for _ in like)}
            layer.mark = point.length
        elif isinstance(layer, TokenCache) and layer.window:
            layer.base = next(firsts)
            for buffer in layer.buffers:
                buffer.arrays = [mx.array(next(arrays)) for _ in buffer.arrays]


def _stored(layer: TokenCache) -> Sequence[mx.array]:
    return [array for buffer in layer.buffers for array in buffer.arrays]


def _save_fused(model: Model, cache: Cache, length: int) -> SavedPoint:
    bases, marks = cache.layers.bases, cache.layers.marks
    firsts: list[int] = []
    arrays = []
    for window, base, views in buffer_views(model, cache):
        if window:
            firsts.append(_first_row(base, window, length))
            arrays += [view[:, firsts[-1] - base : length - base].copy() for view in views]
    if len(marks) > 1:
        arrays += [part.copy() for part in state_views(cache, marks[1:].index(length))]
    assert len(bases) >= len(firsts)
    return SavedPoint(length, firsts, arrays)


def _restore_fused(model: Model, cache: Cache, point: SavedPoint) -> None:
    firsts, arrays = iter(point.firsts), iter(point.arrays)
    bases = list(cache.layers.bases)
    for at, (window, _, views) in enumerate(buffer_views(model, cache)):
        if window:
            bases[at] = next(firsts)
            for view in views:
                view[:, : point.length - bases[at]] = next(arrays)
    cache.layers.bases = bases
    places = len(cache.layers.marks)
    if places > 1:
        for part in state_views(cache, 0):
            part[:] = next(arrays)
        cache.layers.marks = [point.length, point.length, *[-1] * (places - 2)]
