"""phimoe: Phi-3.5-MoE.

Layer norms and biases, also in the head. Rotary embedding with two sets of factors: the long ones
apply once the context exceeds the original one. The sparse mixer chooses two experts, one after the
other, and weighs each only against experts with similar scores.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import LongRoPE, RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a `phimoe` model."""
    short, long = (
        RoPE(
            config.rope,
            interleaved=False,
            divisors=weights.optional_vector(f"rope_factors_{kind}.weight", config.rope.dims // 2),
        )
        for kind in ("short", "long")
    )
    rope = LongRoPE(short, long, config.rope.original_context)
    return Decoder(config, weights, lambda layer: Attention(config, weights, layer, rope))
