"""Attention to the blocks of tokens that an indexer chooses, and to the last, unfinished block.

Axes: T tokens, D width, H query heads, K kv heads, I indexer heads, d head width, E blocks, S
cached tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from engine.errors import GGUFError
from engine.nn.attention import Attention
from engine.nn.cache.cache import LayerCache, PartedCache, TokenCache
from engine.nn.config import ModelConfig
from engine.nn.mla import by_token
from engine.nn.norm import RMSNorm
from engine.nn.rope import RoPE
from engine.nn.streams.compressed import best_entries, extend_entries
from engine.nn.weights import Weights


class BlockIndexer:
    """The indexer of Qwen4, which compares queries with the mean of the keys in each block.

    A mean is normalised, then rotated as the block's first key. top: how many blocks it chooses.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.blocks is not None
        shape, self.ratio = config.blocks.indexer, config.blocks.ratios[layer]
        self.heads, self.top, beyond = shape.heads, *divmod(shape.top, self.ratio)
        if beyond or not self.top:
            name = f"{config.architecture}.attention.indexer.top_k"
            raise GGUFError(f"{name} must be a multiple of the tokens in a block ({self.ratio})")
        name = f"blk.{layer}.indexer."
        self.q = weights.linear(name + "q_proj", shape.heads * shape.dims, config.width)
        self.k = weights.linear(name + "k_proj", shape.dims, config.width)
        self.q_norm, self.k_norm = (
            RMSNorm(weights.array(f"{name}{part}_norm.weight", shape.dims), config.norm_eps)
            for part in "qk"
        )
        self.rope = RoPE(config.rope, interleaved=False)
        slower = mx.full((config.rope.dims // 2,), 1 / self.ratio)
        self.block_rope = RoPE(config.rope, interleaved=False, divisors=slower)

    def choose(
        self, x: mx.array, raw: TokenCache, merged: TokenCache, offset: int
    ) -> mx.array | None:
        """Return the blocks that each token of x (T, D) sees, (T, top), or None if it sees all.

        Some of them may not be complete.
        """
        keys = self.k(x)[None, None]
        blocks = extend_entries(raw, merged, offset, [keys], 0, self._merge)[0]
        if blocks.shape[2] <= self.top:
            return None
        q = self.q_norm(self.q(x).reshape(len(x), self.heads, -1)).swapaxes(0, 1)[None]
        q = by_token(self.rope(q, offset))
        return best_entries(q, None, blocks, self.ratio, self.top, offset)

    def _merge(self, held: Sequence[mx.array], start: int) -> list[mx.array]:
        keys = held[0].astype(mx.float32)
        means = keys.reshape(-1, self.ratio, keys.shape[-1]).mean(axis=1)
        return [self.block_rope(self.k_norm(means)[None, None], start)]


class SparseAttention(Attention):
    """Gated attention in which an indexer chooses the blocks that each token sees."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: RoPE) -> None:
        super().__init__(config, weights, layer, rope, gated=True)
        self.indexer = BlockIndexer(config, weights, layer)
        self.chosen: mx.array | None = None  # of the tokens from position `first` on
        self.first = 0

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        assert isinstance(cache, PartedCache)
        kept, raw, merged = (part for part in cache.parts if isinstance(part, TokenCache))
        self.chosen, self.first = self.indexer.choose(x, raw, merged, offset), offset
        return super().__call__(x, kept, offset)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, offset: int, base: int) -> mx.array:
        if self.chosen is None or q.shape[2] > 1:
            return super()._attend(q, k, v, offset, base)
        ratio, chosen = self.indexer.ratio, self.chosen[offset - self.first]
        first = (offset + 1) // ratio * ratio
        rows = (chosen[:, None] * ratio + mx.arange(ratio)).reshape(-1)
        rows = mx.concatenate([rows, mx.arange(first, offset + 1).astype(rows.dtype)])
        return super()._attend(q, k[:, :, rows], v[:, :, rows], rows.size - 1, 0)

    def _mask(self, tokens: int, keys: int, offset: int, base: int) -> mx.array | str | None:
        if self.chosen is None or tokens == 1:
            return super()._mask(tokens, keys, offset, base)
        ratio = self.indexer.ratio
        chosen = self.chosen[offset - self.first : offset - self.first + tokens]
        seen = mx.zeros((tokens, keys // ratio + 1), dtype=mx.bool_)
        seen = mx.put_along_axis(seen, chosen, mx.array(True), axis=-1)
        positions, own = mx.arange(keys), mx.arange(offset, offset + tokens)[:, None]
        unfinished = positions >= (own + 1) // ratio * ratio
        return (positions <= own) & (unfinished | mx.repeat(seen, ratio, axis=1)[:, :keys])
