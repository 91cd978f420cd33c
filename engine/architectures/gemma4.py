"""gemma4: Gemma 4 26B-A4B, 31B (dense), E2B and E4B (dense, with per-layer embeddings).

Each block normalises the input and the output of both parts and ends with a factor on the residual
stream. Layers with a sliding window have narrower heads and a rotary embedding of their own; the
others divide rotary frequencies by `rope_freqs.weight`. Scores are not scaled; q, k and v are
normalised per head, v without a gain. Layers without `attn_v` use the output of `attn_k`. Logits
are soft-capped with tanh.

In MoE models a dense layer and the experts run side by side, each with norms of its own. The router
reads the residual stream, normalised in its own way: softmax over all experts, weights that are
renormalised, then a factor for each expert.

In E2B and E4B, the last layers have no keys and values and use those of an earlier layer. Each
layer has an embedding of its own for each token, which gates a small projection at its end.
"""

import math
from dataclasses import replace

import mlx.core as mx

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Block, Decoder, FeedForwardLayer, Mixer, sandwich_block
from engine.nn.mlp import FeedForward, LayerEnd, geglu
from engine.nn.moe import DenseAndExperts
from engine.nn.norm import RMSNorm
from engine.nn.rope import layer_ropes
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `gemma4` model."""
    ropes = layer_ropes(config, weights, interleaved=False)

    def attention(layer: int) -> Attention:
        rope = ropes[layer]
        return Attention(config, weights, layer, rope, value_norm=True, value_optional=True)

    def feed_forward(layer: int) -> FeedForwardLayer:
        if config.routed(layer):
            return DenseAndExperts(config, weights, layer, geglu)
        return FeedForward(config, weights, layer, geglu)

    return Decoder(
        config,
        weights,
        attention,
        feed_forward,
        block=_block,
        embedding_scale=math.sqrt(config.width),
        embed_per_layer=PerLayerEmbedding(config, weights) if config.per_layer_width else None,
    )


def _block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> Block:
    block = sandwich_block(config, weights, layer, mixer, feed_forward)
    if isinstance(feed_forward, DenseAndExperts):  # has its own norms
        block = replace(block, feed_forward_norm=None)
    return replace(block, end=LayerEnd(config, weights, layer))


class PerLayerEmbedding:
    """An embedding of each token for each layer: from a table, and projected from its first one.

    Axes: L layers, n width of an embedding.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.shape = (-1, config.layers, config.per_layer_width)
        total, width = config.layers * config.per_layer_width, config.width
        self.table = weights.matrix("per_layer_token_embd.weight", config.vocab, total)
        self.projection = weights.matrix("per_layer_model_proj.weight", total, width)
        gain = weights.array("per_layer_proj_norm.weight", config.per_layer_width)
        self.norm = RMSNorm(gain, config.norm_eps)
        self.scale = 1 / math.sqrt(width)

    def __call__(self, tokens: mx.array, x: mx.array) -> mx.array:
        """Return the embeddings of tokens (T,), whose first embeddings are x (T, D): (T, L, n)."""
        projected = self.norm((self.projection.matmul(x) * self.scale).reshape(self.shape))
        found = self.table.rows(tokens).astype(x.dtype).reshape(self.shape)
        return (found * math.sqrt(self.shape[-1]) + projected) / math.sqrt(2)
