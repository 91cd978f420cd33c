"""gpt-oss: gpt-oss-20b and 120b.

Biases everywhere. Every other layer sees a window only; sinks, one logit for each head, take their
share of the softmax and give nothing. The rotary embedding pairs the halves of a head, stretched by
YaRN whose ramp does not end on whole pairs. The router's softmax runs over the chosen experts only,
and these clamp what they gate. The norm before the feed-forward layer is `post_attention_norm`.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope, clamped_swiglu
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


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
