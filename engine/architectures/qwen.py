"""Qwen 2 and 3 and their twins: OLMoE, MiniMax M2, dots.llm1, Ling 2.0, GLM-4.5, Hunyuan.

Rotary embedding on pairs (i, i + dims/2); the head width comes from the file. Unless noted, routing
is softmax over all experts with renormalised weights. Tensors and keys of the file select the rest:

- qwen2, qwen2moe: biases on q, k and v, no norms. Weights are not renormalised; a shared expert is
  gated by a sigmoid.
- qwen3, qwen3moe: each head of q and k is normalised before the rotary embedding.
- olmoe: q and k are normalised as whole projections, then split into heads. Weights are not
  renormalised.
- minimax-m2: norms as in olmoe, rotary embedding on part of each head. Routing by sigmoid plus a
  selection bias.
- dots1: norms as in qwen3. Dense first layers, then routing by sigmoid plus a selection bias,
  weights scaled; shared experts, stored as one, always run.
- bailingmoe2: as dots1 with q, k and v stored as one, rotary embedding on half of each head, and
  experts chosen from the best groups.
- glm4moe: biases on q, k and v, head norms in the large models, rotary embedding on half of each
  head; routing as in dots1.
- hunyuan-moe: each head of q and k is normalised after the rotary embedding. A shared expert always
  runs.
"""

from engine.nn.attention import Attention
from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights, norm_after_rope: bool = False) -> Decoder:
    """Build the graph of a Qwen-like model."""
    rope = RoPE(config.rope, interleaved=False)
    return Decoder(
        config,
        weights,
        lambda layer: Attention(config, weights, layer, rope, norm_after_rope=norm_after_rope),
    )


def hunyuan(config: ModelConfig, weights: Weights) -> Decoder:
    """Build Hunyuan-A13B."""
    return build(config, weights, norm_after_rope=True)
