"""Models in which recurrent layers replace most of the attention: those without kv heads.

- granitehybrid: Granite 4.0-H, dense and with experts. Mamba-2, and attention without positions
  (the file disables the rotary embedding). Multipliers as in Granite 3.
- lfm2, lfm2moe: LFM2 and LFM2.5. Short convolutions, and attention with head norms. With experts,
  the first layers are dense; the rest route by sigmoid with a bias for selection only. The last
  norm is stored as `token_embd_norm`.
- qwen3next, qwen35, qwen35moe: Qwen3-Next, Qwen3.5 and Qwen3.6. Gated delta nets, and attention
  with head norms whose output is multiplied by the sigmoid of a gate stored behind each head's
  query; the rotary embedding covers part of each head. Softmax over all experts, plus a gated
  shared expert. The converter has added 1 to norms stored around 0. For text, the three axes of
  the rotary embedding of qwen35 are one.
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
    """Build Granite 4.0-H."""
    rope = RoPE(config.rope, interleaved=True) if config.rope_enabled else None
    attention = partial(Attention, config, weights, rope=rope)
    return _build(config, weights, attention, partial(Mamba2, config, weights))


def lfm2(config: ModelConfig, weights: Weights) -> Decoder:
    """Build LFM2 and LFM2.5."""
    attention = partial(Attention, config, weights, rope=RoPE(config.rope, interleaved=False))
    recurrent = partial(ShortConvolution, config, weights)
    return _build(config, weights, attention, recurrent, output_norm="token_embd_norm")


def qwen3next(config: ModelConfig, weights: Weights, tiled: bool = False) -> Decoder:
    """Build Qwen3-Next. tiled: the order of the delta nets' value heads, see `GatedDeltaNet`."""
    rope = RoPE(config.rope, interleaved=False)
    attention = partial(Attention, config, weights, rope=rope, gated=True)
    return _build(config, weights, attention, partial(GatedDeltaNet, config, weights, tiled=tiled))


def qwen35(config: ModelConfig, weights: Weights) -> Decoder:
    """Build Qwen3.5, whose converter stores value heads tiled: one per key head, then the next."""
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
