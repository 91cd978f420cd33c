"""What an architecture fixes and its files need not say, one row each. Knows no tensors, no MLX.

A key in the file wins over the row wherever the key exists. Beside its row an architecture has a
page in `engine.architectures`; a row is needed only where it differs from the defaults of `Family`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Gating functions, numbered as `expert_gating_func` numbers them; the last has no number there.
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SPARSE_MIXER = 1, 2, 3, -1


@dataclass(frozen=True, slots=True)
class Family:
    """The defaults of one architecture.

    window, period: of every `period` layers all but the last see `window` tokens only, as
    `chunked` says the last ones or those of the same chunk; period 0 is no such layer.
    indexers_shared_from: the context from which on only some layers have an indexer of their own.
    recurrent: what takes the place of attention in some layers: delta, mamba2 or conv.
    """

    gating: int = SOFTMAX
    renormalize: bool = True  # the weights of the chosen experts
    weight_on_input: bool = False  # they scale what an expert reads, not what it gives
    shared_expert: bool = False  # in every routed layer, though no key counts it
    shared_width_is_one: bool = False  # the key gives the width of one of the shared experts
    window: int = 0
    period: int = 0
    chunked: bool = False
    window_base: float | None = None  # rotary base of windowed layers; None is that of the others
    score_cap: float = 0.0  # tanh cap on attention scores, 0 for none
    logit_cap: float = 0.0
    recurrent: str = ""
    yarn_rounded: bool = True  # the ends of YaRN's ramp are rounded outwards to whole pairs
    log_multiplier_unit: float = 1.0  # `yarn_log_multiplier` is stored times this
    rope_optional: bool = False  # `rope.scaling.finetuned` false turns rotary embedding off
    indexers_shared_from: int = 0  # 0: every layer has one
    sigmoid_vocabulary: int = 0  # of the one model whose files leave sigmoid gating unsaid
    routed_as_dense: bool = False  # experts as wide as `feed_forward_length` over those used


FAMILIES = {
    "bailingmoe2": Family(gating=SIGMOID, shared_width_is_one=True),
    "deepseek2": Family(
        renormalize=False,
        log_multiplier_unit=0.1,
        sigmoid_vocabulary=154_880,  # GLM-4.7-Flash
    ),
    "deepseek32": Family(gating=SIGMOID, log_multiplier_unit=0.1),
    "dots1": Family(gating=SIGMOID),
    "gemma2": Family(window=4096, period=2, score_cap=50.0, logit_cap=30.0),
    "gemma3": Family(period=6, window_base=10_000.0),
    "glm-dsa": Family(gating=SIGMOID, log_multiplier_unit=0.1, indexers_shared_from=1 << 20),
    "glm4moe": Family(gating=SIGMOID),
    "gpt-oss": Family(gating=SOFTMAX_OF_CHOSEN, period=2, yarn_rounded=False),
    "granitehybrid": Family(recurrent="mamba2", rope_optional=True),
    "granite": Family(rope_optional=True),
    "granitemoe": Family(rope_optional=True),
    "hunyuan-moe": Family(shared_width_is_one=True),
    "lfm2": Family(recurrent="conv"),
    "lfm2moe": Family(gating=SIGMOID, recurrent="conv"),
    "llama4": Family(
        gating=SIGMOID,
        renormalize=False,
        weight_on_input=True,
        shared_expert=True,
        window=8192,
        period=4,
        chunked=True,
    ),
    "minimax-m2": Family(gating=SIGMOID),
    "olmoe": Family(renormalize=False),
    "phimoe": Family(gating=SPARSE_MIXER, renormalize=False),
    "qwen2moe": Family(renormalize=False, routed_as_dense=True),
    "qwen35": Family(recurrent="delta"),
    "qwen35moe": Family(recurrent="delta"),
    "qwen3next": Family(recurrent="delta"),
}


def family_of(architecture: str) -> Family:
    """Look an architecture's defaults up."""
    return FAMILIES.get(architecture, Family())
