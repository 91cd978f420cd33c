"""llama4: Scout and Maverick.

Three of four layers turn q and k and see the tokens of their own chunk only; the fourth knows no
positions, sees all, and its queries grow with the chunk they are in. Scout, which has not 128
experts, normalises q and k after turning them. Router: the best expert by logit, weighed by its
sigmoid on what it reads; a shared expert always runs.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope, Temperature
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights

TEMPERATURE = Temperature(scale=0.1, length=8192, shift=1)
MAVERICK_EXPERTS = 128


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `llama4` file."""
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    rope = Rope(config.rope, interleaved=True, divisors=divisors)
    normalized = not (config.experts and config.experts.count == MAVERICK_EXPERTS)

    def attention(layer: int) -> Attention:
        if any(config.windows) and not config.windows[layer]:
            return Attention(config, weights, layer, None, temperature=TEMPERATURE)
        return Attention(config, weights, layer, rope, l2_norm=normalized)

    return pre_norm_decoder(
        config, weights, attention, lambda layer: feed_forward(config, weights, layer)
    )
