"""Mixture of experts: a router scores every expert for every token, and a few of them run.

Scores, choices and weights stay on the device: nothing here is read back.

Axes: T tokens, D width, E experts, k chosen of them, F hidden width of an expert.
"""

from __future__ import annotations

import mlx.core as mx

from engine.config import ExpertConfig, ModelConfig
from engine.kernels import QTensor
from engine.layers import silu
from engine.weights import Weights

MIN_WEIGHT_SUM = 6.103515625e-05  # smallest normal float16: keeps renormalisation finite
SORT_FROM = 64  # chosen rows from which grouping them by expert pays on a GPU


def route(logits: mx.array, experts: ExpertConfig, renormalize: bool) -> tuple[mx.array, mx.array]:
    """Choose k experts per token by softmax.

    logits: (T, E) float32. Returns weights (T, k) float32 and expert ids (T, k), in no order.
    """
    probs = mx.softmax(logits, axis=-1, precise=True)
    ids = mx.argpartition(-probs, kth=experts.used - 1, axis=-1)[:, : experts.used]
    weights = mx.take_along_axis(probs, ids, axis=-1)  # (T, k)
    if renormalize:
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / mx.maximum(total, MIN_WEIGHT_SUM)
    return weights * experts.scale, ids


def run_experts(x: mx.array, ids: mx.array, gate: QTensor, up: QTensor, down: QTensor) -> mx.array:
    """Run the chosen experts: x (T, D), ids (T, k) -> (T, k, D)."""
    if ids.size < SORT_FROM:
        rows, chosen = x[:, None, :], ids
    else:  # bring the rows of each expert together, so that its weights are read once
        order = mx.argsort(ids.reshape(-1))
        rows = x[order // ids.shape[1]][:, None, :]  # (T*k, 1, D)
        chosen = ids.reshape(-1)[order][:, None]
    hidden = silu(gate.gather_matmul(rows, chosen)) * up.gather_matmul(rows, chosen)
    y = down.gather_matmul(hidden, chosen)
    if ids.size < SORT_FROM:
        return y
    return y[mx.argsort(order)].reshape(*ids.shape, -1)


class Experts:
    """The routed feed-forward layer of one block.

    renormalize: what the architecture does with the chosen weights, unless the file says otherwise.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, renormalize: bool
    ) -> None:
        assert config.experts is not None
        self.config = config.experts
        said = config.experts.renormalize
        self.renormalize = renormalize if said is None else said
        count, hidden, width = self.config.count, self.config.width, config.width
        prefix = f"blk.{layer}"
        self.router = weights.matrix(f"{prefix}.ffn_gate_inp.weight", count, width)
        self.gate = weights.experts(prefix, "ffn_gate", count, hidden, width)
        self.up = weights.experts(prefix, "ffn_up", count, hidden, width)
        self.down = weights.experts(prefix, "ffn_down", count, width, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """x (T, D) -> (T, D)."""
        logits = self.router.matmul(x.astype(mx.float32))
        weights, ids = route(logits, self.config, self.renormalize)
        y = run_experts(x, ids, self.gate, self.up, self.down)  # (T, k, D)
        return (y * weights[..., None].astype(y.dtype)).sum(axis=-2)
