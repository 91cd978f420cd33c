"""Llama and its twins: Mixtral, Mistral 3, Granite 3 and 4, ERNIE 4.5.

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
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder, pre_norm_decoder
from engine.nn.rope import RoPE, Temperature
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a Llama-like model."""
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    rope = RoPE(config.rope, interleaved=True, divisors=divisors) if config.rope_enabled else None
    scale, length = config.temperature_scale, config.rope.original_context
    temperature = Temperature(scale, length) if scale else None
    return pre_norm_decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, temperature=temperature),
    )
