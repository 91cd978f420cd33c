"""Mixture of experts: for each token, a router scores all experts and the best k run.

Axes: T tokens, D width, E experts, k chosen experts, G groups of experts, F hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from engine.architectures.registry import SOFTMAX, SOFTMAX_OF_CHOSEN, SPARSE_MIXER, SQRT_SOFTPLUS
from engine.kernels.base import QTensor
from engine.nn.config import ExpertConfig, ModelConfig
from engine.nn.mlp import UNGATED, Activation, FeedForward, clamped_silu, softplus, swiglu
from engine.nn.norm import RMSNorm
from engine.nn.weights import ROUTER_SCALE, Linear, Weights

if TYPE_CHECKING:
    from engine.nn.router_stats import RouterStats

MIN_WEIGHT_SUM = 6.103515625e-05  # smallest normal float16; keeps renormalisation finite
SORT_FROM = 64  # row count (T * k) from which grouping rows by expert is faster on a GPU
JITTER = 0.01  # PhiMoE's `router_jitter_noise`; GGUF files do not store it


def route(
    logits: mx.array,
    experts: ExpertConfig,
    bias: mx.array | None = None,
    ids: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Choose k experts per token.

    logits: (T, E) float32. bias: (E,), added for selection only. ids: (T, k), experts that are
    already chosen. Returns float32 weights (T, k) and expert ids (T, k), in no particular order.
    """
    if ids is not None:
        return _weights(_scores(logits, experts), ids, experts), ids
    if experts.gating == SPARSE_MIXER:
        return _by_sparse_mixer(logits, experts)
    if experts.gating == SOFTMAX_OF_CHOSEN:
        return _by_softmax_of_chosen(logits, experts, bias)
    return _by_score(logits, experts, bias)


def _by_score(
    logits: mx.array, experts: ExpertConfig, bias: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Choose the experts with the highest score plus bias. Weights are scores without the bias.

    If experts are grouped, only experts in the best groups can be chosen.
    """
    softmax, scores = experts.gating == SOFTMAX, _scores(logits, experts)
    # Select by logits if possible: they sort like scores but do not saturate.
    selection = logits if bias is None and experts.groups == 1 else scores
    selection = selection if bias is None else selection + bias
    if experts.groups > 1:
        counted = 1 if softmax else 2  # 1: DeepSeek-V2's group_limited_greedy
        selection = _best_groups(selection, experts.groups, experts.groups_used, counted)
    ids = _largest(selection, experts.used)
    return _weights(scores, ids, experts), ids


def _scores(logits: mx.array, experts: ExpertConfig) -> mx.array:
    if experts.gating == SOFTMAX:
        return mx.softmax(logits, axis=-1, precise=True)
    if experts.gating == SQRT_SOFTPLUS:
        return mx.sqrt(softplus(logits))
    return mx.sigmoid(logits)


def _weights(scores: mx.array, ids: mx.array, experts: ExpertConfig) -> mx.array:
    """Return the chosen experts' weights: scores (T, E), ids (T, k) -> (T, k)."""
    weights = mx.take_along_axis(scores, ids, axis=-1)
    if experts.renormalize:
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), MIN_WEIGHT_SUM)
    return weights * experts.scale


def _by_softmax_of_chosen(
    logits: mx.array, experts: ExpertConfig, bias: mx.array | None
) -> tuple[mx.array, mx.array]:
    ids = _largest(logits if bias is None else logits + bias, experts.used)
    chosen = mx.take_along_axis(logits, ids, axis=-1)
    return mx.softmax(chosen, axis=-1, precise=True) * experts.scale, ids


def _by_sparse_mixer(logits: mx.array, experts: ExpertConfig) -> tuple[mx.array, mx.array]:
    """Choose experts one at a time (arXiv 2310.00811).

    Each weight is a softmax over the remaining experts whose logits are close to the largest.
    """
    left, weights, ids = logits, [], []
    for _ in range(experts.used):
        best = left.argmax(axis=-1, keepdims=True)
        top = mx.take_along_axis(left, best, axis=-1)
        far = (top - logits) / mx.maximum(mx.abs(logits), top) > 2 * JITTER
        near = mx.softmax(mx.where(far, -math.inf, left), axis=-1, precise=True)
        weights.append(mx.take_along_axis(near, best, axis=-1))
        ids.append(best)
        left = mx.put_along_axis(left, best, mx.array(-math.inf), axis=-1)
    return mx.concatenate(weights, axis=-1) * experts.scale, mx.concatenate(ids, axis=-1)


