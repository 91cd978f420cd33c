"""qwen3next: Qwen3-Next-80B-A3B and Qwen3-Coder-Next.

Three of four layers are gated delta nets, the fourth is attention whose output is multiplied by the
sigmoid of a gate that lies behind each head's query; q and k are normalised by head, and a part of
each head turns. Softmax over all experts, the chosen weights renormalised; a shared expert with a
gate. The converter has added 1 to the norms that are stored around 0.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.recurrent import GatedDeltaNet
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights, tiled: bool = False) -> Decoder:
    """Build the graph from the weights of a `qwen3next` file.

    tiled: the order of the delta nets' value heads, as `GatedDeltaNet` has it.
    """
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope, gated=True)
            if config.kv_heads[layer]
            else GatedDeltaNet(config, weights, layer, tiled)
        ),
        lambda layer: feed_forward(config, weights, layer),
        feed_forward_norm="post_attention_norm",
    )
