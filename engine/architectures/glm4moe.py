"""glm4moe: GLM-4.5, 4.5-Air, 4.6 and 4.7.

Biases on q, k and v; norms on each head of q and k in the large models; half of each head turns.
After the first layers experts are chosen by sigmoid plus a bias, their weights renormalised and
scaled; a shared expert always runs. The norm before the feed-forward layer is
`post_attention_norm`. Blocks that only draft are left out.
"""

from __future__ import annotations

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.layers import Attention, Rope
from engine.nn.moe import feed_forward
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph from the weights of a `glm4moe` file."""
    rope = Rope(config.rope, interleaved=False)
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope),
        lambda layer: feed_forward(config, weights, layer),
        feed_forward_norm="post_attention_norm",
    )
