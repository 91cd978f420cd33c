"""granitehybrid: Granite 4.0-H, with experts and dense.

Layers without kv heads are Mamba-2, the others attention that knows no positions (the file turns
the rotary embedding off). Each is followed by experts and a shared one, or by a dense layer. Scales
on embedding, attention scores, both residual branches and logits come from the file.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.recurrent import Mamba2
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `granitehybrid` file."""
    rope = Rope(config.rope, interleaved=True) if config.rope_enabled else None
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope)
            if config.kv_heads[layer]
            else Mamba2(config, weights, layer)
        ),
        lambda layer: feed_forward(config, weights, layer),
    )
