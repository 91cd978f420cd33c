"""The decoder: embedding, blocks, final norm and head. `engine.architectures` assembles it.

`engine.kernels.native.fused` may replace `layers` and `head` with faster equivalents.

Axes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from engine.kernels.base import QTensor
from engine.nn import moe
from engine.nn.cache.cache import Cache, LayerCache, new_layer_cache, rewindable_length
from engine.nn.cache.spec import CacheSpec
from engine.nn.config import ModelConfig
from engine.nn.moe import Experts
from engine.nn.norm import AnyNorm, required_norm
from engine.nn.weights import Weights

if TYPE_CHECKING:
    from engine.nn.router_stats import RouterStats

Scorer = Callable[[mx.array], mx.array]  # (T, D) -> (T, V) float32
# Attention or a recurrent layer: x (T, D), layer cache, position of the first token -> (T, D).
# `ModelConfig.cache_spec` describes the cache. Without a cache, earlier tokens are not visible.
Mixer = Callable[[mx.array, Any, int], mx.array]
FeedForwardLayer = Callable[[mx.array], mx.array]  # (T, D) -> (T, D)
# The end of a block: x (T, D), the layer's embedding of each token (T, n) or None -> (T, D).
BlockEnd = Callable[[mx.array, mx.array | None], mx.array]
# Called repeatedly during a long step with the completed fraction; may raise to stop the step.
OnProgress = Callable[[float], None]


class Layers(Protocol):
    """All layers between embedding and head."""

    @property
    def long_chunks(self) -> bool:
        """True if a prompt's chunks are `STREAM_CHUNK` tokens long."""

    def new_caches(self, context: int, kv_type: str) -> Any:
        """Create one sequence's caches for all layers."""

    def rewindable_length(self, caches: Any, length: int) -> int:
        """Return the greatest length, at most `length`, that these caches can be rewound to."""

    def evaluate(
        self, result: mx.array, caches: Any, tokens: range, on_progress: OnProgress
    ) -> None:
        """Evaluate `result`, which these layers computed lazily for the positions `tokens`.

        An exception from `on_progress` propagates and leaves the caches without these tokens.
        """

    def record_routes(self, stats: RouterStats) -> None:
        """Start recording each layer's chosen experts in `stats`."""

    def __call__(
        self, x: mx.array, caches: Any, offset: int, embedded: mx.array | None
    ) -> mx.array:
        """Run all layers: x (T, D) -> (T, D). offset: the position of the first token.

        embedded: the tokens' embeddings in each layer, (T, L, n), if the model has them.
        """


@dataclass(frozen=True, slots=True)
class Block:
    """A mixer, then a feed-forward layer, each with a norm before it and a residual connection.

    post_mixer_norm, post_feed_forward_norm: applied to the output before the residual is added.
    residual_scale: multiplies both outputs. feed_forward_norm: None if the feed-forward layer
    normalises what it reads. end: applied to the block's output.
    """

    mixer_norm: AnyNorm
    mixer: Mixer
    feed_forward_norm: AnyNorm | None
    feed_forward: FeedForwardLayer
    post_mixer_norm: AnyNorm | None = None
    post_feed_forward_norm: AnyNorm | None = None
    residual_scale: float = 1.0
    end: BlockEnd | None = None

    def __call__(
        self, x: mx.array, cache: LayerCache | None, offset: int, embedded: mx.array | None = None
    ) -> mx.array:
        x = self._add(x, self.mixer(self.mixer_norm(x), cache, offset), self.post_mixer_norm)
        y = self.feed_forward(self.feed_forward_norm(x) if self.feed_forward_norm else x)
        x = self._add(x, y, self.post_feed_forward_norm)
        return self.end(x, embedded) if self.end else x

    def _add(self, x: mx.array, y: mx.array, norm: AnyNorm | None) -> mx.array:
        y = norm(y) if norm else y
        return x + (y if self.residual_scale == 1.0 else y * self.residual_scale)


