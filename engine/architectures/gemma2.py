"""gemma2: Gemma 2, 2B to 27B.

Embeddings are multiplied by the root of their width; norms stand before and after both parts of a
block; the feed-forward layer gates by GELU. Every other layer sees a window only, and tanh caps
attention scores and logits.
"""

from __future__ import annotations

import dataclasses
import math

from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope, geglu
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights

WIDTH_SCALED_LAYERS = 46  # of the 27B, whose attention scale is that of width / heads; no key says


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `gemma2` file."""
    windowed = dataclasses.replace(config.rope, base=config.window_base)
    return gemma(config, weights, windowed, WIDTH_SCALED_LAYERS)


def gemma(
    config: ModelConfig, weights: Weights, windowed: RopeConfig, width_scaled_layers: int
) -> Decoder:
    """Build a Gemma.

    windowed: the rotary embedding of layers that see a window. width_scaled_layers: the depth of
    the model that scales attention by width / heads.
    """
    if config.layers == width_scaled_layers:
        scale = (config.width // config.heads) ** -0.5
        config = dataclasses.replace(config, attention_scale=scale)
    everywhere, near = (Rope(rope, interleaved=False) for rope in (config.rope, windowed))

    def attention(layer: int) -> Attention:
        return Attention(config, weights, layer, near if config.windows[layer] else everywhere)

    return pre_norm_decoder(
        config,
        weights,
        attention,
        lambda layer: feed_forward(config, weights, layer, geglu),
        sandwich=True,
        embedding_scale=math.sqrt(config.width),
    )
