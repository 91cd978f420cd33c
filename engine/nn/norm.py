"""Normalisation layers for activations and attention heads."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from engine.nn.config import ModelConfig
from engine.nn.weights import Weights


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square normalisation with a learned gain."""

    weight: mx.array  # (D,)
    eps: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalisation to mean 0 and variance 1 with a learned gain and an optional bias."""

    weight: mx.array  # (D,)
    bias: mx.array | None  # (D,)
    eps: float

    def __call__(self, x: mx.array) -> mx.array:
        bias = None if self.bias is None else self.bias.astype(x.dtype)
        return mx.fast.layer_norm(x, self.weight.astype(x.dtype), bias, self.eps)


AnyNorm = RMSNorm | LayerNorm


def required_norm(weights: Weights, name: str, config: ModelConfig) -> AnyNorm:
    """Load `name.weight` as an RMS norm, or as a layer norm if `name.bias` exists.

    If the model's norms are centred, it is a layer norm in any case.
    """
    weight = weights.array(name + ".weight", config.width)
    bias = weights.optional_vector(name + ".bias", config.width)
    if bias is None and not config.centred_norms:
        return RMSNorm(weight, config.norm_eps)
    return LayerNorm(weight, bias, config.norm_eps)


def head_norm(weights: Weights, name: str, heads: int, dims: int, eps: float) -> RMSNorm | None:
    """Load the norm `name.weight`, or return None if it is missing.

    It normalises each head separately, or all heads as one vector, depending on its width.
    """
    if name + ".weight" not in weights:
        return None
    whole = weights.shape(name + ".weight") == (heads * dims,)
    return RMSNorm(weights.array(name + ".weight", heads * dims if whole else dims), eps)