@dataclass(frozen=True, slots=True)
class ParallelBlock:
    """A mixer and a feed-forward layer that read the same normalised input."""

    norm: AnyNorm
    mixer: Mixer
    feed_forward: FeedForwardLayer

    def __call__(
        self, x: mx.array, cache: LayerCache | None, offset: int, embedded: mx.array | None = None
    ) -> mx.array:
        normed = self.norm(x)
        return x + self.mixer(normed, cache, offset) + self.feed_forward(normed)


@dataclass(frozen=True, slots=True)
class SingleBlock:
    """A mixer or a feed-forward layer, with a norm before it and a residual connection."""

    norm: AnyNorm
    mixer: Mixer | None
    feed_forward: FeedForwardLayer | None

    def __call__(
        self, x: mx.array, cache: LayerCache | None, offset: int, embedded: mx.array | None = None
    ) -> mx.array:
        y = self.norm(x)
        if self.mixer is not None:
            return x + self.mixer(y, cache, offset)
        assert self.feed_forward is not None
        return x + self.feed_forward(y)


class AnyBlock(Protocol):
    """A layer: (T, D) -> (T, D), or (T, S, D) -> (T, S, D) if the residual has S streams.

    embedded: as in `Layers`, of this layer.
    """

    @property
    def feed_forward(self) -> Any: ...

    def __call__(
        self, x: mx.array, cache: Any, offset: int, embedded: mx.array | None = None
    ) -> mx.array: ...


# config, weights, layer, mixer, feed-forward layer -> block
MakeBlock = Callable[[ModelConfig, Weights, int, Mixer, FeedForwardLayer], AnyBlock]


def pre_norm_block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> Block:
    """Load a block with a norm before each part.

    If `ffn_norm` is missing, `post_attention_norm` precedes the feed-forward layer.
    """
    before, after = f"blk.{layer}.ffn_norm", f"blk.{layer}.post_attention_norm"
    if before + ".weight" not in weights and after + ".weight" in weights:
        before = after
    return Block(
        required_norm(weights, f"blk.{layer}.attn_norm", config),
        mixer,
        required_norm(weights, before, config),
        feed_forward,
        residual_scale=config.residual_scale,
    )


def sandwich_block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> Block:
    """Load a block with a norm before and after each part."""
    names = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    before, second, after, last = (
        required_norm(weights, f"blk.{layer}.{name}", config) for name in names
    )
    return Block(before, mixer, second, feed_forward, after, last, config.residual_scale)


def parallel_block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> ParallelBlock:
    """Load a block whose two parts read the same normalised input."""
    return ParallelBlock(
        required_norm(weights, f"blk.{layer}.attn_norm", config), mixer, feed_forward
    )


@dataclass(frozen=True, slots=True)
class Blocks:
    """A sequence of blocks. cache_specs: one cache spec per block.

    sources: for each block, the index of the one whose cache it uses: its own, or an earlier one.
    """

    blocks: Sequence[AnyBlock]
    cache_specs: Sequence[CacheSpec]
    sources: Sequence[int]

    def new_caches(self, context: int, kv_type: str) -> list[LayerCache]:
        return [new_layer_cache(spec, context, kv_type) for spec in self.cache_specs]

    def rewindable_length(self, caches: Sequence[LayerCache], length: int) -> int:
        return rewindable_length(caches, length)

    @property
    def long_chunks(self) -> bool:
        return False

    def evaluate(
        self, result: mx.array, caches: Any, tokens: range, on_progress: OnProgress
    ) -> None:
        mx.eval(result)  # `on_progress` is never called: one evaluation cannot be interrupted

    def record_routes(self, stats: RouterStats) -> None:
        for block in self.blocks:
            routed = getattr(block.feed_forward, "routed", block.feed_forward)
            if isinstance(routed, Experts):
                routed.stats = stats

    def __call__(
        self,
        x: mx.array,
        caches: Sequence[LayerCache] | None,
        offset: int,
        embedded: mx.array | None = None,
    ) -> mx.array:
        if caches is None and any(spec.borrowed or spec.parts for spec in self.cache_specs):
            caches = self.new_caches(x.shape[0], "f32")
        for i, block in enumerate(self.blocks):
            own = None if embedded is None else embedded[:, i]
            x = block(x, caches[self.sources[i]] if caches else None, offset, own)
        return x


