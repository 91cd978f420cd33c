"""A decoder: embedding, a pile of blocks, a final norm and a head. The pages in `models/` fill it.

The kernels may put the blocks and the head together into something faster that does the same.

Axes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from engine.cache import Cache, LayerCache, new_layer_cache
from engine.config import ModelConfig
from engine.kernels import QTensor
from engine.layers import Attention, Norm
from engine.weights import Weights

Scorer = Callable[[mx.array], mx.array]  # (T, D) -> (T, V) float32


class Layers(Protocol):
    """All layers between embedding and head."""

    def new_caches(self, context: int, kv_type: str) -> Any:
        """Make what remembers keys and values for all layers, in the form that these want."""

    def __call__(self, x: mx.array, caches: Any, offset: int) -> mx.array:
        """x (T, D), its first token at position `offset` -> (T, D)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Attention, then feed-forward, each on normalised input and added to the stream."""

    attention_norm: Norm
    attention: Attention
    feed_forward_norm: Norm
    feed_forward: Callable[[mx.array], mx.array]

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D)."""
        x = x + self.attention(self.attention_norm(x), cache, offset)
        return x + self.feed_forward(self.feed_forward_norm(x))


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks run one after the other."""

    blocks: Sequence[Block]

    def new_caches(self, context: int, kv_type: str) -> list[LayerCache]:
        """Make the cache of every block. They grow as tokens come, up to any context."""
        shapes = (
            (b.attention.kv_heads, b.attention.key_dim, b.attention.value_dim) for b in self.blocks
        )
        return [new_layer_cache(*shape, kv_type) for shape in shapes]

    def __call__(self, x: mx.array, caches: Sequence[LayerCache] | None, offset: int) -> mx.array:
        """x (T, D), its first token at position `offset` -> (T, D)."""
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None, offset)
        return x


@dataclass(frozen=True, slots=True)
class Head:
    """The last norm and the projection to the vocabulary."""

    norm: Norm
    output: QTensor

    def __call__(self, x: mx.array) -> mx.array:
        """x (T, D) -> (T, V) float32."""
        return self.output.matmul(self.norm(x)).astype(mx.float32)


class Decoder:
    """The graph of a model. The head is the embedding where the file has none of its own."""

    def __init__(self, config: ModelConfig, weights: Weights, blocks: Sequence[Block]) -> None:
        shape = (config.vocab, config.width)
        self.embedding = weights.matrix("token_embd.weight", *shape)
        norm = Norm(weights.vector("output_norm.weight", config.width), config.norm_eps)
        tied = "output.weight" not in weights
        output = self.embedding if tied else weights.matrix("output.weight", *shape)
        self.layers, self.head = weights.kernels.fuse(Blocks(blocks), Head(norm, output))
        self.kernels = weights.kernels

    def hidden(self, tokens: mx.array, cache: Cache | None, offset: int) -> mx.array:
        """Run the blocks over tokens (T,), the first at position `offset`: (T, D)."""
        x = self.embedding.rows(tokens).astype(self.kernels.dtype)
        return self.layers(x, cache.layers if cache else None, offset)

    def logits(self, hidden: mx.array) -> mx.array:
        """Score the vocabulary: (T, D) -> (T, V) float32."""
        return self.head(hidden)


def pre_norm_decoder(
    config: ModelConfig,
    weights: Weights,
    attention: Callable[[int], Attention],
    feed_forward: Callable[[int], Callable[[mx.array], mx.array]],
) -> Decoder:
    """Put a decoder together whose blocks have the norms `attn_norm` and `ffn_norm`.

    attention, feed_forward: make those of a layer, given its number.
    """

    def norm(layer: int, name: str) -> Norm:
        weight = weights.vector(f"blk.{layer}.{name}.weight", config.width)
        return Norm(weight, config.norm_eps)

    blocks = [
        Block(
            norm(layer, "attn_norm"), attention(layer), norm(layer, "ffn_norm"), feed_forward(layer)
        )
        for layer in range(config.layers)
    ]
    return Decoder(config, weights, blocks)
