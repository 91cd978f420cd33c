"""deepseek2: DeepSeek V2 to V3.1, Kimi K2; deepseek32: DeepSeek-V3.2; glm-dsa: GLM-5.

All models use multi-head latent attention. The first layers are dense; the rest are MoE layers with
shared experts. V2-Lite projects queries in one step and routes by softmax. V3 and later use a
low-rank query projection and route by sigmoid with a selection bias, choosing from groups of
experts. DeepSeek-V3.2 and GLM-5 add a lightning indexer. In GLM-5.2 only some layers have an
indexer, and the layers after each one reuse its choice.
"""

from engine.nn.config import ModelConfig
from engine.nn.decoder import Decoder
from engine.nn.mla import Indexer, LatentAttention, latent_rope, require_indexer
from engine.nn.rope import RoPE
from engine.nn.weights import Weights


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `deepseek2` model."""
    rope = latent_rope(config.rope, interleaved=True)
    return Decoder(config, weights, lambda layer: LatentAttention(config, weights, layer, rope))


def deepseek32(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `deepseek32` model. Its indexer rotates pairs (i, i + dims/2)."""
    return _sparse(config, weights, latent_rope(config.rope, interleaved=False))


def glm_dsa(config: ModelConfig, weights: Weights) -> Decoder:
    """Build a `glm-dsa` model. Its indexer rotates interleaved pairs."""
    return _sparse(config, weights, latent_rope(config.rope, interleaved=True))


def _sparse(config: ModelConfig, weights: Weights, indexer_rope: RoPE) -> Decoder:
    """Build a model in which each layer has its own indexer or reuses the previous layer's."""
    rope = latent_rope(config.rope, interleaved=True)
    indexers: list[Indexer] = []
    for layer, own in enumerate(require_indexer(config).own):
        indexers.append(Indexer(config, weights, layer, indexer_rope) if own else indexers[-1])
    return Decoder(
        config,
        weights,
        lambda layer: LatentAttention(config, weights, layer, rope, indexers[layer]),
    )
