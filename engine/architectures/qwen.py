"""Qwen 2 and 3 and similar models.

OLMoE, MiniMax M2, dots.llm1, Ling 2.0, GLM-4.5, Hunyuan, Hy 3, K-EXAONE, MiMo V2.

The rotary embedding uses pairs (i, i + dims/2). The file sets the head width. Unless noted, the
router uses softmax over all experts and renormalises the weights. Differences, which the file's
tensors and keys determine:

- qwen2, qwen2moe: q, k and v have biases but no norms. Router weights are not renormalised. The
  shared expert has a sigmoid gate.
- qwen3, qwen3moe: q and k are normalised per head before the rotary embedding.
- olmoe: q and k are normalised as whole projections, then split into heads. Router weights are not
  renormalised.
- minimax-m2: norms as in olmoe. The rotary embedding covers part of each head. The router uses
  sigmoid with a selection bias.
- dots1: norms as in qwen3. The first layers are dense. The router uses sigmoid with a selection
  bias and scales the weights. Shared experts, stored as one expert, always run.
- bailingmoe2: like dots1, but q, k and v are stored as one tensor, the rotary embedding covers half
  of each head, and experts are chosen from the best groups.
- glm4moe: q, k and v have biases; the large models also have head norms. The rotary embedding
  covers half of each head. Routing is the same as in dots1.
- hunyuan-moe: q and k are normalised per head after the rotary embedding. A shared expert always
  runs.
- hy_v3: like dots1, but only the tensors show which layers are dense.
- exaone-moe: like dots1, but three of every four layers use a sliding window. The remaining layers
  have no rotary embedding.
- mimo2: no norms of q and k, and no shared expert. Values are narrower than keys and are scaled.
  Windowed layers have sinks, more kv heads, and a rotary embedding with another base, which covers
  part of each head. The first layer is dense; routing is the same as in dots1.
"""

from dataclasses import replace

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(
    config: ModelConfig,
    weights: Weights,
    norm_after_rope: bool = False,
    rope_in_full_layers: bool = True,
) -> Decoder:
    """Build a Qwen-like model.

    rope_in_full_layers: if False, only windowed layers have a rotary embedding.
    """
    divisors = weights.optional_vector("rope_freqs.weight", config.rope.dims // 2)
    full, windowed = (
        RoPE(replace(config.rope, base=base), interleaved=False, divisors=divisors)
        for base in (config.rope.base, config.window_rope.base)
    )

    def attention(layer: int) -> Attention:
        rope = windowed if config.window(layer) else full if rope_in_full_layers else None
        return Attention(config, weights, layer, rope, norm_after_rope=norm_after_rope)

    return Decoder(config, weights, attention)


def hunyuan(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `hunyuan-moe` model."""
    return build(config, weights, norm_after_rope=True)


def exaone(config: ModelConfig, weights: Weights) -> Decoder:
    """Build an `exaone-moe` model."""
    return build(config, weights, rope_in_full_layers=False)
