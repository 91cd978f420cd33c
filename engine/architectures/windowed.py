"""Models in which layers with a sliding window and layers without one differ.

Unless noted, both kinds have a rotary embedding of their own, over pairs (i, i + dims/2), q and k
are normalised per head before it, and the first layers are dense. The remaining layers route by
sigmoid with a selection bias, renormalise the weights, scale them, and add a shared expert.

- laguna: Laguna XS.2, S 2.1 and M.1. The two kinds have different numbers of query heads. YaRN
  stretches only the layers without a window, in which half of each head is rotated. Attention
  output is multiplied by the softplus of a gate, which has one value per head or, in M.1, one per
  output value. M.1 has no windows.
- step35: Step 3.5 and 3.7 Flash. As laguna, but the gate is a sigmoid, and some layers clamp the
  outputs of their gate and up projections.
- mellum: Mellum 2. All layers are MoE layers and route by softmax, without a shared expert.
- afmoe: Trinity. Only layers with a window have a rotary embedding. A sigmoid gate has one value
  per output value. The input and the output of both parts of a block are normalised.
- cohere2moe: North Mini. Attention and the feed-forward layer read the same normalised input; norms
  are layer norms without a bias; q and k are not normalised. The rotary embedding uses interleaved
  pairs and is missing from MoE layers without a window. The router has no bias. The shared expert's
  output is averaged with that of the routed experts.
"""

import math

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, parallel_block, sandwich_block
from engine.nn.mlp import softplus
from engine.nn.rope import layer_ropes
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `mellum` or `step35` model."""
    ropes = layer_ropes(config, weights, interleaved=False)
    return Decoder(config, weights, lambda layer: Attention(config, weights, layer, ropes[layer]))


def laguna(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `laguna` model."""
    ropes = layer_ropes(config, weights, interleaved=False)
    return Decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, ropes[layer], gate_activation=softplus),
    )


def afmoe(config: ModelConfig, weights: Weights) -> Decoder:
    """Build an `afmoe` model."""
    ropes = layer_ropes(config, weights, interleaved=False)

    def attention(layer: int) -> Attention:
        return Attention(config, weights, layer, ropes[layer] if config.window(layer) else None)

    scale = math.sqrt(config.width)
    return Decoder(config, weights, attention, block=sandwich_block, embedding_scale=scale)


def cohere2moe(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `cohere2moe` model."""
    ropes = layer_ropes(config, weights, interleaved=True)

    def attention(layer: int) -> Attention:
        rotated = config.window(layer) or not config.routed(layer)
        return Attention(config, weights, layer, ropes[layer] if rotated else None)

    return Decoder(config, weights, attention, block=parallel_block)
