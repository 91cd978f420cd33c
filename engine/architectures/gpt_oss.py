"""gpt-oss: gpt-oss-20b and 120b.

All projections have biases. Every other layer uses a sliding window. Each head has a sink: an extra
logit in the softmax, without a value. The ends of YaRN's ramp are not rounded to whole pairs. The
router's softmax covers only the chosen experts. Experts clamp the outputs of their gate and up
projections.
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
