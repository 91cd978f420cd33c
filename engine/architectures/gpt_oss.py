"""gpt-oss: gpt-oss-20b and 120b.

Biases everywhere. Every other layer sees only a window; sinks, one logit per head, take a share of
the softmax. YaRN's ramp need not end on whole pairs. The router's softmax covers the chosen experts
only; experts clamp their gate and input.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.mlp import clamped_swiglu
from engine.nn.moe import feed_forward
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a `gpt-oss` model."""
    rope = RoPE(config.rope, interleaved=False)
    return Decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer, clamped_swiglu),
    )
