"""qwen3next: Qwen3-Next; qwen35 and qwen35moe: Qwen3.5 and Qwen3.6, dense and with experts.

Three of four layers are gated delta nets. The fourth is attention whose output is multiplied by the
sigmoid of a gate stored behind each head's query; q and k are normalised per head, and the rotary
embedding covers part of each head. Softmax over all experts, weights renormalised, plus a gated
shared expert. The converter has added 1 to norms stored around 0. For text, the three axes of the
rotary embedding of qwen35 are one.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.recurrent import GatedDeltaNet
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights, tiled: bool = False) -> Decoder:
    """Build Qwen3-Next. tiled: the order of the delta nets' value heads, see `GatedDeltaNet`."""
    rope = RoPE(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope, gated=True)
            if config.kv_heads[layer]
            else GatedDeltaNet(config, weights, layer, tiled)
        ),
    )


def qwen35(config: ModelConfig, weights: Weights) -> Decoder:
    """Build Qwen3.5, whose converter stores value heads tiled: one per key head, then the next."""
    return build(config, weights, tiled=True)
