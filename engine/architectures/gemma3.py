"""gemma3: Gemma 3, 270M to 27B, its text model.

As `gemma2` without the caps on scores and logits. Five of six layers see a window and turn at a
base of their own, without the scaling of the others; each head of q and k is normalised.
"""

from __future__ import annotations

import dataclasses

from engine.architectures.gemma2 import gemma
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.weights import Weights

WIDTH_SCALED_LAYERS = 62  # the 27B


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `gemma3` file."""
    windowed = dataclasses.replace(config.rope, base=config.window_base, scaling="none")
    return gemma(config, weights, windowed, WIDTH_SCALED_LAYERS)
