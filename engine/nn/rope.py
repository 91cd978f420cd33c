"""Rotary position embedding (RoPE) and its long-context extensions.

Axes: H heads, T tokens, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.weights import Weights

# x (1, H, T, d), position of the first token, context length -> rotated x
Rotary = Callable[[mx.array, int, int], mx.array]


class RoPE:
    """Rotary embedding for the first `dims` values of each head.

    interleaved: if True, pairs are (2i, 2i+1), llama.cpp's NORM type; otherwise they are
    (i, i + dims/2), its NEOX type. divisors: `rope_freqs.weight` (dims/2,); each pair's frequency
    is divided by its divisor, as in Llama 3.
    """

    def __init__(
        self, config: RopeConfig, interleaved: bool, divisors: mx.array | None = None
    ) -> None:
        periods, self.magnitude = rope_periods(config)
        if divisors is not None:
            scales = cast("list[float]", divisors.tolist())
            periods = [period * scale for period, scale in zip(periods, scales, strict=True)]
        self.dims, self.interleaved = config.dims, interleaved
        self.periods = mx.array(periods, mx.float32)

    def __call__(self, x: mx.array, offset: int, context: int = 0) -> mx.array:
        if self.magnitude != 1.0:
            rotated, rest = x[..., : self.dims] * self.magnitude, x[..., self.dims :]
            x = mx.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.interleaved,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.periods,
        )


@dataclass(frozen=True, slots=True)
class LongRoPE:
    """A rotary embedding for contexts up to a length, and another for longer ones."""

    short: RoPE
    long: RoPE
    original_context: int

    def __call__(self, x: mx.array, offset: int, context: int = 0) -> mx.array:
        return (self.long if context > self.original_context else self.short)(x, offset)


def layer_ropes(config: ModelConfig, weights: Weights, interleaved: bool) -> list[RoPE]:
    """Return each layer's rotary embedding.

    `rope_freqs.weight` applies only to layers without a window.
    """
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    full = RoPE(config.rope, interleaved, divisors)
    windowed = RoPE(config.window_rope, interleaved)
    return [windowed if config.window(layer) else full for layer in range(config.layers)]


def rope_periods(config: RopeConfig) -> tuple[list[float], float]:
    """Return period / 2 pi for each pair, (dims/2,), and the factor for cos and sin.

    YaRN (arXiv 2309.00071): fast pairs keep their period, slow pairs are stretched by `factor`, and
    a linear ramp blends the pairs in between. If `rounded`, the ends of the ramp are rounded
    outwards to whole pairs.
    """
    periods = [config.base ** (pair / config.dims) for pair in range(0, config.dims, 2)]
    if config.scaling == "linear":
        return [period * config.factor for period in periods], config.attention_factor
    if config.scaling != "yarn":
        return periods, config.attention_factor

    def pair_of(rotations: float) -> float:
        wavelengths = config.original_context / (rotations * 2 * math.pi)
        return config.dims * math.log(wavelengths) / (2 * math.log(config.base))

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dims - 1)
    for pair, period in enumerate(periods):
        ramp = min(max((pair - low) / max(high - low, 0.001), 0.0), 1.0)
        periods[pair] = 1 / ((1 - ramp) / period + ramp / (period * config.factor))
    magnitude = config.yarn_factor or yarn_magnitude(config.factor, 1.0)
    if config.log_multiplier:
        magnitude /= yarn_magnitude(config.factor, config.log_multiplier)
    return periods, config.attention_factor * magnitude


def yarn_magnitude(factor: float, multiplier: float) -> float:
    """Return the factor by which YaRN scales q and k when it stretches the context by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1


@dataclass(frozen=True, slots=True)
class Temperature:
    """Scales queries (1, H, T, d) by 1 + scale * ln(1 + floor((position + shift) / length))."""

    scale: float
    length: int
    shift: int = 0

    def __call__(self, q: mx.array, offset: int) -> mx.array:
        first = offset + self.shift
        stretches = mx.arange(first, first + q.shape[2], dtype=mx.int64) // self.length
        factors = 1 + self.scale * mx.log1p(stretches.astype(mx.float32))
        return q * factors[:, None].astype(q.dtype)
