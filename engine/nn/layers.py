"""The parts that architectures share: rotary embedding, attention, feed-forward.

Axes: T tokens, D width, H query heads, K kv heads, d head width. One sequence at a time; batches of
one are added only where an MLX operation wants four axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from engine.kernels.base import QTensor
from engine.limits import MIN_CHUNK, SCORE_BYTES
from engine.nn.cache import TokenCache
from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.weights import Weights

CLAMP_SLOPE = 1.702  # of the sigmoid in `clamped_swiglu`
CLAMP_LIMIT = 7.0

Activation = Callable[[mx.array, mx.array], mx.array]  # gate (..., F), up (..., F) -> (..., F)
# x (1, heads, T, d), position of its first token, tokens of the sequence at most -> x turned
Rotary = Callable[[mx.array, int, int], mx.array]


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalisation with a learned gain."""

    weight: mx.array  # (D,)
    eps: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalisation to mean 0 and variance 1 with a learned gain and bias."""

    weight: mx.array  # (D,)
    bias: mx.array  # (D,)
    eps: float

    def __call__(self, x: mx.array) -> mx.array:
        weight, bias = self.weight.astype(x.dtype), self.bias.astype(x.dtype)
        return mx.fast.layer_norm(x, weight, bias, self.eps)


AnyNorm = Norm | LayerNorm


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

    def __call__(self, x: mx.array, offset: int, context: int = 0) -> mx.array:
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


class LongRope:
    """Rotary embedding whose frequencies depend on how long the sequence may become.

    original: tokens up to which `short` turns, beyond which `long` does.
    """

    def __init__(self, short: Rope, long: Rope, original: int) -> None:
        self.short, self.long, self.original = short, long, original

    def __call__(self, x: mx.array, offset: int, context: int) -> mx.array:
        """Turn x (1, heads, T, d), whose first token is at position `offset`, of `context`."""
        return (self.long if context > self.original else self.short)(x, offset)


def rope_periods(config: RopeConfig) -> tuple[list[float], float]:
    """Work out the period / 2 pi of every pair, (dims/2,), and the factor on cos and sin.

    YaRN (arXiv 2309.00071): fast pairs keep their period, slow ones are stretched by `factor`, and
    a linear ramp lies between; its ends are rounded outwards to whole pairs where `rounded`.
    """
    periods = [config.base ** (pair / config.dims) for pair in range(0, config.dims, 2)]
    if config.scaling == "linear":
        return [period * config.factor for period in periods], config.attention_factor
    if config.scaling != "yarn":
        return periods, config.attention_factor

    def turning_pair(turns: float) -> float:
        wavelengths = config.original_context / (turns * 2 * math.pi)
        return config.dims * math.log(wavelengths) / (2 * math.log(config.base))

    low, high = turning_pair(config.beta_fast), turning_pair(config.beta_slow)
    if config.rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dims - 1)
    for pair, period in enumerate(periods):
        ramp = min(max((pair - low) / max(high - low, 0.001), 0.0), 1.0)
        periods[pair] = 1 / ((1 - ramp) / period + ramp / (period * config.factor))
    magnitude = yarn_magnitude(config.factor, 1.0)
    if config.log_multiplier:
        magnitude /= yarn_magnitude(config.factor, config.log_multiplier)
    return periods, config.attention_factor * magnitude


def yarn_magnitude(factor: float, multiplier: float) -> float:
    """Say by how much a context stretched by `factor` raises attention scores' square root."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries grow with their position: 1 + scale * ln(1 + floor((position + shift) / length))."""

    scale: float
    length: int
    shift: int = 0

    def __call__(self, q: mx.array, offset: int) -> mx.array:
        """Scale q (1, H, T, d), whose first token is at position `offset`."""
        first = offset + self.shift
        stretches = mx.arange(first, first + q.shape[2], dtype=mx.int64) // self.length
        factors = 1 + self.scale * mx.log1p(stretches.astype(mx.float32))
        return q * factors[:, None].astype(q.dtype)


