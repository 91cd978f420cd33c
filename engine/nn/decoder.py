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
from engine.nn.moe import Experts, SharedExperts
from engine.nn.norm import AnyNorm, required_norm
from engine.nn.weights import Weights

if TYPE_CHECKING:
    from engine.nn.router_stats import RouterStats

Scorer = Callable[[mx.array], mx.array]  # (T, D) -> (T, V) float32
# Attention or a recurrent layer: x (T, D), layer cache, position of the first token -> (T, D).
# `ModelConfig.cache_spec` describes the cache. Without a cache, earlier tokens are not visible.
Mixer = Callable[[mx.array, Any, int], mx.array]
FeedForwardLayer = Callable[[mx.array], mx.array]  # (T, D) -> (T, D)
# Called repeatedly during a long step with the completed fraction; may raise to stop the step.
OnProgress = Callable[[float], None]


class Layers(Protocol):
    """All layers between embedding and head."""

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

    def __call__(self, x: mx.array, caches: Any, offset: int) -> mx.array:
        """Run all layers: x (T, D) -> (T, D). offset: the position of the first token."""


@dataclass(frozen=True, slots=True)
class Block:
    """A mixer, then a feed-forward layer, each with a norm before it and a residual connection.

    post_mixer_norm, post_feed_forward_norm: applied to the output before the residual is added.
    residual_scale: multiplies both outputs.
    """

    mixer_norm: AnyNorm
    mixer: Mixer
    feed_forward_norm: AnyNorm
    feed_forward: FeedForwardLayer
    post_mixer_norm: AnyNorm | None = None
    post_feed_forward_norm: AnyNorm | None = None
    residual_scale: float = 1.0

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        x = self._add(x, self.mixer(self.mixer_norm(x), cache, offset), self.post_mixer_norm)
        y = self.feed_forward(self.feed_forward_norm(x))
        return self._add(x, y, self.post_feed_forward_norm)

    def _add(self, x: mx.array, y: mx.array, norm: AnyNorm | None) -> mx.array:
        y = norm(y) if norm else y
        return x + (y if self.residual_scale == 1.0 else y * self.residual_scale)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A sequence of blocks. cache_specs: one cache spec per block."""

    blocks: Sequence[Block]
    cache_specs: Sequence[CacheSpec]

    def new_caches(self, context: int, kv_type: str) -> list[LayerCache]:
        return [new_layer_cache(spec, context, kv_type) for spec in self.cache_specs]

    def rewindable_length(self, caches: Sequence[LayerCache], length: int) -> int:
        return rewindable_length(caches, length)

    def evaluate(
        self, result: mx.array, caches: Any, tokens: range, on_progress: OnProgress
    ) -> None:
        mx.eval(result)  # `on_progress` is never called: one evaluation cannot be interrupted

    def record_routes(self, stats: RouterStats) -> None:
        for block in self.blocks:
            layer = block.feed_forward
            routed = layer.routed if isinstance(layer, SharedExperts) else layer
            if isinstance(routed, Experts):
                routed.stats = stats

    def __call__(self, x: mx.array, caches: Sequence[LayerCache] | None, offset: int) -> mx.array:
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None, offset)
        return x


@dataclass(frozen=True, slots=True)
class LMHead:
    """The final norm and the projection to the vocabulary.

    Logits are multiplied by `scale`. If `cap` is set, they become cap * tanh(logits / cap).
    """

    norm: AnyNorm
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
    """A pre-norm decoder.

    mixer, feed_forward: functions that return a layer's mixer or feed-forward layer, given the
    layer's index. By default, the config determines whether the feed-forward layer is dense or MoE.
    sandwich: also normalise the mixer's and the feed-forward layer's output. embedding_scale: if
    0, use the scale from the config.
    If `ffn_norm` is missing, `post_attention_norm` precedes the feed-forward layer. If
    `output.weight` is missing, the embedding is also the head.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        mixer: Callable[[int], Mixer],
        feed_forward: Callable[[int], FeedForwardLayer] | None = None,
        *,
        sandwich: bool = False,
        output_norm: str = "output_norm",
        embedding_scale: float = 0.0,
    ) -> None:
        second_part = feed_forward or partial(moe.feed_forward, config, weights)

        def norm(name: str) -> AnyNorm:
            return required_norm(weights, name, config.width, config.norm_eps)

        def block(layer: int) -> Block:
            before, after = f"blk.{layer}.ffn_norm", f"blk.{layer}.post_attention_norm"
            if before + ".weight" not in weights and after + ".weight" in weights and not sandwich:
                before = after
            return Block(
                norm(f"blk.{layer}.attn_norm"),
                mixer(layer),
                norm(before),
                second_part(layer),
                norm(after) if sandwich else None,
                norm(f"blk.{layer}.post_ffw_norm") if sandwich else None,
                config.residual_scale,
            )

        blocks = [block(layer) for layer in range(config.layers)]
        shape = (config.vocab, config.width)
        self.embedding = weights.matrix("token_embd.weight", *shape)
        self.embedding_scale = embedding_scale or config.embedding_scale
        last_norm = norm(output_norm)
        tied = "output.weight" not in weights
        output = self.embedding if tied else weights.matrix("output.weight", *shape)
        bias = weights.optional_vector("output.bias", config.vocab)
        self.layers: Layers = Blocks(blocks, config.cache_specs)
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
        return self.layers(x, cache.layers if cache else None, offset)

    def logits(self, hidden: mx.array) -> mx.array:
        """Compute logits over the vocabulary: (T, D) -> (T, V) float32."""
        return self.head(hidden)
