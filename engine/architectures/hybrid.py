"""Models in which recurrent layers replace most attention layers.

Layers without kv heads are recurrent.

- granitehybrid: Granite 4.0-H, dense and MoE. Mamba-2 layers, and attention without a rotary
  embedding (the file disables it). The multipliers are the same as in Granite 3.
- lfm2, lfm2moe: LFM2 and LFM2.5. Short convolutions, and attention with head norms. In MoE models,
  the first layers are dense, and the remaining layers route by sigmoid with a selection bias. The
  final norm is stored as `token_embd_norm`.
- nemotron_h, nemotron_h_moe: Nemotron-H, Nemotron Nano 2, Nemotron 3. Each layer is only a Mamba-2
  layer, attention without a rotary embedding, or a feed-forward layer. Feed-forward layers and
  experts have no gate and square the positive part of what `up` outputs. The router uses sigmoid
  with a selection bias; a shared expert always runs. In Nemotron 3 Super, the routed experts work
  in a narrower space. In Nemotron 3 Puzzle, layers choose different numbers of experts.
- kimi-linear: Kimi Linear. Kimi delta attention, and latent attention without a rotary embedding.
  The first layers are dense; the rest route by sigmoid with a selection bias and add a shared
  expert.
- bailingmoe3: Ling 3. As kimi-linear, but the decays of Kimi delta attention are bounded, latent
  attention has a rotary embedding and a gate per head, and experts are chosen from the best groups.
- qwen3next, qwen35, qwen35moe: Qwen3-Next, Qwen3.5 and Qwen3.6. Gated delta nets, and attention
  with head norms. Attention output is multiplied by the sigmoid of a gate, which is stored after
  each head's query. The rotary embedding covers part of each head. MoE layers route by softmax over
  all experts and add a gated shared expert. The converter adds 1 to norm gains that the checkpoint
  stores centred on 0. qwen35 has a three-axis rotary embedding; for text, the three axes coincide.
"""

from collections.abc import Callable
from functools import partial

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, FeedForwardLayer, Mixer
from engine.nn.mla import LatentAttention, latent_rope
from engine.nn.mlp import squared_relu
from engine.nn.moe import feed_forward
from engine.nn.recurrent import GatedDeltaNet, KimiDeltaAttention, Mamba2, ShortConvolution
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def granite(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `granitehybrid` model."""
    rope = RoPE(config.rope, interleaved=True) if config.rope_enabled else None
    attention = partial(Attention, config, weights, rope=rope)
    return _build(config, weights, attention, partial(Mamba2, config, weights))


def lfm2(config: ModelConfig, weights: Weights) -> Decoder:
    """Build an `lfm2` or `lfm2moe` model."""
    attention = partial(Attention, config, weights, rope=RoPE(config.rope, interleaved=False))
    recurrent = partial(ShortConvolution, config, weights)
    return _build(config, weights, attention, recurrent, output_norm="token_embd_norm")


def kimi(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `kimi-linear` model."""
    attention = partial(LatentAttention, config, weights, rope=None)
    return _build(config, weights, attention, partial(KimiDeltaAttention, config, weights))


def bailing(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `bailingmoe3` model."""
    rope = latent_rope(config.rope, interleaved=True)
    attention = partial(LatentAttention, config, weights, rope=rope)
    return _build(config, weights, attention, partial(KimiDeltaAttention, config, weights))


def nemotron(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `nemotron_h` or `nemotron_h_moe` model."""
    attention = partial(Attention, config, weights, rope=None)
    feed_forward_part = partial(feed_forward, config, weights, activation=squared_relu)
    recurrent = partial(Mamba2, config, weights)
    return _build(config, weights, attention, recurrent, feed_forward_part)


def qwen3next(config: ModelConfig, weights: Weights, tiled: bool = False) -> Decoder:
    """Build a `qwen3next` model. tiled: see `GatedDeltaNet`."""
    rope = RoPE(config.rope, interleaved=False)
    attention = partial(Attention, config, weights, rope=rope, gated=True)
    return _build(config, weights, attention, partial(GatedDeltaNet, config, weights, tiled=tiled))


def qwen35(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `qwen35` or `qwen35moe` model. The converter stores value heads in tiled order."""
    return qwen3next(config, weights, tiled=True)


def _build(
    config: ModelConfig,
    weights: Weights,
    attention: Callable[[int], Mixer],
    recurrent: Callable[[int], Mixer],
    feed_forward_part: Callable[[int], FeedForwardLayer] | None = None,
    output_norm: str = "output_norm",
) -> Decoder:
    def mixer(layer: int) -> Mixer:
        return (attention if config.kv_heads[layer] else recurrent)(layer)

    return Decoder(config, weights, mixer, feed_forward_part, output_norm=output_norm)