class Attention:
    """Grouped-query attention over a cache, in the variants that architectures have of it.

    rope: None where the layer knows no positions. The file's tensors say: biases, norms of q and k
    on each head or the whole projection, sinks; q, k and v apart or as one `attn_qkv`. Its config
    says: window or chunk, cap on the scores, scale.

    norm_after_rope: the norms come after the rotary embedding. l2_norm: q and k of each head are
    normalised after it without a gain. gated: the q projection holds for each head a gate behind
    the query, whose sigmoid the output is multiplied by.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        rope: Rotary | None,
        *,
        norm_after_rope: bool = False,
        l2_norm: bool = False,
        gated: bool = False,
        temperature: Temperature | None = None,
    ) -> None:
        self.heads, self.kv_heads = config.heads, config.kv_heads[layer]
        self.key_dim, self.value_dim = config.key_dim, config.value_dim
        self.scale, self.score_cap = config.attention_scale, config.score_cap
        self.window = config.windows[layer] if config.windows else 0
        self.chunked = config.chunked
        self.rope = rope
        self.norm_after_rope, self.gated, self.temperature = norm_after_rope, gated, temperature
        self.l2_eps = config.norm_eps if l2_norm else None
        name = f"blk.{layer}.attn_"
        width = config.width
        queries = self.heads * self.key_dim * (2 if gated else 1)
        keys, values = self.kv_heads * self.key_dim, self.kv_heads * self.value_dim
        self.q, self.k, self.v = qkv(weights, name, (queries, keys, values), width)
        self.output = linear(weights, name + "output", width, self.heads * self.value_dim)
        self.q_norm = head_norm(weights, name + "q_norm", self.heads, self.key_dim, config.norm_eps)
        self.k_norm = head_norm(
            weights, name + "k_norm", self.kv_heads, self.key_dim, config.norm_eps
        )
        self.sinks = weights.optional_vector(name + "sinks.weight", self.heads)

    @property
    def plain(self) -> bool:
        """Whether only windows that slide, norms and what tensors say make it unusual."""
        chunked = self.window and self.chunked
        unusual = (chunked, self.score_cap, self.temperature)
        return not any(unusual) and self.l2_eps is None

    def __call__(self, x: mx.array, cache: TokenCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D). Without a cache the tokens see only each other."""
        q, gate = self.q(x), None
        if self.gated:
            q, gate = mx.split(q.reshape(x.shape[0], self.heads, -1), 2, axis=-1)
        q = self._turn(q, self.heads, self.q_norm, offset, cache)
        k = self._turn(self.k(x), self.kv_heads, self.k_norm, offset, cache)
        v = heads_of(self.v(x), self.kv_heads)
        if self.temperature is not None:
            q = self.temperature(q, offset)
        base = offset
        if cache is not None:
            (k, v), base = cache.extend(offset, (k, v), self._first_seen(offset))
        mixed = self._mix(q, k.astype(q.dtype), v.astype(q.dtype), offset, base)
        mixed = mixed.squeeze(0).swapaxes(0, 1).reshape(x.shape[0], -1)
        if gate is not None:
            mixed = mixed * mx.sigmoid(gate.reshape(mixed.shape))
        return self.output(mixed)

    def _turn(
        self, x: mx.array, heads: int, norm: Norm | None, offset: int, cache: TokenCache | None
    ) -> mx.array:
        """Make queries or keys of a projection: (T, heads * d) -> (1, heads, T, d)."""
        if norm is not None and not self.norm_after_rope:
            x = norm(x.reshape(x.shape[0], -1, norm.weight.size))
        x = heads_of(x.reshape(x.shape[0], -1), heads)
        if self.rope is not None:
            context = cache.context if cache is not None else offset + x.shape[2]
            x = self.rope(x, offset, context)
        if norm is not None and self.norm_after_rope:
            x = norm(x)
        if self.l2_eps is not None:
            x = mx.fast.rms_norm(x, None, self.l2_eps)
        return x

    def _first_seen(self, position: int) -> int:
        """Say which is the first token that the one at `position` sees."""
        if not self.window:
            return 0
        if self.chunked:
            return position // self.window * self.window
        return max(0, position - self.window + 1)

    def _mix(self, q: mx.array, k: mx.array, v: mx.array, offset: int, base: int) -> mx.array:
        """Attend, some queries at a time so that their scores stay bounded.

        q (1, H, T, d), its first token at `offset`; k, v (1, K, S, d), theirs at `base`. Returns
        (1, H, T, d).
        """
        tokens = q.shape[2]
        rows = max(MIN_CHUNK, SCORE_BYTES // (4 * self.heads * k.shape[2]))
        if tokens <= rows:
            return self._attend(q, k, v, offset, base)
        parts = []
        for start in range(0, tokens, rows):
            end = min(start + rows, tokens)
            first = max(self._first_seen(offset + start) - base, 0)
            seen = slice(first, offset + end - base)
            queries, keys, values = q[:, :, start:end], k[:, :, seen], v[:, :, seen]
            parts.append(self._attend(queries, keys, values, offset + start, base + first))
        return mx.concatenate(parts, axis=2)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, offset: int, base: int) -> mx.array:
        mask = self._mask(q.shape[2], k.shape[2], offset, base)
        if self.score_cap:
            return capped_attention(q, k, v, self.scale, self.score_cap, mask)
        sinks = None if self.sinks is None else self.sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.scale, mask=mask, sinks=sinks
        )

    def _mask(self, tokens: int, keys: int, offset: int, base: int) -> mx.array | str | None:
        """Say which keys each of `tokens` sees: (T, S) of booleans, or a shorter word for it."""
        if self._first_seen(offset + tokens - 1) <= base:
            return "causal" if tokens > 1 else None
        first = mx.array([self._first_seen(offset + token) for token in range(tokens)])
        positions, seen = mx.arange(offset, offset + tokens), mx.arange(base, base + keys)
        return (seen <= positions[:, None]) & (seen >= first[:, None])


