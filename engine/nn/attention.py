"""Grouped-query attention over a cache.

Axes: T tokens, S cached tokens, D width, H query heads, K kv heads, d head width. There is only one
sequence, so the batch axis that MLX's attention operations require is always 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from engine.limits import MIN_CHUNK, SCORE_BYTES
from engine.nn.cache.cache import TokenCache
from engine.nn.config import ModelConfig
from engine.nn.norm import RMSNorm, head_norm
from engine.nn.rope import Rotary, Temperature
from engine.nn.weights import Linear, Weights


class Attention:
    """Grouped-query attention in all its variants.

    The file's tensors determine whether there are biases and sinks, whether q and k are normalised
    per head or as whole projections, and whether q, k and v are stored as one `attn_qkv`.
    rope: None if the layer has no rotary embedding. norm_after_rope: apply norms after the rotary
    embedding. l2_norm: normalise each head's q and k after the rotary embedding, without a gain.
    gated: the q projection also outputs a gate per head; output *= sigmoid(gate). In other files
    `attn_gate` computes it from the layer's input, for each head or each value; gate_activation
    takes the sigmoid's place. value_norm: normalise each head's v, without a gain.
    value_optional: if `attn_v` is missing, v is what `attn_k` computes, before its norm and rotary
    embedding. A layer that borrows keys and values has only queries: it is called with the lending
    layer's cache.
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
        gate_activation: Callable[[mx.array], mx.array] = mx.sigmoid,
        value_norm: bool = False,
        value_optional: bool = False,
        temperature: Temperature | None = None,
    ) -> None:
        source = config.kv_source(layer)
        self.heads, self.kv_heads = config.heads[layer], config.kv_heads[source]
        self.key_dim, self.value_dim = config.head_dims(layer)
        self.scale, self.score_cap = config.attention_scale, config.score_cap
        self.value_scale = config.value_scale
        self.window = config.window(layer)
        self.chunked, self.rope = config.chunked, rope
        self.norm_after_rope, self.gated, self.temperature = norm_after_rope, gated, temperature
        self.l2_eps = config.norm_eps if l2_norm else None
        name = f"blk.{layer}.attn_"
        width, mixed = config.width, self.heads * self.value_dim
        queries = self.heads * self.key_dim * (2 if gated else 1)
        dims, eps = self.key_dim, config.norm_eps
        self.borrows, self.k_norm = source != layer, None
        if self.borrows:
            self.q = weights.linear(name + "q", queries, width)
        else:
            keys, values = self.kv_heads * self.key_dim, self.kv_heads * self.value_dim
            rows = (queries, keys, values)
            self.q, self.k, self.v = qkv(weights, name, rows, width, value_optional)
            self.k_norm = head_norm(weights, name + "k_norm", self.kv_heads, dims, eps)
        self.q_norm = head_norm(weights, name + "q_norm", self.heads, dims, eps)
        self.output = weights.linear(name + "output", width, mixed)
        self.gate, self.gate_activation = None, gate_activation
        if shape := weights.shape(name + "gate.weight"):
            gates = self.heads if shape[0] == self.heads else mixed
            self.gate = weights.linear(name + "gate", gates, width)
        self.value_eps = eps if value_norm else None
        self.sinks = weights.optional_vector(name + "sinks.weight", self.heads)

    def __call__(self, x: mx.array, cache: TokenCache | None, offset: int) -> mx.array:
        q, gate = self.q(x), None
        if self.gated:
            q, gate = mx.split(q.reshape(x.shape[0], self.heads, -1), 2, axis=-1)
        q = self._rotate(q, self.heads, self.q_norm, offset, cache)
        if self.temperature is not None:
            q = self.temperature(q, offset)
        k, v, base = self._keys_and_values(x, cache, offset)
        mixed = self._attend_in_parts(q, k.astype(q.dtype), v.astype(q.dtype), offset, base)
        mixed = mixed.squeeze(0).swapaxes(0, 1)  # (T, H, d)
        if self.gate is not None:
            gate = self.gate(x).reshape(x.shape[0], self.heads, -1)
        if gate is not None:
            mixed = mixed * self.gate_activation(gate)
        return self.output(mixed.reshape(x.shape[0], -1))

    def _keys_and_values(
        self, x: mx.array, cache: TokenCache | None, offset: int
    ) -> tuple[mx.array, mx.array, int]:
        """Return k and v (1, K, S, d), and the position of their first token."""
        first = self._first_visible(offset)
        if self.borrows:
            assert cache is not None
            k, v = cache.read(first, offset + x.shape[0])
            return k, v, first
        projected = self.k(x)
        k = self._rotate(projected, self.kv_heads, self.k_norm, offset, cache)
        v = split_heads(projected if self.v is None else self.v(x), self.kv_heads)
        if self.value_scale != 1.0:
            v = v * self.value_scale
        if self.value_eps is not None:
            v = mx.fast.rms_norm(v, None, self.value_eps)
        if cache is None:
            return k, v, offset
        (k, v), base = cache.extend(offset, (k, v), first)
        return k, v, base

    def _rotate(
        self, x: mx.array, heads: int, norm: RMSNorm | None, offset: int, cache: TokenCache | None
    ) -> mx.array:
        """Normalise and rotate projected queries or keys: (T, heads * d) -> (1, heads, T, d)."""
        if norm is not None and not self.norm_after_rope:
            x = norm(x.reshape(x.shape[0], -1, norm.weight.size))
        x = split_heads(x.reshape(x.shape[0], -1), heads)
        if self.rope is not None:
            context = cache.context if cache is not None else offset + x.shape[2]
            x = self.rope(x, offset, context)
        if norm is not None and self.norm_after_rope:
            x = norm(x)
        if self.l2_eps is not None:
            x = mx.fast.rms_norm(x, None, self.l2_eps)
        return x

    def _first_visible(self, position: int) -> int:
        if not self.window:
            return 0
        if self.chunked:
            return position // self.window * self.window
        return max(0, position - self.window + 1)

    def _attend_in_parts(
        self, q: mx.array, k: mx.array, v: mx.array, offset: int, base: int
    ) -> mx.array:
        """Attend in batches of queries, to limit the memory for their scores.

        q (1, H, T, d) starts at position `offset`; k and v (1, K, S, d) start at position `base`.
        Returns (1, H, T, d).
        """
        tokens, parts = q.shape[2], []
        rows = max(MIN_CHUNK, SCORE_BYTES // (4 * self.heads * k.shape[2]))
        if tokens <= rows:
            return self._attend(q, k, v, offset, base)
        for start in range(0, tokens, rows):
            end = min(start + rows, tokens)
            first = max(self._first_visible(offset + start) - base, 0)
            visible = slice(first, offset + end - base)
            queries, keys, values = q[:, :, start:end], k[:, :, visible], v[:, :, visible]
            parts.append(self._attend(queries, keys, values, offset + start, base + first))
        return mx.concatenate(parts, axis=2)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, offset: int, base: int) -> mx.array:
        mask = self._mask(q.shape[2], k.shape[2], offset, base)
        if self.score_cap:
            return capped_attention(q, k, v, self.scale, self.score_cap, mask)
        scale, sinks = self.scale, None if self.sinks is None else self.sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)

    def _mask(self, tokens: int, keys: int, offset: int, base: int) -> mx.array | str | None:
        """Return the attention mask: (T, S) bool, "causal", or None if every key is visible."""
        if self._first_visible(offset + tokens - 1) <= base:
            return "causal" if tokens > 1 else None
        first = mx.array([self._first_visible(offset + token) for token in range(tokens)])
        positions, visible = mx.arange(offset, offset + tokens), mx.arange(base, base + keys)
        return (visible <= positions[:, None]) & (visible >= first[:, None])


