"""A decoder: embedding, a pile of blocks, a final norm and a head. The pages in `models/` fill it.

Axes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from engine.cache import Cache, LayerCache
from engine.config import ModelConfig
from engine.layers import Attention, Norm
from engine.weights import Weights


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


def pre_norm_block(
    config: ModelConfig,
    weights: Weights,
    layer: int,
    attention: Attention,
    feed_forward: Callable[[mx.array], mx.array],
) -> Block:
    """Put a block together with the norms `attn_norm` and `ffn_norm` of its layer."""

    def norm(name: str) -> Norm:
        weight = weights.vector(f"blk.{layer}.{name}.weight", config.width)
        return Norm(weight, config.norm_eps)

    return Block(norm("attn_norm"), attention, norm("ffn_norm"), feed_forward)


class Decoder:
    """The graph of a model. The head is the embedding where the file has none of its own."""

    def __init__(self, config: ModelConfig, weights: Weights, blocks: Sequence[Block]) -> None:
        shape = (config.vocab, config.width)
        self.embedding = weights.matrix("token_embd.weight", *shape)
        self.blocks = blocks
        self.norm = Norm(weights.vector("output_norm.weight", config.width), config.norm_eps)
        tied = "output.weight" not in weights
        self.head = self.embedding if tied else weights.matrix("output.weight", *shape)
        self.kernels = weights.kernels

    def hidden(self, tokens: mx.array, cache: Cache | None, offset: int) -> mx.array:
        """Run the blocks over tokens (T,), the first at position `offset`: (T, D), normalised."""
        x = self.embedding.rows(tokens).astype(self.kernels.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, cache.layers[i] if cache else None, offset)
        return self.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """Score the vocabulary: (T, D) -> (T, V) float32."""
        return self.head.matmul(hidden).astype(mx.float32)
