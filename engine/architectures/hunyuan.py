"""hunyuan-moe: Hunyuan-A13B.

Each head of q and k is normalised after the rotary embedding, which rotates pairs (i, i + dims/2).
Every layer is routed: softmax, weights renormalised, plus a shared expert that always runs.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a `hunyuan-moe` model."""
    rope = RoPE(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, norm_after_rope=True),
    )
