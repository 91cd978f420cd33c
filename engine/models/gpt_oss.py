"""gpt-oss: gpt-oss-20b and 120b.

Biases everywhere. Every other layer sees a window only; sinks, one logit for each head, take their
share of the softmax and give nothing. The rotary embedding pairs the halves of a head, stretched by
YaRN whose ramp does not end on whole pairs. The router's softmax runs over the chosen experts only,
and these clamp what they gate. The norm before the feed-forward layer is `post_attention_norm`.
"""

from __future__ import annotations

import mlx.core as mx

from engine.config import ModelConfig
from engine.decoder import Decoder, pre_norm_decoder
from engine.layers import Attention, Rope
from engine.moe import feed_forward
from engine.weights import Weights

SLOPE = 1.702  # of the sigmoid
LIMIT = 7.0


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `gpt-oss` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer, clamped_swiglu),
        feed_forward_norm="post_attention_norm",
    )


def clamped_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate * sigmoid(1.702 gate) * (up + 1), gate at most 7 and up within -7..7."""
    gate = mx.minimum(gate, LIMIT)
    return gate * mx.sigmoid(SLOPE * gate) * (mx.clip(up, -LIMIT, LIMIT) + 1)
