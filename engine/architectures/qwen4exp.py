"""qwen4exp: Qwen3.8 Flash Next.

The residual has several streams, which need no other norms. Gated delta nets as in Qwen3.5, with a
sigmoid for the gate, and gated attention as there, in which an indexer chooses blocks of tokens.
One layer begins with embeddings of n-grams. All layers are MoE layers that route by softmax,
renormalise the weights and add a gated shared expert.
"""

from functools import partial

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, FeedForwardLayer, Mixer
from engine.nn.recurrent import GatedDeltaNet
from engine.nn.rope import RoPE
from engine.nn.streams.connections import GatedStreams, StreamBlock, require_streams, token_ids
from engine.nn.streams.ngrams import NgramEmbedding
from engine.nn.streams.sparse import SparseAttention
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `qwen4exp` model."""
    require_streams(config)
    rope = RoPE(config.rope, interleaved=False)

    def mixer(layer: int) -> Mixer:
        if not config.kv_heads[layer]:
            return GatedDeltaNet(config, weights, layer, tiled=True, sigmoid_gate=True)
        if config.blocks and config.blocks.ratios[layer]:
            return SparseAttention(config, weights, layer, rope)
        return Attention(config, weights, layer, rope, gated=True)

    return Decoder(
        config,
        weights,
        mixer,
        block=_block,
        embed_per_layer=token_ids(config),
        end=partial(GatedStreams, name="output_hc", writes=False),
    )


def _block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> StreamBlock:
    name, ngrams = f"blk.{layer}.", config.ngrams
    return StreamBlock(
        GatedStreams(config, weights, name + "hc_attn"),
        mixer,
        GatedStreams(config, weights, name + "hc_ffn"),
        feed_forward,
        ngrams=NgramEmbedding(config, weights, layer) if ngrams and ngrams.layer == layer else None,
    )
