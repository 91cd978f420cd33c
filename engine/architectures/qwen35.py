"""qwen35 and qwen35moe: Qwen3.5 and Qwen3.6, dense and with experts.

As `qwen3next`, but the converter has laid the delta nets' value heads out in turns: all key heads'
first ones, then all their second ones. For text the three axes of the rotary embedding are one.
"""

from __future__ import annotations

from engine.architectures import qwen3next
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `qwen35` or `qwen35moe` file."""
    return qwen3next.build(config, weights, tiled=True)
