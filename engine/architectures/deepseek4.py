"""deepseek4: DeepSeek V4 Flash and V4 Pro.

The residual has several streams. Attention has one key head, whose keys are values too, a window,
and in most layers entries for blocks of earlier tokens. The first layers choose experts by the
token's id; the rest by the square root of softplus, with a selection bias. Both renormalise the
weights, scale them, and add a shared expert. The gate is clamped before silu, and `up` separately.
"""

import mlx.core as mx

from engine.errors import GGUFError
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, FeedForwardLayer, Mixer
from engine.nn.mlp import clamped_gate
from engine.nn.moe import SharedExperts
from engine.nn.norm import required_norm
from engine.nn.streams.compressed import CompressedAttention, require_parts
from engine.nn.streams.connections import ManifoldEnd, ManifoldStreams, StreamBlock, token_ids
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `deepseek4` model."""
    require_parts(config)

    def feed_forward(layer: int) -> SharedExperts:
        clamps = (config.expert_clamps[layer], config.dense_clamps[layer])
        activations = (clamped_gate(limit) for limit in clamps)
        return SharedExperts(config, weights, layer, *activations)

    return Decoder(
        config,
        weights,
        lambda layer: CompressedAttention(config, weights, layer),
        feed_forward,
        block=_block,
        embed_per_layer=token_ids(config),
        end=ManifoldEnd,
    )


def _block(
    config: ModelConfig, weights: Weights, layer: int, mixer: Mixer, feed_forward: FeedForwardLayer
) -> StreamBlock:
    name = f"blk.{layer}."
    return StreamBlock(
        ManifoldStreams(config, weights, name + "hc_attn"),
        mixer,
        ManifoldStreams(config, weights, name + "hc_ffn"),
        feed_forward,
        required_norm(weights, name + "attn_norm", config),
        required_norm(weights, name + "ffn_norm", config),
        _table(config, weights, layer),
    )


def _table(config: ModelConfig, weights: Weights, layer: int) -> mx.array | None:
    experts = config.experts
    assert experts is not None
    if layer >= experts.hashed_layers:
        return None
    name = f"blk.{layer}.ffn_gate_tid2eid.weight"
    table = weights.table(name, config.vocab, experts.used)
    if mx.any((table < 0) | (table >= experts.count)).item():
        raise GGUFError(f"tensor {name!r} names experts that do not exist")
    return table