@dataclass(frozen=True, slots=True)
class LMHead:
    """The final norm and the projection to the vocabulary.

    Logits are multiplied by `scale`. If `cap` is set, they become cap * tanh(logits / cap).
    """

    norm: Callable[[mx.array], mx.array]
    output: QTensor
    bias: mx.array | None = None  # (V,)
    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, x: mx.array) -> mx.array:
        return self.finish(self.output.matmul(self.norm(x)).astype(mx.float32))

    def finish(self, logits: mx.array) -> mx.array:
        """Apply bias, scale and cap to the projection's output: (T, V) -> (T, V)."""
        if self.bias is not None:
            logits = logits + self.bias
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * mx.tanh(logits / self.cap) if self.cap else logits


class Decoder:
    """A decoder-only transformer.

    mixer, feed_forward: functions that return a layer's mixer or feed-forward layer, given the
    layer's index. By default, the config determines whether the feed-forward layer is dense or MoE.
    block: makes a layer's block of them, unless a layer has only one of them: `attn_norm` then
    precedes it. embedding_scale: if 0, use the scale from the config.
    embed_per_layer: computes the embeddings that each layer has for each token from the tokens (T,)
    and their embeddings x (T, D): (T, L, n). end: makes the head's norm. If the residual has
    several streams, all begin as the embedding, and it also joins them: (T, S, D) -> (T, D).
    If `output.weight` is missing, the embedding is also the head.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        mixer: Callable[[int], Mixer],
        feed_forward: Callable[[int], FeedForwardLayer] | None = None,
        *,
        block: MakeBlock = pre_norm_block,
        output_norm: str = "output_norm",
        embedding_scale: float = 0.0,
        embed_per_layer: Callable[[mx.array, mx.array], mx.array] | None = None,
        end: Callable[[ModelConfig, Weights], Callable[[mx.array], mx.array]] | None = None,
    ) -> None:
        second_part = feed_forward or partial(moe.feed_forward, config, weights)

        def make(layer: int) -> AnyBlock:
            if not config.single_blocks:
                return block(config, weights, layer, mixer(layer), second_part(layer))
            norm = required_norm(weights, f"blk.{layer}.attn_norm", config)
            if config.mixes(layer):
                return SingleBlock(norm, mixer(layer), None)
            return SingleBlock(norm, None, second_part(layer))

        layers = range(config.layers)
        blocks = [make(layer) for layer in layers]
        sources = [config.kv_source(layer) for layer in layers]
        shape = (config.vocab, config.width)
        self.embedding = weights.matrix("token_embd.weight", *shape)
        self.embedding_scale = embedding_scale or config.embedding_scale
        self.embed_per_layer = embed_per_layer
        last_norm = end(config, weights) if end else required_norm(weights, output_norm, config)
        self.streams = config.streams.count if config.streams else 0
        tied = "output.weight" not in weights
        output = self.embedding if tied else weights.matrix("output.weight", *shape)
        bias = weights.optional_vector("output.bias", config.vocab)
        self.layers: Layers = Blocks(blocks, config.cache_specs, sources)
        self.head: Scorer = LMHead(last_norm, output, bias, config.logit_scale, config.logit_cap)
        self.kernels = weights.kernels
        self.routes: RouterStats | None = None

    def record_routes(self, stats: RouterStats) -> None:
        self.routes = stats
        self.layers.record_routes(stats)

    def hidden(self, tokens: mx.array, cache: Cache | None, offset: int) -> mx.array:
        """Embed tokens and run all layers: (T,) -> (T, D). offset: the first token's position."""
        x = self.embedding.rows(tokens).astype(self.kernels.dtype)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        if self.routes is not None:
            self.routes.begin_step()
        embedded = self.embed_per_layer(tokens, x) if self.embed_per_layer else None
        if self.streams:
            x = mx.broadcast_to(x[:, None], (x.shape[0], self.streams, x.shape[1]))
        return self.layers(x, cache.layers if cache else None, offset, embedded)

    def logits(self, hidden: mx.array) -> mx.array:
        """Compute logits over the vocabulary: (T, D) -> (T, V) float32."""
        return self.head(hidden)
