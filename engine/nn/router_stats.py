"""Which experts the routers of a model choose, counted per layer without blocking on the device.

Ids are read only after their step is committed; a discarded step, such as the one launched past the
last token of an answer, is never counted.

Axes: L layers with experts, T tokens, k chosen experts, E experts.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

FOLD_AT = 256  # tokens whose ids are held before they are counted

Hits = NDArray[np.int64]


class RouterStats:
    """How often each expert was chosen. layers: the numbers of the L layers with experts.

    tokens: the number of counted tokens. The hits of every layer add up to `used` times that.
    """

    def __init__(self, layers: tuple[int, ...], experts: int, used: int) -> None:
        self.layers, self.experts, self.used = layers, experts, used
        self._step: list[mx.array] = []
        self.reset()

    def reset(self) -> None:
        self.tokens = 0
        self._hits = np.zeros((len(self.layers), self.experts), np.int64)
        self._pending: list[list[mx.array]] = []
        self._pending_tokens = 0

    def begin_step(self) -> None:
        """Begin a step. Discards the ids of one that was not committed."""
        self._step = []

    def record(self, ids: mx.array) -> None:
        """Record the ids chosen by the next layer (T, k), or by the next layers (layers, T, k)."""
        self._step.append(ids if ids.ndim == 3 else ids[None])

    def commit_step(self) -> None:
        """Count the current step, which may still be running."""
        if not self._step:
            return
        if self._pending_tokens >= FOLD_AT:
            self._fold()
        tokens = self._step[0].shape[1]
        self._pending.append(self._step)
        self._step = []
        self._pending_tokens += tokens
        self.tokens += tokens

    def hits(self) -> Hits:
        """Return how often each layer chose each expert: (L, E). Waits for the last step."""
        self._fold()
        return self._hits.copy()

    def _fold(self) -> None:
        steps = [np.concatenate([np.array(ids) for ids in step]) for step in self._pending]
        self._pending, self._pending_tokens = [], 0
        if not steps:
            return
        chosen = np.concatenate(steps, axis=1).astype(np.int64)  # (L, T, k)
        rows = np.arange(len(self.layers))[:, None, None] * self.experts
        counted = np.bincount((chosen + rows).ravel(), minlength=self._hits.size)
        self._hits += counted.reshape(self._hits.shape)


def entropy_bits(hits: Hits) -> NDArray[np.float64]:
    """Return the entropy of each layer's choices: (L, E) -> (L,), at most log2(E)."""
    shares = hits / np.maximum(hits.sum(axis=-1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    bits: NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return bits + 0.0  # no -0


def covering(hits: Hits, share: float) -> Hits:
    """Count the busiest experts that take `share` of each layer's hits: (L, E) -> (L,)."""
    busiest = -np.sort(-hits, axis=-1)
    reached = np.cumsum(busiest, axis=-1) < share * hits.sum(axis=-1, keepdims=True)
    return np.where(hits.sum(axis=-1) > 0, reached.sum(axis=-1) + 1, 0)