def capped_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    cap: float,
    mask: mx.array | str | None,
) -> mx.array:
    """Attend with scores bounded by cap * tanh(score / cap).

    q (1, H, T, d), k, v (1, K, S, d), the last query at the last key; mask as in MLX's attention.
    Returns (1, H, T, d).
    """
    tokens, keys = q.shape[2], k.shape[2]
    if isinstance(mask, str):
        mask = mx.tri(tokens, keys, keys - tokens, dtype=mx.bool_)
    groups = q.reshape(1, k.shape[1], -1, tokens, q.shape[3])
    scores = (groups * scale) @ k[:, :, None].swapaxes(-1, -2)
    scores = cap * mx.tanh(scores.astype(mx.float32) / cap)
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf)
    mixed = mx.softmax(scores, axis=-1).astype(v.dtype) @ v[:, :, None]
    return mixed.reshape(*q.shape[:3], -1)


def heads_of(x: mx.array, heads: int) -> mx.array:
    """Split (T, heads * d) into (1, heads, T, d)."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)[None]


class FeedForward:
    """The gated feed-forward layer: down(activation(gate(x), up(x))).

    suffix: of its tensors' names. width: of its hidden units, that of the config unless given.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        activation: Activation | None = None,
        suffix: str = "",
        width: int | None = None,
    ) -> None:
        hidden = config.feed_forward[layer] if width is None else width
        self.activation = activation or swiglu
        self.gate, self.up, self.down = (
            linear(weights, f"blk.{layer}.ffn_{part}{suffix}", *shape)
            for part, shape in (
                ("gate", (hidden, config.width)),
                ("up", (hidden, config.width)),
                ("down", (config.width, hidden)),
            )
        )

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(self.activation(self.gate(x), self.up(x)))


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    return x * mx.sigmoid(x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    return silu(gate) * up


def clamped_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate * sigmoid(1.702 gate) * (up + 1), gate at most 7 and up within -7..7."""
    gate = mx.minimum(gate, CLAMP_LIMIT)
    return gate * mx.sigmoid(CLAMP_SLOPE * gate) * (mx.clip(up, -CLAMP_LIMIT, CLAMP_LIMIT) + 1)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, with the approximation of GELU by tanh."""
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
    return 0.5 * gate * (1 + mx.tanh(inner)) * up


def qkv(
    weights: Weights, name: str, rows: tuple[int, int, int], columns: int
) -> tuple[Linear, Linear, Linear]:
    """Load the projections `name` + q, k and v, or the rows of `name` + qkv that are theirs."""
    if name + "qkv.weight" not in weights:
        q, k, v = (
            linear(weights, name + part, r, columns) for part, r in zip("qkv", rows, strict=True)
        )
        return q, k, v
    total = sum(rows)
    bias = weights.optional_vector(name + "qkv.bias", total)
    ends = (rows[0], rows[0] + rows[1], total)
    q, k, v = (
        Linear(
            weights.rows_of(name + "qkv.weight", total, end - count, end, columns),
            None if bias is None else bias[end - count : end],
        )
        for count, end in zip(rows, ends, strict=True)
    )
    return q, k, v


def linear(weights: Weights, name: str, rows: int, columns: int) -> Linear:
    """Load `name.weight` (rows, columns), and `name.bias` if there is one."""
    return Linear(
        weights.matrix(name + ".weight", rows, columns),
        weights.optional_vector(name + ".bias", rows),
    )


def required_norm(weights: Weights, name: str, size: int, eps: float) -> AnyNorm:
    """Load the norm `name.weight`, a layer norm where the file has `name.bias` too."""
    weight = weights.vector(name + ".weight", size)
    bias = weights.optional_vector(name + ".bias", size)
    return Norm(weight, eps) if bias is None else LayerNorm(weight, bias, eps)


def head_norm(weights: Weights, name: str, heads: int, dims: int, eps: float) -> Norm | None:
    """Load the norm `name.weight`, if there is one, of each head or of all heads as one vector."""
    if name + ".weight" not in weights:
        return None
    whole = weights.shape(name + ".weight") == (heads * dims,)
    return Norm(weights.vector(name + ".weight", heads * dims if whole else dims), eps)
