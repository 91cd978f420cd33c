"""Multi-head latent attention, with the heads' key and value projections absorbed into the query
and the output, and the indexer that makes it sparse.

A token keeps one vector, its latent and a rotary part that all heads share, and no keys or values:
head h scores it by (k_b[h] q_nope | q_pe) . (latent | pe), and its output is v_b[h] times the mix
of latents (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Prefill is absorbed as well; decision 3
has the measurements.

Axes: T tokens, D width, H heads, I heads of the indexer, d width of what is attended to, L tokens
so far with the new ones, R rank of the latent.
"""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx

from engine.errors import GGUFError
from engine.kernels.base import QTensor, Rows
from engine.limits import INDEXER_BYTES
from engine.nn.attention import split_heads
from engine.nn.cache import TokenCache
from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.moe import feed_forward
from engine.nn.norm import LayerNorm, RMSNorm
from engine.nn.rope import Rope, Temperature, yarn_magnitude
from engine.nn.weights import Weights

LATENT_EPS = 1e-6  # of the norms inside the attention: fixed in the models' own code, in no file
INDEXER_EPS = 1e-6


class LatentAttention:
    """Attention over latents, for all tokens or for those that an indexer chooses.

    indexer: that of this layer, or of an earlier one whose choice this layer follows.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        rope: Rope,
        indexer: Indexer | None = None,
    ) -> None:
        assert config.latent is not None
        latent, width = config.latent, config.width
        self.heads, self.rank, self.rope = config.heads, latent.rank, rope
        self.stays = latent.key_dim - rope.dims  # values of a head's query that do not turn
        self.scale = latent_scale(config)
        self.kernels = weights.kernels
        self.indexer, self.indexes = indexer, indexer is not None and indexer.layer == layer
        self.temperature = None
        if config.temperature_scale:
            self.temperature = Temperature(config.temperature_scale, config.temperature_length)
        name = f"blk.{layer}.attn_"
        queries = self.heads * latent.key_dim
        self.q_a = self.q_norm = None
        if latent.query_rank:
            self.q_a = weights.linear(name + "q_a", latent.query_rank, width)
            self.q_norm = latent_norm(weights, name + "q_a_norm", latent.query_rank)
            self.q = weights.linear(name + "q_b", queries, latent.query_rank)
        else:
            self.q = weights.linear(name + "q", queries, width)
        self.kv_a = weights.linear(name + "kv_a_mqa", self.rank + rope.dims, width)
        self.kv_norm = latent_norm(weights, name + "kv_a_norm", self.rank)
        self.k_b, self.v_b = head_projections(config, weights, name)
        self.output = weights.linear(name + "output", width, self.heads * latent.value_dim)

    def __call__(self, x: mx.array, cache: TokenCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D). Without a cache the tokens see only each other."""
        source = x if self.q_a is None or self.q_norm is None else self.q_norm(self.q_a(x))
        q = split_heads(self.q(source), self.heads)  # (1, H, T, d)
        if self.temperature is not None:
            q = self.temperature(q, offset)
        kv = self.kv_a(x)[None, None]  # (1, 1, T, R + rope)
        latents = self.kv_norm(kv[..., : self.rank])
        turned = mx.concatenate([q[..., self.stays :], kv[..., self.rank :]], axis=1)
        turned = self.rope(turned, offset)
        absorbed = self.k_b.stack_matmul(by_token(q[..., : self.stays]))  # (T, H, R)
        q = mx.concatenate([absorbed, by_token(turned[:, : self.heads])], axis=-1) * self.scale
        kept = [mx.concatenate([latents, turned[:, self.heads :]], axis=-1)]
        if self.indexes and self.indexer is not None:
            kept.append(self.indexer.keys(x, offset))
        if cache is None:
            rows = [Rows(part[0, 0]) for part in kept]
        else:
            cache.extend(offset, kept)
            rows = [buffer.rows(offset + x.shape[0]) for buffer in cache.buffers]
        if self.indexes and self.indexer is not None:
            self.indexer.choose(x, source, rows[1], offset)
        mixed = self._attend(q, rows[0], offset)  # (T, H, R)
        return self.output(self.v_b.stack_matmul(mixed).reshape(x.shape[0], -1))

    def _attend(self, q: mx.array, rows: Rows, offset: int) -> mx.array:
        """Attend: q (T, H, d) scaled, rows (L, d) -> (T, H, R).

        Beyond the indexer's `top` every token has rows of its own, and is attended to by itself.
        """
        if self.indexer is None or self.indexer.chosen is None:
            return self.kernels.latent_attention(q, rows, self.rank)
        dense = max(0, self.indexer.top - offset)  # new tokens that see no more than `top`
        mixed = []
        if dense:
            seen = rows.take(slice(0, offset + dense))
            mixed.append(self.kernels.latent_attention(q[:dense], seen, self.rank))
        for i in range(dense, q.shape[0]):
            seen = rows.take(self.indexer.chosen[i - dense])
            mixed.append(self.kernels.latent_attention(q[i : i + 1], seen, self.rank))
        return mx.concatenate(mixed, axis=0)


