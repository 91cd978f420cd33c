"""Run a layer's experts in few launches.

Gate, up and activation of the chosen experts are one kernel, down and the weighted sum another. For
the many tokens of a prompt, the pairs of a token and an expert are sorted once.

Axes: T tokens, D width, k chosen experts, F hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from engine.kernels.gpu.blocks import BlockKernels
from engine.kernels.gpu.experts import gated, weighted
from engine.kernels.gpu.tensor import SORT_FROM, BlockTensor, Grouped
from engine.nn.decoder import Blocks, Decoder
from engine.nn.mlp import CLAMP_LIMIT, Activation, ClampedSiLU, clamped_swiglu, geglu, swiglu
from engine.nn.moe import ExpertLinear, Experts

# The number of an activation in activation.metal, and its limit.
_ACTIVATIONS = {swiglu: (0, 0.0), clamped_swiglu: (2, CLAMP_LIMIT), geglu: (3, 0.0)}


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """The experts of a layer, whose weights are blocks.

    number: of the activation in activation.metal, or None if gate and up cannot be one kernel.
    limit: of the activation, (1,).
    """

    experts: Experts
    number: int | None
    limit: mx.array

    def __call__(self, x: mx.array, ids: mx.array, scores: mx.array) -> mx.array:
        """Compute the weighted sum of the chosen experts: (T, D), (T, k), (T, k) -> (T, D)."""
        if ids.size >= SORT_FROM:
            return self._sorted(x, ids, scores)
        if self.number is None:
            hidden = self.experts.hidden(x[:, None, :], ids)
        else:
            up = self.experts.gate_up or self.experts.up
            gate = self.experts.gate or up
            biases = None
            if gate.bias is not None and up.bias is not None:
                biases = gate.bias, up.bias
            merged = self.experts.gate_up is not None
            hidden = gated(
                *(_blocks(gate), _blocks(up), biases, x, ids, self.number, self.limit, merged)
            )
        down = self.experts.down
        return weighted(_blocks(down), down.bias, hidden, ids, scores)

    def _sorted(self, x: mx.array, ids: mx.array, scores: mx.array) -> mx.array:
        y = self.pairs(x, ids).reshape(*ids.shape, -1)
        return (y * scores[..., None].astype(y.dtype)).sum(axis=-2)

    def pairs(self, x: mx.array, ids: mx.array) -> mx.array:
        """Compute an expert's result for each pair, in the order of ids (T, k): (T k, D)."""
        experts = self.experts
        groups = Grouped.of(ids, _blocks(experts.down).shape[0])
        rows = groups.take(x[:, None, :], ids.shape[1])

        def product(part: ExpertLinear, of: mx.array) -> mx.array:
            y = _blocks(part).grouped_matmul(of, groups)
            return y if part.bias is None else y + part.bias[groups.experts].astype(y.dtype)

        if experts.gate_up is not None:
            pair = mx.split(product(experts.gate_up, rows), 2, axis=-1)
            hidden = experts.activation(*pair)
        else:
            gates = () if experts.gate is None else (product(experts.gate, rows),)
            hidden = experts.activation(*gates, product(experts.up, rows))
        return groups.restore(product(experts.down, hidden))


def fuse_experts(decoder: Decoder) -> None:
    """Let the experts of all layers run fused where their weights are blocks."""
    if not isinstance(decoder.kernels, BlockKernels):
        return
    assert isinstance(decoder.layers, Blocks)
    for block in decoder.layers.blocks:
        routed = getattr(block.feed_forward, "routed", block.feed_forward)
        if isinstance(routed, Experts):
            routed.fused, routed.fuse = fused_experts(routed), fused_experts


def fused_experts(experts: Experts) -> FusedExperts | None:
    """Return a layer's fused experts, or None if its weights do not allow it."""
    up, gate = experts.gate_up or experts.up, experts.gate
    parts = [part for part in (gate, up, experts.down) if part is not None]
    if experts.config.weight_on_input:
        return None
    if not all(isinstance(part.weight, BlockTensor) for part in parts):
        return None
    number, limit = _activation(experts.activation)
    if gate is None:  # the kernel reads the biases of gate and up apart
        alike = experts.gate_up is not None and up.bias is None
    else:
        alike = _blocks(gate).type == _blocks(up).type and (gate.bias is None) == (up.bias is None)
    return FusedExperts(experts, number if alike else None, mx.array([limit], mx.float32))


def _activation(activation: Activation) -> tuple[int | None, float]:
    if isinstance(activation, ClampedSiLU):
        return 1, activation.limit
    return _ACTIVATIONS.get(activation, (None, 0.0))


def _blocks(part: ExpertLinear) -> BlockTensor:
    assert isinstance(part.weight, BlockTensor)
    return part.weight
