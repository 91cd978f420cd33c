"""The dense feed-forward layer and its activations.

Axes: T tokens, D width, F hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from engine.nn.config import ModelConfig
from engine.nn.norm import RMSNorm
from engine.nn.weights import Linear, Weights

CLAMP_SLOPE = 1.702  # sigmoid slope in `clamped_swiglu`
CLAMP_LIMIT = 7.0

# gate (..., F), up (..., F) -> (..., F); one of UNGATED receives only up
Activation = Callable[..., mx.array]


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return silu(gate) * up."""
    return gate * mx.sigmoid(gate) * up


def clamped_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return gate * sigmoid(1.702 gate) * (up + 1).

    gate is capped at 7, and up is clipped to -7..7.
    """
    gate = mx.minimum(gate, CLAMP_LIMIT)
    return gate * mx.sigmoid(CLAMP_SLOPE * gate) * (mx.clip(up, -CLAMP_LIMIT, CLAMP_LIMIT) + 1)


@dataclass(frozen=True, slots=True)
class ClampedSiLU:
    """The activation min(silu(gate), limit) * clip(up, -limit, limit)."""

    limit: float

    def __call__(self, gate: mx.array, up: mx.array) -> mx.array:
        limit = self.limit
        return mx.minimum(gate * mx.sigmoid(gate), limit) * mx.clip(up, -limit, limit)


@dataclass(frozen=True, slots=True)
class ClampedGate:
    """The activation silu(min(gate, limit)) * clip(up, -limit, limit)."""

    limit: float

    def __call__(self, gate: mx.array, up: mx.array) -> mx.array:
        gate, limit = mx.minimum(gate, self.limit), self.limit
        return gate * mx.sigmoid(gate) * mx.clip(up, -limit, limit)


def clamped_silu(limit: float) -> Activation:
    """Return the activation with this limit, or swiglu for 0."""
    return ClampedSiLU(limit) if limit else swiglu


def clamped_gate(limit: float) -> Activation:
    """Return the activation with this limit, or swiglu for 0."""
    return ClampedGate(limit) if limit else swiglu


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return gelu(gate) * up."""
    return gelu(gate) * up


def gelu(x: mx.array) -> mx.array:
    """Return the tanh approximation of GELU."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softplus(x: mx.array) -> mx.array:
    """Return ln(1 + e^x)."""
    return mx.logaddexp(x, 0)


def squared_relu(up: mx.array) -> mx.array:
    """Return max(up, 0) squared."""
    return mx.square(mx.maximum(up, 0))


UNGATED = (squared_relu,)


class FeedForward:
    """The feed-forward layer: down(activation(gate(x), up(x))), or down(activation(up(x))).

    activation: if it is one of UNGATED, there is no gate. suffix: appended to the tensor names.
    width: hidden width; by default, the layer's width in `config`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        activation: Activation = swiglu,
        suffix: str = "",
        width: int | None = None,
    ) -> None:
        hidden = config.feed_forward[layer] if width is None else width
        prefix = f"blk.{layer}.ffn_"
        self.activation = activation
        self.gate: Linear | None = None
        if activation not in UNGATED:
            self.gate = weights.linear(f"{prefix}gate{suffix}", hidden, config.width)
        self.up = weights.linear(f"{prefix}up{suffix}", hidden, config.width)
        self.down = weights.linear(f"{prefix}down{suffix}", config.width, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        gates = () if self.gate is None else (self.gate(x),)
        return self.down(self.activation(*gates, self.up(x)))


class LayerEmbedding:
    """What a layer's own embedding of each token adds to the residual stream."""

    def __init__(self, config: ModelConfig, weights: Weights, name: str) -> None:
        inner, width = config.per_layer_width, config.width
        self.gate = weights.linear(name + "inp_gate", inner, width)
        self.projection = weights.linear(name + "proj", width, inner)
        self.norm = RMSNorm(weights.array(name + "post_norm.weight", width), config.norm_eps)

    def __call__(self, x: mx.array, embedded: mx.array) -> mx.array:
        return self.norm(self.projection(gelu(self.gate(x)) * embedded))


class LayerEnd:
    """The end of a block: adds what the layer's embedding contributes, then scales the stream."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        name = f"blk.{layer}."
        self.scale = weights.optional_vector(name + "layer_output_scale.weight", 1)
        embeds = config.per_layer_width > 0
        self.embedding = LayerEmbedding(config, weights, name) if embeds else None

    def __call__(self, x: mx.array, embedded: mx.array | None) -> mx.array:
        if self.embedding is not None:
            assert embedded is not None
            x = x + self.embedding(x, embedded)
        return x if self.scale is None else x * self.scale.astype(x.dtype)
