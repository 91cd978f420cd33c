"""lfm2 and lfm2moe: LFM2 and LFM2.5, dense and with experts.

Layers without kv heads are short convolutions, the others attention with q and k normalised by
head. The first layers are dense; in the rest a sigmoid scores the experts, a bias has a say in the
choice only, and the chosen weights are renormalised. The last norm is called `token_embd_norm`.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.recurrent import ShortConvolution
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of an `lfm2` or `lfm2moe` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: (
            Attention(config, weights, layer, rope)
            if config.kv_heads[layer]
            else ShortConvolution(config, weights, layer)
        ),
        lambda layer: feed_forward(config, weights, layer),
        output_norm="token_embd_norm",
    )
