"""deepseek32: DeepSeek-V3.2.

DeepSeek-V3 (`deepseek2`) with a lightning indexer in every layer, in whose heads the rotary
embedding pairs halves, where that of the attention pairs neighbours.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.mla import latent_rope, sparse_decoder
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `deepseek32` file."""
    return sparse_decoder(config, weights, latent_rope(config.rope, interleaved=False))
