"""granite: Granite 3.x and 4.0, dense.

The llama block with multipliers on the embedding, the attention scores, what each part of a block
adds and the logits. A file whose `rope.scaling.finetuned` is false knows no positions.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `granite` file."""
    rope = Rope(config.rope, interleaved=True) if config.rope_enabled else None
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
    )