class Indexer:
    """The lightning indexer: scores every token so far for each new one, and keeps the best `top`.

    A key of one head for each token and I queries: sum over heads of weight * relu(query . key)
    (DeepSeek-V3.2-Exp, section 2.1). The published models also turn both by the same Hadamard
    matrix, which changes no score, and scale the weights, which changes no order.
    chosen: of the last call, the ids (T', top) of what each new token sees, but for those that see
    no more than `top`; None where those are all. Layers after this one may follow it.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: Rope) -> None:
        assert config.latent is not None and config.latent.indexer is not None
        sizes = config.latent.indexer
        self.layer, self.rope = layer, rope
        self.heads, self.top = sizes.heads, sizes.top
        self.chosen: mx.array | None = None
        name = f"blk.{layer}.indexer."
        rows = sizes.heads * sizes.dims
        self.q = weights.linear(name + "attn_q_b", rows, config.latent.query_rank)
        self.k = weights.linear(name + "attn_k", sizes.dims, config.width)
        self.proj = weights.linear(name + "proj", sizes.heads, config.width)
        self.k_norm = LayerNorm(
            weights.vector(name + "k_norm.weight", sizes.dims),
            weights.vector(name + "k_norm.bias", sizes.dims),
            INDEXER_EPS,
        )

    def keys(self, x: mx.array, offset: int) -> mx.array:
        """Make the keys of new tokens: (T, D) -> (1, 1, T, d)."""
        return self.rope(self.k_norm(self.k(x))[None, None], offset)

    def choose(self, x: mx.array, source: mx.array, keys: Rows, offset: int) -> None:
        """Set `chosen` for x (T, D), whose queries come from `source`; keys (L, d)."""
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


def sparse_decoder(config: ModelConfig, weights: Weights, indexer_rope: Rope) -> Decoder:
    """Put a decoder of latent attention together in which every layer has or follows an indexer."""
    if config.latent is None or config.latent.indexer is None:
        raise GGUFError(f"{config.architecture}.attention.indexer.top_k is missing")
    rope = latent_rope(config.rope, interleaved=True)
    indexers: list[Indexer] = []
    for layer, own in enumerate(config.latent.indexer.own):
        made = Indexer(config, weights, layer, indexer_rope) if own else indexers[-1]
        indexers.append(made)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: LatentAttention(config, weights, layer, rope, indexers[layer]),
        lambda layer: feed_forward(config, weights, layer),
    )


def latent_rope(config: RopeConfig, interleaved: bool) -> Rope:
    """Make the rotary embedding of latent attention, which YaRN does not magnify.

    Published models give `mscale` and `mscale_all_dim` as one number; a file holds the latter only,
    and `latent_scale` heeds it. Where it holds neither, cos and sin are magnified as usual.
    """
    multiplier = 1.0 if config.log_multiplier else 0.0
    return Rope(replace(config, log_multiplier=multiplier), interleaved)


def latent_scale(config: ModelConfig) -> float:
    """Say what scores are multiplied by: that of the width of a head, and YaRN's magnitude."""
    rope = config.rope
    if rope.scaling != "yarn" or not rope.log_multiplier:
        return config.attention_scale
    return config.attention_scale * yarn_magnitude(rope.factor, rope.log_multiplier) ** 2


def latent_norm(weights: Weights, name: str, size: int) -> RMSNorm:
    """Load a norm of a low-rank vector."""
    return RMSNorm(weights.vector(name + ".weight", size), LATENT_EPS)


def head_projections(config: ModelConfig, weights: Weights, name: str) -> tuple[QTensor, QTensor]:
    """Load k_b (H, R, nope) and v_b (H, value, R).

    Files from before April 2025 hold both as one matrix `attn_kv_b`. Its rows for values are
    copied as they are; those for keys must be turned, which blocks of quantised rows cannot be, and
    are kept in float16: 2 bytes for each of H * R * nope weights, 17 MB a layer of DeepSeek-V3.
    """
    assert config.latent is not None
    heads, rank, values = config.heads, config.latent.rank, config.latent.value_dim
    stays = config.latent.key_dim - config.rope.dims
    if name + "kv_b.weight" not in weights:
        return (
            weights.matrix(name + "k_b.weight", heads, rank, stays),
            weights.matrix(name + "v_b.weight", heads, values, rank),
        )
    shape = (heads, stays + values, rank)
    return (
        weights.transposed(name + "kv_b.weight", shape, 0, stays),
        weights.stacked(name + "kv_b.weight", shape, stays, stays + values),
    )


def by_token(x: mx.array) -> mx.array:
    """Bring tokens first: (1, H, T, d) -> (T, H, d)."""
    return x[0].swapaxes(0, 1)