def _best_groups(scores: mx.array, groups: int, used: int, counted: int) -> mx.array:
    """Set scores outside the best groups to -inf: (T, E) -> (T, E).

    A group's score is the sum of its `counted` highest expert scores.
    """
    grouped = scores.reshape(scores.shape[0], groups, -1)  # (T, G, E / G)
    best = mx.topk(grouped, min(counted, grouped.shape[-1]), axis=-1).sum(axis=-1)  # (T, G)
    chosen = mx.zeros(best.shape, dtype=mx.bool_)
    chosen = mx.put_along_axis(chosen, _largest(best, used), mx.array(True), axis=-1)
    return mx.where(chosen[..., None], grouped, -math.inf).reshape(scores.shape)


def _largest(scores: mx.array, count: int) -> mx.array:
    return mx.argpartition(-scores, kth=count - 1, axis=-1)[..., :count]


@dataclass(frozen=True, slots=True)
class ExpertLinear:
    """One projection for all experts, with optional biases."""

    weight: QTensor  # (E, out, in)
    bias: mx.array | None = None  # (E, out)

    def __call__(self, x: mx.array, ids: mx.array) -> mx.array:
        y = self.weight.gather_matmul(x, ids)
        return y if self.bias is None else y + self.bias[ids].astype(y.dtype)


class Fused(Protocol):
    """What kernels replace `run` and the weighted sum by."""

    def __call__(self, x: mx.array, ids: mx.array, scores: mx.array) -> mx.array:
        """Compute the weighted sum of the chosen experts: (T, D), (T, k), (T, k) -> (T, D)."""

    def pairs(self, x: mx.array, ids: mx.array) -> mx.array:
        """Compute an expert's result for each pair of many, in the order of ids: (T k, D)."""


class Experts:
    """An MoE feed-forward layer. Biases are used if the file contains them.

    activation: if it is one of `UNGATED`, experts have no gate. Latent experts read and write a
    narrower vector, which all experts of a layer share.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, activation: Activation = swiglu
    ) -> None:
        assert config.experts is not None
        self.config = config.experts.of_layer(layer)
        self.activation = activation
        count, hidden, width = self.config.count, self.config.width, config.width
        prefix, latent = f"blk.{layer}", self.config.latent_width
        self.router = weights.matrix(f"{prefix}.ffn_gate_inp.weight", count, width)
        self.router_bias = weights.optional_vector(f"{prefix}.ffn_gate_inp.bias", count)
        name = f"{prefix}.exp_probs_b"  # older files omit the suffix .bias
        name = name + ".bias" if name + ".bias" in weights else name
        self.selection_bias = weights.optional_vector(name, count)
        self.latent_down: Linear | None = None
        self.latent_up: Linear | None = None
        if latent:
            self.latent_down = weights.linear(f"{prefix}.ffn_latent_down", latent, width)
            self.latent_up = weights.linear(f"{prefix}.ffn_latent_up", width, latent)
            width = latent
        self.gate_up: ExpertLinear | None = None
        self.gate: ExpertLinear | None = None
        if f"{prefix}.ffn_gate_up_exps.weight" in weights:
            self.gate_up = expert_linear(weights, prefix, "ffn_gate_up", count, 2 * hidden, width)
        else:
            if activation not in UNGATED:
                self.gate = expert_linear(weights, prefix, "ffn_gate", count, hidden, width)
            self.up = expert_linear(weights, prefix, "ffn_up", count, hidden, width)
        self.down = expert_linear(weights, prefix, "ffn_down", count, width, hidden)
        self.sorts = not weights.kernels.groups_by_expert
        self.stats: RouterStats | None = None
        self.fused: Fused | None = None
        self.fuse: Callable[[Experts], Fused | None] = lambda experts: None
        self.sum = weighted_sum  # experts that stay in the file have another

    def __call__(
        self, x: mx.array, scored: mx.array | None = None, ids: mx.array | None = None
    ) -> mx.array:
        """Compute the layer's output for x (T, D).

        scored: what the router reads; None: x. ids: the experts (T, k); None: the router chooses.
        """
        logits = self.router.matmul((x if scored is None else scored).astype(mx.float32))
        if self.router_bias is not None:
            logits = logits + self.router_bias
        weights, ids = route(logits, self.config, self.selection_bias, ids)
        if self.stats is not None:
            self.stats.record(ids)
        if self.latent_down is not None:
            x = self.latent_down(x)
        y = self.sum(self, x, ids, weights)
        return y if self.latent_up is None else self.latent_up(y)

    def run(self, x: mx.array, ids: mx.array) -> mx.array:
        """Run the chosen experts: x (T, 1 or k, D), ids (T, k) -> (T, k, D)."""
        if not self.sorts or ids.size < SORT_FROM:
            return self.down(self.hidden(x, ids), ids)
        # Group rows by expert, so that each expert's weights are read once.
        order = mx.argsort(ids.reshape(-1))
        rows = x.reshape(-1, x.shape[-1])[order if x.shape[1] > 1 else order // ids.shape[1]]
        chosen = ids.reshape(-1)[order][:, None]
        y = self.down(self.hidden(rows[:, None, :], chosen), chosen)  # (T*k, 1, D)
        return y[mx.argsort(order)].reshape(*ids.shape, -1)

    def hidden(self, x: mx.array, ids: mx.array) -> mx.array:
        """Compute what `down` reads: x (T, 1 or k, D), ids (T, k) -> (T, k, F)."""
        if self.gate_up is not None:
            return self.activation(*mx.split(self.gate_up(x, ids), 2, axis=-1))
        gates = () if self.gate is None else (self.gate(x, ids),)
        return self.activation(*gates, self.up(x, ids))


def weighted_sum(experts: Experts, x: mx.array, ids: mx.array, weights: mx.array) -> mx.array:
    """Sum up the chosen experts' results: x (T, D), ids (T, k), weights (T, k) -> (T, D)."""
    if experts.fused is not None:
        return experts.fused(x, ids, weights)
    weights = weights.astype(x.dtype)
    if experts.config.weight_on_input:
        return experts.run(x[:, None, :] * weights[..., None], ids).sum(axis=-2)
    return (experts.run(x[:, None, :], ids) * weights[..., None]).sum(axis=-2)


