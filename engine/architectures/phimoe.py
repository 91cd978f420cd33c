"""phimoe: Phi-3.5-MoE.

Norms are layer norms, and all projections, including the head, have biases. The router uses the
sparse mixer. The rotary embedding uses its long factors if the cache's context length exceeds the
original context length.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import LongRoPE, RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `phimoe` model."""
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
