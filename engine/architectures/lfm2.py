"""lfm2 and lfm2moe: LFM2 and LFM2.5, dense and with experts.

Layers without kv heads are short convolutions, the others attention with q and k normalised per
head. With experts, the first layers are dense; the rest route by sigmoid with a bias for selection
only, and renormalise the weights. The last norm is stored as `token_embd_norm`.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.recurrent import ShortConvolution
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of an `lfm2` or `lfm2moe` model."""
    rope = RoPE(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope)
            if config.kv_heads[layer]
            else ShortConvolution(config, weights, layer)
        ),
        output_norm="token_embd_norm",
    )
