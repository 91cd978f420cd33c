"""qwen3moe: Qwen3-30B-A3B, 235B-A22B and Qwen3-Coder.

Attention as in `qwen3`; every layer is routed: softmax over all experts, the chosen weights
renormalised, no shared expert.
"""

from __future__ import annotations

from engine.config import ModelConfig
from engine.decoder import Decoder, pre_norm_decoder
from engine.layers import Attention, Rope
from engine.moe import feed_forward
from engine.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `qwen3moe` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
    )