class SharedExperts:
    """An MoE feed-forward layer plus a shared expert, which may have a sigmoid gate."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        activation: Activation = swiglu,
        shared_activation: Activation = swiglu,
    ) -> None:
        assert config.experts is not None
        self.routed = Experts(config, weights, layer, activation)
        self.averaged = config.experts.averaged
        rows = weights.shape(f"blk.{layer}.ffn_up_shexp.weight") or (0,)
        width = config.experts.shared_width or rows[0]
        self.shared = FeedForward(config, weights, layer, shared_activation, "_shexp", width)
        self.gate = weights.optional_vector(f"blk.{layer}.ffn_gate_inp_shexp.weight", config.width)

    def __call__(self, x: mx.array, ids: mx.array | None = None) -> mx.array:
        """Compute the layer's output for x (T, D). ids: see `Experts`."""
        shared = self.shared(x)
        if self.gate is not None:
            score = (x.astype(mx.float32) * self.gate).sum(axis=-1, keepdims=True)
            shared = shared * mx.sigmoid(score).astype(shared.dtype)
        both = self.routed(x, ids=ids) + shared
        return both / 2 if self.averaged else both


class DenseAndExperts:
    """A dense layer and routed experts that both read the residual stream.

    Each normalises its input and its output. The router reads the stream in its own scale.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, layer: int, activation: Activation
    ) -> None:
        self.dense = FeedForward(config, weights, layer, activation)
        self.routed = Experts(config, weights, layer, activation)
        width, self.eps = config.width, config.norm_eps
        self.norm, self.dense_norm, self.experts_norm, self.routed_norm = (
            RMSNorm(weights.array(f"blk.{layer}.{name}.weight", width), self.eps)
            for name in ("ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
        )
        self.router_scale = weights.array(f"blk.{layer}.{ROUTER_SCALE}", width) / math.sqrt(width)

    def __call__(self, x: mx.array) -> mx.array:
        scored = mx.fast.rms_norm(x.astype(mx.float32), None, self.eps) * self.router_scale
        routed = self.routed_norm(self.routed(self.experts_norm(x), scored))
        return self.dense_norm(self.dense(self.norm(x))) + routed


def feed_forward(
    config: ModelConfig, weights: Weights, layer: int, activation: Activation | None = None
) -> FeedForward | Experts | SharedExperts:
    """Load a block's feed-forward layer: dense, MoE, or MoE plus a shared expert.

    activation: by default swiglu, clamped in the layers for which the config has a clamp.
    """
    of_experts = activation or clamped_silu(config.expert_clamps[layer])
    of_dense = activation or clamped_silu(config.dense_clamps[layer])
    if not config.routed(layer):
        return FeedForward(config, weights, layer, of_dense)
    assert config.experts is not None
    if config.experts.shared_width or f"blk.{layer}.ffn_up_shexp.weight" in weights:
        return SharedExperts(config, weights, layer, of_experts, of_dense)
    return Experts(config, weights, layer, of_experts)


def expert_linear(weights: Weights, prefix: str, part: str, *shape: int) -> ExpertLinear:
    """Load the projection `prefix.part_exps` (E, out, in) for all experts."""
    name = f"{prefix}.{part}_exps.bias"
    bias = weights.array(name, *shape[:2]) if name in weights else None
    return ExpertLinear(weights.experts(prefix, part, *shape), bias)
