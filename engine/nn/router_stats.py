"""Which experts the routers of a model chose: counted by layer, without waiting for any of it.

A layer tells the ids that it chose as it builds its part of the graph. They are read once the step
is over that they belong to; a step that is thrown away, as the one launched behind the last token
of an answer, is never counted.

Axes: L layers with experts, T tokens, k chosen experts, E experts.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

FOLD_AT = 256  # tokens whose ids are held before they are counted

Hits = NDArray[np.int64]


class Routes:
    """How often each expert was chosen. layers: the numbers of the L layers that have experts.

    tokens: how many were counted; the hits of every layer add up to `used` times that.
    """

    def __init__(self, layers: tuple[int, ...], experts: int, used: int) -> None:
        self.layers, self.experts, self.used = layers, experts, used
        self._step: list[mx.array] = []
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.tokens = 0
        self._hits = np.zeros((len(self.layers), self.experts), np.int64)
        self._kept: list[list[mx.array]] = []
        self._held = 0  # tokens of `_kept`

    def begin(self) -> None:
        """Begin a step; what was told of one that was not kept is forgotten."""
        self._step = []

    def tell(self, ids: mx.array) -> None:
        """Note what the next layer chose (T, k), or the next layers did: (layers, T, k)."""
        self._step.append(ids if ids.ndim == 3 else ids[None])

    def keep(self) -> None:
        """Count the step that was told last. It may still be under way."""
        if not self._step:
            return
        tokens = self._step[0].shape[1]
        if self._held >= FOLD_AT:
            self._fold()
        self._kept.append(self._step)
        self._step = []
        self._held += tokens
        self.tokens += tokens

    def hits(self) -> Hits:
        """Say how often each expert of each layer was chosen: (L, E). Waits for the last step."""
        self._fold()
        return self._hits.copy()

    def _fold(self) -> None:
        steps = [np.concatenate([np.array(ids) for ids in step]) for step in self._kept]
        self._kept, self._held = [], 0
        if not steps:
            return
        chosen = np.concatenate(steps, axis=1).astype(np.int64)  # (L, T, k)
        rows = np.arange(len(self.layers))[:, None, None] * self.experts
        counted = np.bincount((chosen + rows).ravel(), minlength=self._hits.size)
        self._hits += counted.reshape(self._hits.shape)


def entropy_bits(hits: Hits) -> NDArray[np.float64]:
    """Say how evenly each layer spread its tokens: (L, E) -> (L,), at most log2(E)."""
    shares = hits / np.maximum(hits.sum(axis=-1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    bits: NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return bits + 0.0  # no -0


def covering(hits: Hits, share: float) -> Hits:
    """Count the experts that, busiest first, take `share` of each layer's hits: (L, E) -> (L,)."""
    busiest = -np.sort(-hits, axis=-1)
    reached = np.cumsum(busiest, axis=-1) < share * hits.sum(axis=-1, keepdims=True)
    return np.where(hits.sum(axis=-1) > 0, reached.sum(axis=-1) + 1, 0)
