"""deepseek32: DeepSeek-V3.2.

DeepSeek-V3 (`deepseek2`) with a lightning indexer in every layer, in whose heads the rotary
embedding pairs halves, where that of the attention pairs neighbours.
"""

from __future__ import annotations

from engine.config import ModelConfig
from engine.decoder import Decoder
from engine.latent import latent_rope, sparse_decoder
from engine.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `deepseek32` file."""
    return sparse_decoder(config, weights, latent_rope(config.rope, interleaved=False))
