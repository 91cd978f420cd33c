"""deepseek2: DeepSeek-V2, V2-Lite, V3, R1 and V3.1, Kimi K2, Mistral Large 3, GLM-4.7-Flash,
Moonlight.

Latent attention with interleaved rotary embedding; the first layers dense, the others routed with
shared experts that always run. V2-Lite projects queries in one step and routes by softmax; V3 and
what came after it through a low rank, by sigmoid with a selection bias, from groups of experts.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.mla import LatentAttention, latent_rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `deepseek2` file."""
    rope = latent_rope(config.rope, interleaved=True)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: LatentAttention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
    )
