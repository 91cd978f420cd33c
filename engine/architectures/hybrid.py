"""Models in which recurrent layers replace most attention layers.

Layers without kv heads are recurrent.

- granitehybrid: Granite 4.0-H, dense and MoE. Mamba-2 layers, and attention without a rotary
  embedding (the file disables it). The multipliers are the same as in Granite 3.
- lfm2, lfm2moe: LFM2 and LFM2.5. Short convolutions, and attention with head norms. In MoE models,
  the first layers are dense, and the remaining layers route by sigmoid with a selection bias. The
  final norm is stored as `token_embd_norm`.
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
from engine.nn.decoder import Decoder, Mixer
from engine.nn.recurrent import GatedDeltaNet, Mamba2, ShortConvolution
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
    output_norm: str = "output_norm",
) -> Decoder:
    def mixer(layer: int) -> Mixer:
        return (attention if config.kv_heads[layer] else recurrent)(layer)

    return Decoder(config, weights, mixer, output_norm=output_norm)
