"""llama: Llama 2 and 3, SmolLM2 and Mistral; with experts, Mixtral.

Interleaved rotary embedding over the whole head (the converter permutes q and k for it), its
frequencies divided by `rope_freqs.weight` in Llama 3. Mixtral: softmax over all experts, the chosen
weights renormalised, every layer routed, experts as wide as `feed_forward_length`.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `llama` file."""
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    rope = Rope(config.rope, interleaved=True, divisors=divisors)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
    )
