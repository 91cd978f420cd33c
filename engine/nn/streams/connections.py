"""Hyper-connections: several residual streams, which each part of a block reads as one vector.

What a part computes is added to every stream, each in its own share. All streams begin as the
token's embedding. Shares are float32. Axes: T tokens, S streams, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from engine.errors import GGUFError
from engine.nn.cache.cache import LayerCache, PartedCache
from engine.nn.config import ModelConfig
from engine.nn.decoder import Mixer
from engine.nn.norm import AnyNorm, RMSNorm
from engine.nn.streams.ngrams import NgramEmbedding
from engine.nn.weights import Weights

Shares = tuple[mx.array, ...]


class Streams(Protocol):
    """The streams around one part of a block."""

    def read(self, x: mx.array) -> tuple[mx.array, Shares]:
        """Mix the streams: x (T, S, D) -> (T, D), and what `write` needs."""

    def write(self, x: mx.array, y: mx.array, shares: Shares) -> mx.array:
        """Add y (T, D) to the streams x (T, S, D)."""


class ManifoldStreams:
    """DeepSeek V4's streams (arXiv 2512.24880). Each part of a block also mixes them.

    The matrix that mixes them has positive entries; scaling its columns and rows in turn makes
    the sum of each about 1.
    """

    def __init__(self, config: ModelConfig, weights: Weights, name: str) -> None:
        assert config.streams is not None
        self.count, self.iterations = config.streams.count, config.streams.iterations
        self.eps, self.norm_eps = config.streams.eps, config.norm_eps
        count = self.count * (2 + self.count)
        self.project = weights.matrix(name + "_fn.weight", count, self.count * config.width)
        self.base = weights.array(name + "_base.weight", count)
        self.scales = weights.array(name + "_scale.weight", 3)

    def read(self, x: mx.array) -> tuple[mx.array, Shares]:
        count = self.count
        scores = flat_scores(self.project.matmul, x, self.norm_eps)
        parts = mx.split(scores, [count, 2 * count], axis=-1)
        bases = mx.split(self.base, [count, 2 * count])
        before, after, mixed = (part * self.scales[i] + bases[i] for i, part in enumerate(parts))
        mix = mx.softmax(mixed.reshape(-1, count, count), axis=-1) + self.eps
        mix = mix / (mix.sum(axis=-2, keepdims=True) + self.eps)
        for _ in range(self.iterations - 1):
            mix = mix / (mix.sum(axis=-1, keepdims=True) + self.eps)
            mix = mix / (mix.sum(axis=-2, keepdims=True) + self.eps)
        return weighted(x, mx.sigmoid(before) + self.eps), (2 * mx.sigmoid(after), mix)

    def write(self, x: mx.array, y: mx.array, shares: Shares) -> mx.array:
        added, mix = shares
        streams = mix.swapaxes(-1, -2) @ x.astype(mx.float32)
        return (added[..., None] * y[:, None] + streams).astype(x.dtype)


class ManifoldEnd:
    """The end of DeepSeek V4's streams: their weighted sum, normalised. (T, S, D) -> (T, D)."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        assert config.streams is not None
        count = config.streams.count
        self.eps, self.norm_eps = config.streams.eps, config.norm_eps
        self.project = weights.matrix("output_hc_fn.weight", count, count * config.width)
        self.base = weights.array("output_hc_base.weight", count)
        self.scale = weights.array("output_hc_scale.weight", 1)
        self.norm = RMSNorm(weights.array("output_norm.weight", config.width), config.norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        scores = flat_scores(self.project.matmul, x, self.norm_eps) * self.scale + self.base
        return self.norm(weighted(x, mx.sigmoid(scores) + self.eps))


class GatedStreams:
    """Qwen4's streams, of which a part reads the mean of gated and normalised ones.

    The gates come from all streams through a projection of low rank. writes: whether a part
    writes to them, which the end of the model does not.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, name: str, writes: bool = True
    ) -> None:
        assert config.streams is not None
        self.count, self.eps = config.streams.count, config.norm_eps
        width, rank = self.count * config.width, config.streams.rank
        self.gain = weights.array(name + "_norm.weight", width).reshape(self.count, config.width)
        self.down = weights.matrix(name + "_down.weight", rank, width)
        self.up = weights.matrix(name + "_up.weight", width, rank)
        self.inject = weights.matrix(name + "_inject.weight", self.count, width) if writes else None

    def read(self, x: mx.array) -> tuple[mx.array, Shares]:
        normed = mx.fast.rms_norm(x.astype(mx.float32), None, self.eps) * self.gain
        row = normed.reshape(len(x), -1)
        low = self.down.matmul(row) / self.count
        gates = mx.sigmoid(self.up.matmul(low * mx.sigmoid(low))).reshape(x.shape)
        mixed = (gates * normed).mean(axis=1).astype(x.dtype)
        if self.inject is None:
            return mixed, ()
        return mixed, (2 * mx.sigmoid(self.inject.matmul(row) / self.count),)

    def write(self, x: mx.array, y: mx.array, shares: Shares) -> mx.array:
        return (x + shares[0][..., None] * y[:, None]).astype(x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        return self.read(x)[0]


@dataclass(frozen=True, slots=True)
class StreamBlock:
    """A mixer, then a feed-forward layer, which both read and write streams.

    A norm is None if the streams normalise what they give. table: the experts that each token
    chooses, (V, k); None if a router chooses them. ngrams: what n-grams of tokens add to the
    streams first, with the second part of the layer's cache.
    """

    mixer_streams: Streams
    mixer: Mixer
    feed_forward_streams: Streams
    feed_forward: Callable[..., mx.array]
    mixer_norm: AnyNorm | None = None
    feed_forward_norm: AnyNorm | None = None
    table: mx.array | None = None
    ngrams: NgramEmbedding | None = None

    def __call__(
        self, x: mx.array, cache: LayerCache | None, offset: int, embedded: mx.array | None = None
    ) -> mx.array:
        """Run the block: x (T, S, D) -> (T, S, D). embedded: the ids of the tokens (T,)."""
        assert embedded is not None
        if self.ngrams is not None:
            own = None
            if isinstance(cache, PartedCache):
                cache, own = cache.parts
            x = x + self.ngrams(x, embedded, own, offset)
        read, shares = self.mixer_streams.read(x)
        y = self.mixer(self.mixer_norm(read) if self.mixer_norm else read, cache, offset)
        x = self.mixer_streams.write(x, y, shares)
        read, shares = self.feed_forward_streams.read(x)
        read = self.feed_forward_norm(read) if self.feed_forward_norm else read
        chosen = () if self.table is None else (self.table[embedded],)
        return self.feed_forward_streams.write(x, self.feed_forward(read, *chosen), shares)


def flat_scores(project: Callable[[mx.array], mx.array], x: mx.array, eps: float) -> mx.array:
    """Project all streams as one normalised vector: (T, S, D) -> (T, n) float32."""
    row = x.astype(mx.float32).reshape(len(x), -1)
    return project(mx.fast.rms_norm(row, None, eps)).astype(mx.float32)


def weighted(x: mx.array, weights: mx.array) -> mx.array:
    """Return the weighted sum of the streams: x (T, S, D), weights (T, S) -> (T, D)."""
    return (weights[..., None] * x).sum(axis=1).astype(x.dtype)


def require_streams(config: ModelConfig) -> None:
    """Raise GGUFError if the file does not say how many streams there are."""
    if config.streams is None:
        raise GGUFError(f"{config.architecture}.hyper_connection.count is missing")


def token_ids(config: ModelConfig) -> Callable[[mx.array, mx.array], mx.array]:
    """Return a function that gives every layer the ids of the tokens (T,): (T, L)."""

    def ids(tokens: mx.array, x: mx.array) -> mx.array:
        return mx.broadcast_to(tokens[:, None], (tokens.size, config.layers))

    return ids
