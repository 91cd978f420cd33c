"""Attention over the last tokens and over entries, which stand for blocks of earlier ones.

Keys and values are the same rows, with one head for all queries. A layer's entries are merged from
blocks of `ratio` tokens as soon as a block is complete. With a small ratio, an indexer chooses
some of them for each token; with a large one, a token sees all.

Axes: T tokens, D width, H query heads, I indexer heads, G groups of heads, d width of a row, E
entries, S rows of the last tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx

from engine.errors import GGUFError
from engine.limits import INDEXER_BYTES, MIN_CHUNK, SCORE_BYTES
from engine.nn.attention import split_heads
from engine.nn.cache.cache import LayerCache, PartedCache, TokenCache
from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.config.model import OVERLAPPING
from engine.nn.mla import by_token
from engine.nn.norm import RMSNorm
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


class CompressedAttention:
    """DeepSeek V4's attention.

    The last values of queries and rows are rotated. Rows are values too, so the output is rotated
    back. A layer with entries rotates everything with a base of its own and stretches it (YaRN).
    Each head has a sink. The output projection has a low rank for each group of heads.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.blocks is not None and config.entries is not None
        shape, width, eps = config.entries, config.width, config.norm_eps
        self.heads, self.dims, self.window = (
            config.heads[layer],
            config.key_dim,
            config.window(layer),
        )
        self.scale, self.eps, self.ratio = config.attention_scale, eps, config.blocks.ratios[layer]
        rope = config.window_rope
        if self.ratio:  # YaRN's magnitude is not used
            rope = replace(config.rope, base=shape.rope_base, yarn_factor=1.0, attention_factor=1.0)
        self.rotate, self.rotate_back = TailRoPE(rope), TailRoPE(rope, -1.0)
        name = f"blk.{layer}.attn_"
        self.q_a = weights.linear(name + "q_a", shape.query_rank, width)
        self.q_norm = RMSNorm(weights.array(name + "q_a_norm.weight", shape.query_rank), eps)
        self.q = weights.linear(name + "q_b", self.heads * self.dims, shape.query_rank)
        self.kv = weights.linear(name + "kv", self.dims, width)
        self.kv_norm = RMSNorm(weights.array(name + "kv_a_norm.weight", self.dims), eps)
        self.sinks = weights.optional_vector(name + "sinks.weight", self.heads)
        groups, rank = shape.output_groups, shape.output_rank
        self.groups = (groups, self.heads // groups * self.dims)
        self.output_a = weights.stack(name + "output_a.weight", groups, rank, self.groups[1])
        self.output_b = weights.linear(name + "output_b", width, groups * rank)
        self.compressors: list[Compressor] = []
        self.chooser: Chooser | None = None
        if self.ratio:
            merge = Compressor(config, weights, name + "compressor", self.ratio, self.dims, rope)
            self.compressors.append(merge)
        if self.ratio == OVERLAPPING:
            self.chooser = Chooser(config, weights, layer, rope)
            dims, prefix = config.blocks.indexer.dims, f"blk.{layer}.indexer_compressor"
            self.compressors.append(Compressor(config, weights, prefix, self.ratio, dims, rope))

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        assert isinstance(cache, PartedCache)
        latent = self.q_norm(self.q_a(x))
        q = mx.fast.rms_norm(split_heads(self.q(latent), self.heads), None, self.eps)
        q = self.rotate(q, offset)
        row = self.rotate(self.kv_norm(self.kv(x))[None, None], offset)
        first = max(0, offset - self.window + 1)
        last = cache.parts[0]
        assert isinstance(last, TokenCache)
        rows = last.extend(offset, [row], first)[0][0].astype(q.dtype)
        entries = [rows[:, :, :0]]
        if self.ratio:
            entries = self._entries(x, cache, offset)
        mixed = self._attend(q, rows, first, entries, (x, latent), offset)
        mixed = by_token(self.rotate_back(mixed, offset)).reshape(len(x), *self.groups)
        return self.output_b(self.output_a.stack_matmul(mixed).reshape(len(x), -1))

    def _entries(self, x: mx.array, cache: PartedCache, offset: int) -> list[mx.array]:
        """Merge the blocks that x (T, D) completes. Return all entries, (1, 1, E, d) for each kind.

        The first kind is for attention. If there is an indexer, the second kind is for it.
        """
        raw, merged = cache.parts[1:]
        assert isinstance(raw, TokenCache) and isinstance(merged, TokenCache)
        projected = [part for merge in self.compressors for part in merge.project(x)]

        def merge(held: Sequence[mx.array], start: int) -> list[mx.array]:
            pairs = zip(self.compressors, held[::2], held[1::2], strict=True)
            return [one(kv, gate, start) for one, kv, gate in pairs]

        overlaps = self.ratio == OVERLAPPING
        return extend_entries(raw, merged, offset, projected, int(overlaps), merge)

    def _attend(
        self,
        q: mx.array,
        rows: mx.array,
        first: int,
        entries: list[mx.array],
        inputs: tuple[mx.array, mx.array],
        offset: int,
    ) -> mx.array:
        """Attend: q (1, H, T, d), rows (1, 1, S, d) from position `first` on -> (1, H, T, d).

        inputs: what the indexer reads, each (T, n).
        """
        tokens, seen, (x, latent) = q.shape[2], entries[0].astype(q.dtype), inputs
        sinks = None if self.sinks is None else self.sinks.astype(q.dtype)
        choose = self.chooser if self.chooser and seen.shape[2] > self.chooser.top else None
        if tokens == 1:
            if choose is not None:
                seen = seen[:, :, choose(x, latent, entries[1], offset)[0]]
            keys = mx.concatenate([rows, seen], axis=2)
            return mx.fast.scaled_dot_product_attention(
                q, keys, keys, scale=self.scale, sinks=sinks
            )
        keys, parts = mx.concatenate([rows, seen], axis=2), []
        step = max(MIN_CHUNK, SCORE_BYTES // (4 * self.heads * keys.shape[2]))
        positions = mx.arange(first, first + rows.shape[2])
        for start in range(0, tokens, step):
            end = min(start + step, tokens)
            own = mx.arange(offset + start, offset + end)[:, None]
            mask = (positions <= own) & (positions > own - self.window)
            if self.ratio:
                complete = mx.arange(seen.shape[2]) < (own + 1) // self.ratio
                if choose is not None:
                    ids = choose(x[start:end], latent[start:end], entries[1], offset + start)
                    chosen = mx.zeros(complete.shape, dtype=mx.bool_)
                    complete &= mx.put_along_axis(chosen, ids, mx.array(True), axis=-1)
                mask = mx.concatenate([mask, complete], axis=-1)
            parts.append(
                mx.fast.scaled_dot_product_attention(
                    q[:, :, start:end], keys, keys, scale=self.scale, mask=mask, sinks=sinks
                )
            )
        return mx.concatenate(parts, axis=2)


class Compressor:
    """Merges blocks of tokens into entries, which are weighted sums of what each token gives.

    The weights are a softmax over the tokens, for each value. If blocks overlap, a token gives two
    rows and two weights: to the entry after its own, and to its own.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        name: str,
        ratio: int,
        dims: int,
        rope: RopeConfig,
    ) -> None:
        self.ratio, self.dims, self.overlaps = ratio, dims, ratio == OVERLAPPING
        wide = 2 * dims if self.overlaps else dims
        self.kv = weights.linear(name + "_kv", wide, config.width)
        self.gate = weights.linear(name + "_gate", wide, config.width)
        ape = weights.matrix(name + "_ape.weight", ratio, wide).rows(mx.arange(ratio))
        self.places = ape.astype(mx.float32)
        self.norm = RMSNorm(weights.array(name + "_norm.weight", dims), config.norm_eps)
        self.rotate = TailRoPE(rope, ratio)  # an entry is where its block begins

    def project(self, x: mx.array) -> list[mx.array]:
        """Compute what each token gives, and its weight: (T, D) -> two of (1, 1, T, n)."""
        return [self.kv(x)[None, None], self.gate(x)[None, None]]

    def __call__(self, kv: mx.array, gate: mx.array, start: int) -> mx.array:
        """Merge whole blocks into entries, the first of which has the number `start`.

        kv, gate: (1, 1, n * ratio, ...). If blocks overlap and start > 0, they begin with one
        block more. Returns (1, 1, n, d).
        """
        kv, gate = (
            part.astype(mx.float32).reshape(-1, self.ratio, part.shape[-1]) for part in (kv, gate)
        )
        gate = gate + self.places
        if self.overlaps:
            d = self.dims
            kv = self._overlapped(kv[..., :d], kv[..., d:], 0.0, start)
            gate = self._overlapped(gate[..., :d], gate[..., d:], -math.inf, start)
        merged = (kv * mx.softmax(gate, axis=1)).sum(axis=1)
        return self.rotate(self.norm(merged)[None, None], start)

    def _overlapped(self, earlier: mx.array, own: mx.array, fill: float, start: int) -> mx.array:
        """Join the rows of a block and of the one before it: (n, 2 * ratio, d)."""
        if start:
            return mx.concatenate([earlier[:-1], own[1:]], axis=1)
        none = mx.full((1, *earlier.shape[1:]), fill)
        return mx.concatenate([mx.concatenate([none, earlier[:-1]]), own], axis=1)


class Chooser:
    """The indexer, which chooses the `top` entries that each token sees."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: RopeConfig) -> None:
        assert config.blocks is not None and config.entries is not None
        shape, name = config.blocks.indexer, f"blk.{layer}.indexer."
        self.heads, self.top, self.ratio = shape.heads, shape.top, config.blocks.ratios[layer]
        rank = config.entries.query_rank
        self.q = weights.linear(name + "attn_q_b", shape.heads * shape.dims, rank)
        self.proj = weights.linear(name + "proj", shape.heads, config.width)
        self.rotate = TailRoPE(rope)

    def __call__(self, x: mx.array, latent: mx.array, entries: mx.array, offset: int) -> mx.array:
        """Return the entries that each token sees, of which some may not be complete: (T, top).

        x: (T, D). latent: input to the query projection. entries: (1, 1, E, d).
        """
        q = by_token(self.rotate(split_heads(self.q(latent), self.heads), offset))
        weights = self.proj(x).astype(mx.float32)
        return best_entries(q, weights, entries, self.ratio, self.top, offset)


def best_entries(
    q: mx.array, weights: mx.array | None, entries: mx.array, ratio: int, top: int, offset: int
) -> mx.array:
    """Return the `top` entries with the largest sum over heads of weight * relu(q . k): (T, top).

    If fewer are complete at a token, the rest are any others. q: (T, I, d). weights: (T, I), or
    None for the same ones. entries: (1, 1, E, d), more than `top`.
    """
    q, columns = q.astype(mx.float32), entries[0, 0].astype(mx.float32).T
    tokens, numbers, found = len(q), mx.arange(columns.shape[1]), []
    step = max(1, INDEXER_BYTES // (4 * q.shape[1] * columns.shape[1]))
    for start in range(0, tokens, step):
        end = min(start + step, tokens)
        scores = mx.maximum(q[start:end] @ columns, 0)  # (t, I, E)
        if weights is not None:
            scores = scores * weights[start:end, :, None]
        complete = (mx.arange(offset + start, offset + end)[:, None] + 1) // ratio
        scores = mx.where(numbers < complete, scores.sum(axis=1), -math.inf)
        found.append(mx.argpartition(-scores, kth=top - 1, axis=-1)[:, :top])
    return mx.concatenate(found)


def extend_entries(
    raw: TokenCache,
    merged: TokenCache,
    offset: int,
    projected: Sequence[mx.array],
    earlier: int,
    merge: Callable[[Sequence[mx.array], int], list[mx.array]],
) -> list[mx.array]:
    """Cache what new tokens give to entries, and the entries of blocks that are now complete.

    projected: of the tokens from position `offset` on, each (1, 1, T, n). earlier: how many blocks
    before its own an entry reads. merge: receives what the tokens of these blocks gave, and the
    number of the first entry. Returns all entries, each (1, 1, E, d).
    """
    ratio, end = merged.stride, offset + projected[0].shape[2]
    done, complete = offset // ratio, end // ratio
    start = max(0, done - earlier)
    held, _ = raw.extend(offset, projected, start * ratio)
    if complete > done:
        count = (complete - start) * ratio
        merged.extend(done, merge([part[:, :, :count] for part in held], done))
    return merged.read(0, complete)


def require_parts(config: ModelConfig) -> None:
    """Raise GGUFError if keys are missing that a model with entries needs."""
    for part, key in (
        (config.entries, "attention.output_group_count"),
        (config.streams, "hyper_connection.count"),
        (config.experts, "expert_count"),
    ):
        if part is None:
            raise GGUFError(f"{config.architecture}.{key} is missing")


class TailRoPE:
    """A rotary embedding of the last values, with interleaved pairs.

    speed: multiplies positions.
    """

    def __init__(self, config: RopeConfig, speed: float = 1.0) -> None:
        divisors = mx.full((config.dims // 2,), 1 / speed)
        self.dims, self.rope = config.dims, RoPE(config, interleaved=True, divisors=divisors)

    def __call__(self, x: mx.array, offset: int) -> mx.array:
        """Rotate x (1, H, T, d), whose first position is `offset`."""
        fixed = x.shape[-1] - self.dims
        rotated = self.rope(x[..., fixed:], offset)
        return mx.concatenate([x[..., :fixed], rotated], axis=-1) if fixed else rotated
