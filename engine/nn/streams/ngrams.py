"""Qwen4's embeddings of n-grams: hashed, so that rows of one large table serve all of them.

Axes: T tokens, S streams, D width, N tokens in the longest n-gram.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from engine.nn.cache.cache import LayerCache
from engine.nn.config import ModelConfig, NgramConfig
from engine.nn.recurrent import State, run_cached
from engine.nn.weights import Weights

LEAST_GATE = 1e-6  # hard-coded in the reference implementation, not in files


class NgramEmbedding:
    """What the n-grams that end at each token add to the residual streams.

    Their embeddings give a value, and a key for each stream that gates it. The gated values of the
    last tokens are also convolved, N tokens apart.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.ngrams is not None and config.streams is not None
        self.config, self.eps = config.ngrams, config.norm_eps
        self.shape = (config.streams.count, config.width)
        heads, name = len(self.config.sizes), f"blk.{layer}.ple_"
        rows, total = weights.shape("per_layer_token_embd.weight")[:1], math.prod(self.shape)
        embedded = heads * self.config.width
        self.table = weights.matrix("per_layer_token_embd.weight", *rows, self.config.width)
        self.key = weights.linear(name + "key", total, embedded)
        self.value = weights.linear(name + "value", config.width, embedded)
        self.key_gain, self.query_gain, self.gain = (
            weights.array(f"{name}norm_{part}.weight", total).reshape(self.shape)
            for part in ("key", "query", "conv")
        )
        taps = weights.array(name + "conv1d.weight", total, self.config.kernel)
        self.taps = mx.contiguous(taps.T).reshape(self.config.kernel, 1, *self.shape)
        reach = (self.config.kernel - 1) * self.config.longest
        self.state_shapes = ((self.config.longest - 1,), (reach, *self.shape))

    def __call__(
        self, x: mx.array, tokens: mx.array, cache: LayerCache | None, offset: int
    ) -> mx.array:
        """Return what is added to the streams x (T, S, D) of tokens (T,)."""
        # Ids are stored with 1 added: 0 stands before the sequence.
        parts = [tokens.astype(mx.float32) + 1, x.astype(mx.float32)]
        return run_cached(cache, offset, parts, self.state_shapes, self._advance).astype(x.dtype)

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Process ids (T,) and streams (T, S, D), after the ids and gated values in the state."""
        (ids, x), (earlier, tail) = parts, state
        ids = mx.concatenate([earlier, ids])
        count, longest = len(x), self.config.longest
        embedded = self.table.rows(ngram_rows(ids.astype(mx.int64) - 1, self.config).reshape(-1))
        embedded = embedded.reshape(count, -1)
        value = self.value(embedded).astype(mx.float32)[:, None]
        key = self._normed(self.key(embedded).reshape(x.shape), self.key_gain)
        score = (key * self._normed(x, self.query_gain)).sum(axis=-1, keepdims=True)
        score = score / math.sqrt(self.shape[1])
        gate = mx.sigmoid(mx.sqrt(mx.maximum(mx.abs(score), LEAST_GATE)) * mx.sign(score))
        gated = gate * value
        history = mx.concatenate([tail, self._normed(gated, self.gain)])
        mixed = mx.zeros_like(gated)
        for i in range(self.config.kernel):
            mixed = mixed + history[i * longest : i * longest + count] * self.taps[i]
        y = gated + mixed * mx.sigmoid(mixed)
        return y, (mx.contiguous(ids[count:]), mx.contiguous(history[count:]))

    def _normed(self, x: mx.array, gain: mx.array) -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.float32), None, self.eps) * gain


def ngram_rows(ids: mx.array, config: NgramConfig) -> mx.array:
    """Return the table's rows of the n-grams that end at each token: (N-1 + T,) -> (T, heads).

    ids: int64, with the N-1 before the first token, -1 if there are none. An n-gram reaches back
    to the last end of a text; what is before it counts as that token.
    """
    count = ids.size - config.longest + 1
    shifted, ended = [], mx.zeros((count,), dtype=mx.bool_)
    for back in range(config.longest):
        start = config.longest - 1 - back
        found = ids[start : start + count]
        ended = ended | (found < 0)
        shifted.append(mx.where(ended, config.end, found))
        if back:
            ended = ended | (found == config.end)
    factors = mx.array(config.multipliers, dtype=mx.int64)  # products wrap around
    mixed, rows = shifted[0] * factors[0], []
    for back in range(1, config.longest):
        mixed = mx.bitwise_xor(mixed, shifted[back] * factors[back])
        heads = slice((back - 1) * config.heads, back * config.heads)
        sizes = mx.array(config.sizes[heads], dtype=mx.int64)
        offsets = mx.array(config.offsets[heads], dtype=mx.int64)
        rows.append(mx.remainder(mixed[:, None], sizes) + offsets)
    return mx.concatenate(rows, axis=-1)
