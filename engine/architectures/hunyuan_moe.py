"""hunyuan-moe: Hunyuan-A13B.

Each head of q and k is normalised after the rotary embedding, which pairs the halves of a head.
Every layer is routed: softmax, the chosen weights renormalised; a shared expert always runs.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `hunyuan-moe` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, norm_after_rope=True),
        lambda layer: feed_forward(config, weights, layer),
    )
