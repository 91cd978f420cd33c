"""gemma2: Gemma 2; gemma3: the text model of Gemma 3.

Each block normalises the input and the output of both attention and the feed-forward layer.
Gemma 2: every other layer uses a sliding window; attention scores and logits are soft-capped with
tanh. Gemma 3: five of every six layers use a sliding window and an unscaled rotary embedding with
its own base; q and k are normalised per head.
"""

import math
from dataclasses import replace

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig, RopeConfig
from engine.nn.decoder import Decoder, sandwich_block
from engine.nn.mlp import geglu
from engine.nn.moe import feed_forward
from engine.nn.rope import RoPE
from engine.nn.weights import Weights

# Layer counts of the 27B models, which use attention scale (width / heads)^-0.5. No key says so.
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62


def gemma2(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `gemma2` model."""
    windowed = replace(config.rope, base=config.window_rope.base)
    return _build(config, weights, windowed, GEMMA2_27B_LAYERS)


def gemma3(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `gemma3` model."""
    return _build(config, weights, config.window_rope, GEMMA3_27B_LAYERS)


def _build(config: ModelConfig, weights: Weights, windowed: RopeConfig, layers_27b: int) -> Decoder:
    """Build a Gemma model. windowed: rotary configuration for sliding-window layers."""
    if config.layers == layers_27b:
        config = replace(config, attention_scale=(config.width // config.heads[0]) ** -0.5)
    global_rope, window_rope = (RoPE(rope, interleaved=False) for rope in (config.rope, windowed))

    def attention(layer: int) -> Attention:
        rope = window_rope if config.windows[layer] else global_rope
        return Attention(config, weights, layer, rope)

    return Decoder(
        config,
        weights,
        attention,
        lambda layer: feed_forward(config, weights, layer, geglu),
        block=sandwich_block,
        embedding_scale=math.sqrt(config.width),
    )
