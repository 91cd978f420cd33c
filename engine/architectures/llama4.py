"""llama4: Scout and Maverick.

Three of four layers rotate q and k and attend within the token's own chunk. The fourth has no
positions and attends to all tokens; its queries grow with their chunk's number. Scout normalises q
and k after rotating them. Router: the best expert by logit, its input scaled by the logit's
sigmoid; a shared expert always runs.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.rope import RoPE, Temperature
from engine.nn.weights import Weights

TEMPERATURE = Temperature(scale=0.1, length=8192, shift=1)
MAVERICK_EXPERTS = 128


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a `llama4` model."""
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    rope = RoPE(config.rope, interleaved=True, divisors=divisors)
    normalized = not (config.experts and config.experts.count == MAVERICK_EXPERTS)

    def attention(layer: int) -> Attention:
        if any(config.windows) and not config.windows[layer]:
            return Attention(config, weights, layer, None, temperature=TEMPERATURE)
        return Attention(config, weights, layer, rope, l2_norm=normalized)

    return pre_norm_decoder(config, weights, attention)
