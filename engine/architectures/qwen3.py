"""qwen3: Qwen3 dense, 0.6B to 32B.

Each head of q and k is normalised before the rotary embedding, which pairs the halves of a head;
the head width comes from the file and is not width / heads. The pages of many families are this
one: what their layers differ by, their tensors and keys say.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `qwen3` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
    )