def capped_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, cap: float, mask: mx.array | str | None
) -> mx.array:
    """Compute attention with soft-capped scores: cap * tanh(score / cap).

    q: (1, H, T, d). k, v: (1, K, S, d). The last query and the last key have the same position.
    mask: as in MLX's attention. Returns (1, H, T, d).
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


def split_heads(x: mx.array, heads: int) -> mx.array:
    """Split a projection into heads: (T, heads * d) -> (1, heads, T, d)."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)[None]


def qkv(
    weights: Weights,
    name: str,
    rows: tuple[int, int, int],
    columns: int,
    value_optional: bool = False,
) -> tuple[Linear, Linear, Linear | None]:
    """Load the q, k and v projections, which files may store as one `{name}qkv`.

    v is None if it is optional and missing.
    """
    if name + "qkv.weight" not in weights:
        q, k = (weights.linear(name + "qk"[i], rows[i], columns) for i in range(2))
        missing = value_optional and name + "v.weight" not in weights
        return q, k, None if missing else weights.linear(name + "v", rows[2], columns)
    total = sum(rows)
    bias = weights.optional_vector(name + "qkv.bias", total)
    ends = (rows[0], rows[0] + rows[1], total)
    q, k, v = (
        Linear(
            weights.matrix_rows(name + "qkv.weight", total, end - count, end, columns),
            None if bias is None else bias[end - count : end],
        )
        for count, end in zip(rows, ends, strict=True)
    )
    return q, k, v
