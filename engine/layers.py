"""The parts that architectures share: rotary embedding, attention, feed-forward.

Axes: T tokens, D width, H query heads, K kv heads, d head width. One sequence at a time; batches of
one are added only where an MLX operation wants four axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from engine.cache import LayerCache
from engine.config import ModelConfig, RopeConfig
from engine.kernels import QTensor
from engine.weights import Weights


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalisation with a learned gain."""

    weight: mx.array  # (D,)
    eps: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection with an optional bias."""

    weight: QTensor
    bias: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y = self.weight.matmul(x)
        return y if self.bias is None else y + self.bias.astype(y.dtype)


class Rope:
    """Rotary embedding of the first `dims` values of each head.

    interleaved: pairs are (2i, 2i+1) as in GGUF's NORM type, else (i, i + dims/2) as in NEOX.
    divisors: what `rope_freqs.weight` divides each frequency by (Llama 3), if the file has it.
    """

    def __init__(
        self, config: RopeConfig, interleaved: bool, divisors: mx.array | None = None
    ) -> None:
        periods, self.magnitude = rope_periods(config)
        if divisors is not None:
            scales = cast("list[float]", divisors.tolist())
            periods = [period * scale for period, scale in zip(periods, scales, strict=True)]
        self.dims = config.dims
        self.interleaved = interleaved
        self.periods = mx.array(periods, mx.float32)

    def __call__(self, x: mx.array, offset: int) -> mx.array:
        """Turn x (1, heads, T, d), whose first token is at position `offset`."""
        if self.magnitude != 1.0:
            turned, rest = x[..., : self.dims] * self.magnitude, x[..., self.dims :]
            x = mx.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.interleaved,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.periods,
        )


def rope_periods(config: RopeConfig) -> tuple[list[float], float]:
    """Work out the period / 2 pi of every pair, (dims/2,), and the factor on cos and sin.

    YaRN (arXiv 2309.00071): fast pairs keep their period, slow ones are stretched by `factor`, and
    a linear ramp lies between; its ends are rounded outwards to whole pairs.
    """
    periods = [config.base ** (pair / config.dims) for pair in range(0, config.dims, 2)]
    if config.scaling == "linear":
        return [period * config.factor for period in periods], 1.0
    if config.scaling != "yarn":
        return periods, 1.0

    def turning_pair(turns: float) -> float:
        wavelengths = config.original_context / (turns * 2 * math.pi)
        return config.dims * math.log(wavelengths) / (2 * math.log(config.base))

    low = max(math.floor(turning_pair(config.beta_fast)), 0)
    high = min(math.ceil(turning_pair(config.beta_slow)), config.dims - 1)
    for pair, period in enumerate(periods):
        ramp = min(max((pair - low) / max(high - low, 0.001), 0.0), 1.0)
        periods[pair] = 1 / ((1 - ramp) / period + ramp / (period * config.factor))
    return periods, config.attention_factor * (0.1 * math.log(config.factor) + 1)


class Attention:
    """Grouped-query attention over a cache, with optional norms on each head of q and k."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: Rope) -> None:
        self.heads, self.kv_heads = config.heads, config.kv_heads[layer]
        self.key_dim, self.value_dim = config.key_dim, config.value_dim
        self.scale = config.attention_scale
        self.rope = rope
        name = f"blk.{layer}.attn_"
        width = config.width
        self.q = linear(weights, name + "q", self.heads * self.key_dim, width)
        self.k = linear(weights, name + "k", self.kv_heads * self.key_dim, width)
        self.v = linear(weights, name + "v", self.kv_heads * self.value_dim, width)
        self.output = linear(weights, name + "output", width, self.heads * self.value_dim)
        self.q_norm = norm(weights, name + "q_norm", self.key_dim, config.norm_eps)
        self.k_norm = norm(weights, name + "k_norm", self.key_dim, config.norm_eps)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D). Without a cache the tokens see only each other."""
        q = self._heads(self.q(x), self.heads, self.key_dim, self.q_norm)
        k = self._heads(self.k(x), self.kv_heads, self.key_dim, self.k_norm)
        v = self._heads(self.v(x), self.kv_heads, self.value_dim, None)
        qk = self.rope(mx.concatenate([q, k], axis=1), offset)
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        if cache is not None:
            k, v = cache.extend(offset, k, v)
        mixed = mx.fast.scaled_dot_product_attention(
            q,
            k.astype(q.dtype),
            v.astype(q.dtype),
            scale=self.scale,
            mask="causal" if x.shape[0] > 1 else None,
        )
        return self.output(mixed.squeeze(0).swapaxes(0, 1).reshape(x.shape[0], -1))

    @staticmethod
    def _heads(x: mx.array, heads: int, dims: int, head_norm: Norm | None) -> mx.array:
        """Split (T, heads * d) into (1, heads, T, d), normalised."""
        x = x.reshape(x.shape[0], heads, dims)
        if head_norm is not None:
            x = head_norm(x)
        return x.swapaxes(0, 1)[None]


class FeedForward:
    """The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        name = f"blk.{layer}.ffn_"
        self.gate = linear(weights, name + "gate", config.feed_forward, config.width)
        self.up = linear(weights, name + "up", config.feed_forward, config.width)
        self.down = linear(weights, name + "down", config.width, config.feed_forward)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(silu(self.gate(x)) * self.up(x))


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    return x * mx.sigmoid(x)


def linear(weights: Weights, name: str, rows: int, columns: int) -> Linear:
    """Load `name.weight` (rows, columns), and `name.bias` if there is one."""
    return Linear(
        weights.matrix(name + ".weight", rows, columns),
        weights.optional_vector(name + ".bias", rows),
    )


def norm(weights: Weights, name: str, size: int, eps: float) -> Norm | None:
    """Load the norm `name.weight`, or None where the file has none."""
    weight = weights.optional_vector(name + ".weight", size)
    return None if weight is None else Norm(weight, eps)
