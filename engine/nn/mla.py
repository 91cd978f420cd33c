"""Multi-head latent attention (MLA) in its absorbed form, and the indexer that makes it sparse.

Each token caches one vector: its latent, followed by a rotary key that all heads share. Head h
computes the score (k_b[h] q_nope | q_pe) . (latent | pe) and outputs v_b[h] times the weighted sum
of latents (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Prefill also uses the absorbed form
(docs/decisions/0003-absorbed-latent-attention.md).

Axes: T tokens, D width, H heads, I indexer heads, d width of a cached vector or a head, L cached
tokens including the new ones, R latent rank.
"""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx

from engine.errors import GGUFError
from engine.kernels.base import QTensor, Rows
from engine.limits import INDEXER_BYTES
from engine.nn.attention import split_heads
from engine.nn.cache.cache import TokenCache
from engine.nn.config import IndexerConfig, ModelConfig, RopeConfig
from engine.nn.norm import LayerNorm, RMSNorm
from engine.nn.rope import RoPE, Temperature, yarn_magnitude
from engine.nn.weights import Linear, Weights

LATENT_EPS = INDEXER_EPS = 1e-6  # hard-coded in the reference implementations, not in files


class LatentAttention:
    """Attention over the latents of all tokens, or only of the tokens that an indexer chooses.

    rope: None if no part of a key is rotated. indexer: this layer's indexer, or an earlier layer's
    if this layer reuses its choice. If the file has `attn_gate`, each head's output is multiplied
    by the sigmoid of its gate.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        rope: RoPE | None,
        indexer: Indexer | None = None,
    ) -> None:
        assert config.latent is not None
        latent, width = config.latent, config.width
        self.rotary = rotary = config.rope.dims
        self.heads, self.rank, self.rope = config.heads[layer], latent.rank, rope
        self.nope_dims = latent.key_dim - rotary  # values per head that never are rotated
        self.scale = latent_scale(config)
        self.kernels = weights.kernels
        self.indexer, self.indexes = indexer, indexer is not None and indexer.layer == layer
        self.temperature = None
        if config.temperature_scale:
            self.temperature = Temperature(config.temperature_scale, config.temperature_length)
        name = f"blk.{layer}.attn_"
        queries = self.heads * latent.key_dim
        self.q_a = self.q_norm = None
        if rank := latent.query_rank:
            self.q_a = weights.linear(name + "q_a", rank, width)
            self.q_norm = RMSNorm(weights.array(name + "q_a_norm.weight", rank), LATENT_EPS)
        self.q = weights.linear(name + ("q_b" if rank else "q"), queries, rank or width)
        self.kv_a = weights.linear(name + "kv_a_mqa", self.rank + rotary, width)
        self.kv_norm = RMSNorm(weights.array(name + "kv_a_norm.weight", self.rank), LATENT_EPS)
        self.k_b, self.v_b = head_projections(config, weights, name, self.heads)
        self.output = weights.linear(name + "output", width, self.heads * latent.value_dim)
        self.gate: Linear | None = None
        if name + "gate.weight" in weights:
            self.gate = weights.linear(name + "gate", self.heads, width)

    def __call__(self, x: mx.array, cache: TokenCache | None, offset: int) -> mx.array:
        source = x if self.q_a is None or self.q_norm is None else self.q_norm(self.q_a(x))
        q = split_heads(self.q(source), self.heads)  # (1, H, T, d)
        if self.temperature is not None:
            q = self.temperature(q, offset)
        kv = self.kv_a(x)[None, None]  # (1, 1, T, R + rope)
        latents = self.kv_norm(kv[..., : self.rank])
        rotated = mx.concatenate([q[..., self.nope_dims :], kv[..., self.rank :]], axis=1)
        if self.rope is not None:
            rotated = self.rope(rotated, offset)
        absorbed = self.k_b.stack_matmul(by_token(q[..., : self.nope_dims]))  # (T, H, R)
        q = mx.concatenate([absorbed, by_token(rotated[:, : self.heads])], axis=-1) * self.scale
        cached = [mx.concatenate([latents, rotated[:, self.heads :]], axis=-1)]
        if self.indexes and self.indexer is not None:
            cached.append(self.indexer.keys(x, offset))
        if cache is None:
            rows = [Rows(part[0, 0]) for part in cached]
        else:
            cache.extend(offset, cached)
            rows = [buffer.rows(offset + x.shape[0]) for buffer in cache.buffers]
        if self.indexes and self.indexer is not None:
            self.indexer.choose(x, source, rows[1], offset)
        mixed = self.v_b.stack_matmul(self._attend(q, rows[0], offset))  # (T, H, value)
        if self.gate is not None:
            mixed = mixed * mx.sigmoid(self.gate(x))[..., None]
        return self.output(mixed.reshape(x.shape[0], -1))

    def _attend(self, q: mx.array, rows: Rows, offset: int) -> mx.array:
        """Attend to cached rows: scaled q (T, H, d), rows (L, d) -> (T, H, R).

        Tokens at positions >= `top` are processed one at a time, each with its own chosen rows.
        """
        if self.indexer is None or self.indexer.chosen is None:
            return self.kernels.latent_attention(q, rows, self.rank)
        dense = max(0, self.indexer.top - offset)  # new tokens that attend to all earlier tokens
        mixed = []
        if dense:
            visible = rows.take(slice(0, offset + dense))
            mixed.append(self.kernels.latent_attention(q[:dense], visible, self.rank))
        for i in range(dense, q.shape[0]):
            visible = rows.take(self.indexer.chosen[i - dense])
            mixed.append(self.kernels.latent_attention(q[i : i + 1], visible, self.rank))
        return mx.concatenate(mixed, axis=0)


class Indexer:
    """The lightning indexer, which chooses the `top` best-scoring cached tokens for each new token.

    A score is the sum over heads of weight * relu(q . k) (DeepSeek-V3.2-Exp, section 2.1). The
    published Hadamard matrix and scale are omitted because they do not affect the ranking.
    chosen: the positions (T', top) from the most recent call, for the T' new tokens at
    positions >= `top`; None if there are none. Later layers may reuse them.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: RoPE) -> None:
        assert config.latent is not None
        sizes = require_indexer(config)
        self.layer, self.rope = layer, rope
        self.heads, self.top = sizes.heads, sizes.top
        self.chosen: mx.array | None = None
        name = f"blk.{layer}.indexer."
        rows = sizes.heads * sizes.dims
        self.q = weights.linear(name + "attn_q_b", rows, config.latent.query_rank)
        self.k = weights.linear(name + "attn_k", sizes.dims, config.width)
        self.proj = weights.linear(name + "proj", sizes.heads, config.width)
        gain = weights.array(name + "k_norm.weight", sizes.dims)
        bias = weights.array(name + "k_norm.bias", sizes.dims)
        self.k_norm = LayerNorm(gain, bias, INDEXER_EPS)

    def keys(self, x: mx.array, offset: int) -> mx.array:
        """Compute keys for new tokens: (T, D) -> (1, 1, T, d)."""
        return self.rope(self.k_norm(self.k(x))[None, None], offset)

    def choose(self, x: mx.array, source: mx.array, keys: Rows, offset: int) -> None:
        """Set `chosen` for x (T, D) and keys (L, d). source: input to the query projection."""
        tokens, dense = x.shape[0], max(0, self.top - offset)
        if dense >= tokens:
            self.chosen = None
            return
        q = by_token(self.rope(split_heads(self.q(source), self.heads), offset))  # (T, I, d)
        q, weights = q.astype(mx.float32), self.proj(x).astype(mx.float32)[:, None]  # (T, 1, I)
        columns = keys.floats().T
        step = max(1, INDEXER_BYTES // (4 * self.heads * columns.shape[1]))
        found = []
        for start in range(dense, tokens, step):
            end = min(start + step, tokens)
            visible = offset + end
            scores = mx.maximum(q[start:end] @ columns[:, :visible], 0)  # (t, I, L)
            scores = (weights[start:end] @ scores).squeeze(1)  # (t, L)
            positions = mx.arange(offset + start, visible)[:, None]
            scores = mx.where(mx.arange(visible) <= positions, scores, -math.inf)
            found.append(mx.argpartition(-scores, kth=self.top - 1, axis=-1)[:, : self.top])
        self.chosen = mx.concatenate(found, axis=0)


def require_indexer(config: ModelConfig) -> IndexerConfig:
    """Return the indexer configuration. Raises GGUFError if the file has no indexer."""
    if config.latent is None or config.latent.indexer is None:
        raise GGUFError(f"{config.architecture}.attention.indexer.top_k is missing")
    return config.latent.indexer


def latent_rope(config: RopeConfig, interleaved: bool) -> RoPE:
    """Create the rotary embedding for latent attention, without YaRN's magnitude.

    Files contain `mscale_all_dim` but not `mscale`, which has the same value. If `mscale_all_dim`
    is set, `latent_scale` applies the magnitude to the scores instead. Otherwise, YaRN scales cos
    and sin as usual.
    """
    multiplier = 1.0 if config.log_multiplier else 0.0
    return RoPE(replace(config, log_multiplier=multiplier), interleaved)


def latent_scale(config: ModelConfig) -> float:
    """Return the factor on attention scores: the scale times YaRN's magnitude squared."""
    rope = config.rope
    if rope.scaling != "yarn" or not rope.log_multiplier:
        return config.attention_scale
    return config.attention_scale * yarn_magnitude(rope.factor, rope.log_multiplier) ** 2


def head_projections(
    config: ModelConfig, weights: Weights, name: str, heads: int
) -> tuple[QTensor, QTensor]:
    """Load k_b (H, R, nope) and v_b (H, value, R).

    Files from before April 2025 store both as one matrix, `attn_kv_b`, whose key rows must be
    transposed. Quantised blocks cannot be transposed, so k_b becomes float16: 17 MB per layer in
    DeepSeek-V3.
    """
    assert config.latent is not None
    rank, values = config.latent.rank, config.latent.value_dim
    nope = config.latent.key_dim - config.rope.dims
    both, shape = name + "kv_b.weight", (heads, nope + values, rank)
    if both in weights:
        k_b = weights.stacked(both, shape, 0, nope, transpose=True)
        return k_b, weights.stacked(both, shape, nope, nope + values)
    k_b = weights.matrix(name + "k_b.weight", heads, rank, nope)
    return k_b, weights.matrix(name + "v_b.weight", heads, values, rank)


def by_token(x: mx.array) -> mx.array:
    """Move the token axis to the front: (1, H, T, d) -> (T, H, d)."""
    return x[0].swapaxes(0, 1)
