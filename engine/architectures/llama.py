"""Llama and its relatives: Mixtral, Mistral 3, Granite 3 and 4, ERNIE 4.5, Llama 4.

The rotary embedding uses interleaved pairs and covers the whole head (the converter permutes q and
k to match). Differences:

- llama: Llama 3 divides rotary frequencies by `rope_freqs.weight`. In Mixtral, every layer is an
  MoE layer: softmax over all experts, renormalised weights, and experts whose hidden width is
  `feed_forward_length`.
- mistral3: uses YaRN. If `attention.temperature_scale` is set, queries are scaled up at positions
  beyond the original context length.
- granite, granitemoe: multipliers for the embedding, the attention scores, both residual branches
  and the logits. There is no rotary embedding if `rope.scaling.finetuned` is false. In MoE models,
  every layer is an MoE layer and routes as in Mixtral; some models add a shared expert.
- ernie4_5-moe: the first layers are dense. The router uses a selection bias and renormalises the
  weights. Shared experts, stored as one expert, always run.
- llama4: Scout and Maverick. Three of every four layers rotate q and k and attend only within the
  token's chunk. The fourth has no rotary embedding and attends to all tokens; its queries are
  scaled up as the position grows. Scout normalises q and k after rotating them. The router chooses
  the expert with the largest logit and multiplies its input by the logit's sigmoid. A shared expert
  always runs.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import RoPE, Temperature
from engine.nn.weights import Weights

LLAMA4_TEMPERATURE = Temperature(scale=0.1, length=8192, shift=1)
MAVERICK_EXPERTS = 128


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a Llama-like model."""
    rope = _rope(config, weights) if config.rope_enabled else None
    scale, length = config.temperature_scale, config.rope.original_context
    temperature = Temperature(scale, length) if scale else None
    return Decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, temperature=temperature),
    )


def llama4(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `llama4` model."""
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
