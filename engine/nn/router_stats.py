"""Count how often each layer's router chooses each expert, without blocking on the device.

Expert ids are read only after their step is committed. A discarded step, such as the one started
after the last token of an answer, is never counted.

Axes: L MoE layers, T tokens, k chosen experts, E experts.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

FOLD_AT = 256  # number of pending tokens at which their ids are counted
REUSE = tuple(2**power for power in range(13))  # distances that are counted, in tokens
WARM = 64  # tokens before distances are counted: until then, too few choices precede a token

Hits = NDArray[np.int64]


class RouterStats:
    """How often each expert was chosen. layers: the indices of the L MoE layers.

    tokens: the number of tokens counted. Each layer's hits add up to `used * tokens`,
    or less if it chooses fewer experts than others.
    """

    def __init__(self, layers: tuple[int, ...], experts: int, used: int) -> None:
        self.layers, self.experts, self.used = layers, experts, used
        self._step: list[mx.array] = []
        self.reset()

    def reset(self) -> None:
        self.tokens = 0
        self._hits = np.zeros((len(self.layers), self.experts), np.int64)
        self._seen = 0  # tokens
        self._last = np.full((len(self.layers), self.experts), -(REUSE[-1] + 1), np.int64)
        self._reuse = np.zeros(len(REUSE) + 1, np.int64)  # the last: no earlier choice so near
        self._pending: list[list[mx.array]] = []
        self._pending_tokens = 0

    def begin_step(self) -> None:
        """Begin a step. Discards the previous step's ids unless it was committed."""
        self._step = []

    def record(self, ids: mx.array) -> None:
        """Record the expert ids for the next layer (T, k) or the next several (layers, T, k).

        Layers that choose fewer experts than others have -1 in place of the rest.
        """
        missing = self.used - ids.shape[-1]
        if missing:
            ids = mx.pad(ids.astype(mx.int32), [(0, 0), (0, missing)], constant_values=-1)
        self._step.append(ids if ids.ndim == 3 else ids[None])

    def commit_step(self) -> None:
        """Commit the current step so that it is counted. The step may still be running."""
        if not self._step:
            return
        if self._pending_tokens >= FOLD_AT:
            self._fold()
        tokens = self._step[0].shape[1]
        self._pending.append(self._step)
        self._step = []
        self._pending_tokens += tokens
        self.tokens += tokens

    def take_back_step(self) -> None:
        """Undo the last commit, of a step that was then stopped."""
        if self._pending:
            self.tokens -= self._pending.pop()[0].shape[1]

    def hits(self) -> Hits:
        """Return how often each layer chose each expert: (L, E). Waits for pending steps."""
        self._fold()
        return self._hits.copy()

    @property
    def counted(self) -> int:
        """How many choices `reuse` is about."""
        return int(self._reuse.sum())

    def reuse(self) -> dict[int, float]:
        """Return the share of choices that the same layer made at most so many tokens before.

        For each distance of REUSE; empty if there were too few tokens. Waits for pending steps.
        """
        self._fold()
        if not self._reuse.any():
            return {}
        shares = np.cumsum(self._reuse)[:-1] / self._reuse.sum()
        return dict(zip(REUSE, map(float, shares), strict=True))

    def _fold(self) -> None:
        steps = [np.concatenate([np.array(ids) for ids in step]) for step in self._pending]
        self._pending, self._pending_tokens = [], 0
        if not steps:
            return
        chosen = np.concatenate(steps, axis=1).astype(np.int64)  # (L, T, k)
        rows = np.arange(len(self.layers))[:, None, None] * self.experts
        counted = np.bincount((chosen + rows)[chosen >= 0], minlength=self._hits.size)
        self._hits += counted.reshape(self._hits.shape)
        self._count_reuse(chosen)

    def _count_reuse(self, chosen: NDArray[np.int64]) -> None:
        layers = np.broadcast_to(np.arange(len(self.layers))[:, None], chosen[:, 0].shape)
        for token in range(chosen.shape[1]):
            real = chosen[:, token] >= 0
            places = layers[real], chosen[:, token][real]
            if self._seen >= WARM:
                nearest = np.searchsorted(REUSE, self._seen - self._last[places])
                self._reuse += np.bincount(nearest, minlength=len(REUSE) + 1)
            self._last[places] = self._seen
            self._seen += 1


def entropy_bits(hits: Hits) -> NDArray[np.float64]:
    """Return the entropy of each layer's choices in bits, at most log2(E): (L, E) -> (L,)."""
    shares = hits / np.maximum(hits.sum(axis=-1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    bits: NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return bits + 0.0  # turns -0.0 into 0.0


def covering(hits: Hits, share: float) -> Hits:
    """Return how many of the busiest experts account for `share` of the hits in each layer.

    (L, E) -> (L,).
    """
    busiest = -np.sort(-hits, axis=-1)
    reached = np.cumsum(busiest, axis=-1) < share * hits.sum(axis=-1, keepdims=True)
    return np.where(hits.sum(axis=-1) > 0, reached.sum(axis=-1) + 1, 0)
