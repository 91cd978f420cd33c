"""Llama and its relatives: Mixtral, Mistral 3, Granite 3 and 4, ERNIE 4.5, Llama 4.

Rotary embedding on interleaved pairs of the whole head (the converter permutes q and k for it).
Some files add:

- llama: Llama 3 divides rotary frequencies by `rope_freqs.weight`. Mixtral routes every layer:
  softmax over all experts, renormalised weights, experts as wide as `feed_forward_length`.
- mistral3: YaRN; with `attention.temperature_scale`, queries grow with the number of original
  contexts before them.
- granite, granitemoe: multipliers on the embedding, the attention scores, both residual branches
  and the logits. No positions if `rope.scaling.finetuned` is false. With experts, every layer is
  routed as in Mixtral, in some models with a shared expert.
- ernie4_5-moe: the first layers are dense; routing adds a bias for selection only, renormalises the
  weights, and shared experts, stored as one, always run.
- llama4: Scout and Maverick. Three of four layers rotate q and k and attend within the token's own
  chunk. The fourth has no positions and attends to all tokens; its queries grow with their chunk's
  number. Scout normalises q and k after rotating them. Router: the best expert by logit, its input
  scaled by the logit's sigmoid; a shared expert always runs.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import RoPE, Temperature
from engine.nn.weights import Weights

LLAMA4_TEMPERATURE = Temperature(scale=0.1, length=8192, shift=1)
MAVERICK_EXPERTS = 128


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a Llama-like model."""
    rope = _rope(config, weights) if config.rope_enabled else None
    scale, length = config.temperature_scale, config.rope.original_context
    temperature = Temperature(scale, length) if scale else None
    return Decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, temperature=temperature),
    )


def llama4(config: ModelConfig, weights: Weights) -> Decoder:
    """Build Llama 4."""
    rope = _rope(config, weights)
    normalized = not (config.experts and config.experts.count == MAVERICK_EXPERTS)

    def attention(layer: int) -> Attention:
        if any(config.windows) and not config.windows[layer]:
            return Attention(config, weights, layer, None, temperature=LLAMA4_TEMPERATURE)
        return Attention(config, weights, layer, rope, l2_norm=normalized)

    return Decoder(config, weights, attention)


def _rope(config: ModelConfig, weights: Weights) -> RoPE:
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    return RoPE(config.rope, interleaved=True, divisors=divisors)
