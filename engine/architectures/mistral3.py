"""mistral3: Ministral 3 and Mistral Small 3.

The llama block, stretched by YaRN; queries grow with how many original contexts lie before them,
where the file gives `attention.temperature_scale`.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope, Temperature
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `mistral3` file."""
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    rope = Rope(config.rope, interleaved=True, divisors=divisors)
    scale, length = config.temperature_scale, config.rope.original_context
    temperature = Temperature(scale, length) if scale else None
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, temperature=temperature),
        lambda layer: feed_forward(config, weights, layer),
    )
