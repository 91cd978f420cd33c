"""granitehybrid: Granite 4.0-H, dense and with experts.

Layers without kv heads are Mamba-2, the others attention without positions (the file disables the
rotary embedding). A layer's second part is routed experts with a shared one, or dense. The file
scales the embedding, attention scores, both residual branches and the logits.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.recurrent import Mamba2
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a `granitehybrid` model."""
    rope = RoPE(config.rope, interleaved=True) if config.rope_enabled else None
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope)
            if config.kv_heads[layer]
            else Mamba2(config, weights, layer)
        ),
    )
