"""phimoe: Phi-3.5-MoE.

Layer norms and biases, also in the head; routing by the sparse mixer. The rotary embedding uses its
long factors if the context may exceed the original one.
"""

import mlx.core as mx

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import RoPE
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

    def rope(x: mx.array, offset: int, context: int) -> mx.array:
        return (long if context > config.rope.original_context else short)(x, offset)

    return Decoder(config, weights, lambda layer: Attention(config, weights, layer, rope))
