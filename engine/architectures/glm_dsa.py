"""glm-dsa: GLM-5, 5.1 and 5.2.

As `deepseek32`, but the rotary embedding of the indexer pairs neighbours as well, and in GLM-5.2
only some layers have an indexer; those after one follow its choice.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.mla import latent_rope, sparse_decoder
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `glm-dsa` file."""
    return sparse_decoder(config, weights, latent_rope(config.rope, interleaved=True))
