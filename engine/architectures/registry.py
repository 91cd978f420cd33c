"""The supported architectures: the function that builds each one, and defaults that files omit.

The table is indexed by a GGUF file's `general.architecture` string. A key in the file overrides the
row's default. This module does not import MLX; `builder` imports an architecture's module on first
use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import UnsupportedError

# Gating functions, numbered as in `expert_gating_func`, which has no value for SPARSE_MIXER.
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS, SPARSE_MIXER = 1, 2, 3, 4, -1
NEVER_FULL = 512  # a period of windows longer than any model
# Families whose activations pass float16's 65,504, or may: a GPU computes them in float32.
WIDE_ACTIVATIONS = {"deepseek4", "gemma2", "gemma3", "gemma4", "gpt-oss", "qwen4exp"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The builder and defaults of one architecture.

    build: "module" or "module:function" in `engine.architectures`. The default function is `build`.
    window, period: the last of every `period` layers, or the first if `full_first`, attends to all
    tokens. The remaining layers attend only to the most recent `window` tokens or, if `chunked`, to
    tokens in the same chunk. If `period` is 0, there are no windows. A file may list the layers
    with a window instead.
    indexers_shared_from: if the model's context length is at least this, only some layers have
    their own indexer. If it is 0, every layer has one.
    recurrent: the kind of recurrent layer that replaces some attention layers: delta, kda, mamba2
    or conv. decay_bound: the least log decay of a kda layer; 0: none.
    """

    build: str
    gating: int = SOFTMAX
    renormalize: bool = True  # scale the chosen experts' weights to sum to 1
    weight_on_input: bool = False  # router weights scale an expert's input, not its output
    shared_expert: bool = False  # MoE layers have a shared expert that no key mentions
    shared_width_is_one: bool = False  # the width key is per shared expert, not the total
    averages_shared: bool = False  # halve the sum of the routed and the shared experts' outputs
    window: int = 0
    period: int = 0
    full_first: bool = False
    chunked: bool = False
    window_base: float | None = None  # rotary base in windowed layers; None: use `rope.freq_base`
    rotary_share: float = 1.0  # of a head without a window, unless a key says how many values
    attention_scale: float = 0.0  # of attention scores; 0: key width ^ -0.5
    centred_norms: bool = False  # norms are layer norms, unless the file has an RMS epsilon
    scales_logits_up: bool = False  # logits are multiplied by `logit_scale`, not divided
    score_cap: float = 0.0  # tanh soft cap for attention scores; 0: no cap
    logit_cap: float = 0.0
    recurrent: str = ""
    decay_bound: float = 0.0
    yarn_rounded: bool = True  # round the ends of YaRN's ramp outwards to whole pairs
    log_multiplier_unit: float = 1.0  # files store `yarn_log_multiplier` multiplied by this
    rotates: bool = True  # if False, there is no rotary embedding, whatever the keys say
    rope_optional: bool = False  # `rope.scaling.finetuned` = false disables the rotary embedding
    indexers_shared_from: int = 0  # 0: every layer has its own indexer
    sigmoid_vocabulary: int = 0  # vocabulary size of the model whose files omit sigmoid gating
    single_blocks: bool = False  # a layer is a mixer or a feed-forward layer, not both
    routed_as_dense: bool = False  # expert width is `feed_forward_length` / experts used


ARCHITECTURES = {
    "afmoe": Architecture("windowed:afmoe", gating=SIGMOID, period=4),  # Trinity
    # Ling 2.0, Ring 2.0 (mini to 1T)
    "bailingmoe2": Architecture("qwen", gating=SIGMOID, shared_width_is_one=True),
    # Ling 3 (tiny, flash)
    "bailingmoe3": Architecture(
        "hybrid:bailing", gating=SIGMOID, recurrent="kda", decay_bound=-5.0
    ),
    # DeepSeek-V2 to V3.1, R1, Kimi K2, Mistral Large 3, Moonlight; GLM-4.7-Flash (no gating key)
    "deepseek2": Architecture(
        "deepseek", renormalize=False, log_multiplier_unit=0.1, sigmoid_vocabulary=154_880
    ),
    "cohere2moe": Architecture(  # North Mini
        "windowed:cohere2moe",
        gating=SIGMOID,
        renormalize=False,
        averages_shared=True,
        period=4,
        full_first=True,
        centred_norms=True,
        scales_logits_up=True,
    ),
    "deepseek32": Architecture(
        "deepseek:deepseek32", gating=SIGMOID, renormalize=False, log_multiplier_unit=0.1
    ),
    # DeepSeek V4 Flash, V4 Pro. Every layer has a window.
    "deepseek4": Architecture("deepseek4", gating=SQRT_SOFTPLUS, window=128, period=NEVER_FULL),
    "dots1": Architecture("qwen", gating=SIGMOID),  # dots.llm1
    "ernie4_5": Architecture("llama"),  # ERNIE 4.5 0.3B
    "ernie4_5-moe": Architecture("llama"),  # ERNIE-4.5-21B-A3B, 300B-A47B
    "exaone-moe": Architecture("qwen:exaone", gating=SIGMOID, window=128, period=4),  # K-EXAONE
    "gemma2": Architecture("gemma:gemma2", window=4096, period=2, score_cap=50.0, logit_cap=30.0),
    "gemma3": Architecture("gemma:gemma3", period=6, window_base=10_000.0),
    # Gemma 4: 26B-A4B, 31B, E2B, E4B
    "gemma4": Architecture("gemma4", period=6, window_base=10_000.0, attention_scale=1.0),
    "glm-dsa": Architecture(  # GLM-5, 5.1, 5.2
        "deepseek:glm_dsa",
        gating=SIGMOID,
        renormalize=False,
        log_multiplier_unit=0.1,
        indexers_shared_from=1 << 20,
    ),
    "glm4moe": Architecture("qwen", gating=SIGMOID),  # GLM-4.5, 4.5-Air, 4.6, 4.7
    "gpt-oss": Architecture("gpt_oss", gating=SOFTMAX_OF_CHOSEN, period=2, yarn_rounded=False),
    "granite": Architecture("llama", rope_optional=True),  # Granite 3.x and 4.0, dense
    "granitehybrid": Architecture("hybrid:granite", recurrent="mamba2", rope_optional=True),
    # Granite 3.x MoE (1B-A400M, 3B-A800M)
    "granitemoe": Architecture("llama", rope_optional=True),
    "hunyuan-moe": Architecture("qwen:hunyuan", shared_width_is_one=True),  # Hunyuan-A13B
    "hy_v3": Architecture("qwen", gating=SIGMOID),  # Hy 3, Hy-MT2 30B-A3B
    "kimi-linear": Architecture("hybrid:kimi", gating=SIGMOID, recurrent="kda"),  # 48B-A3B
    # Laguna XS.2, S 2.1, M.1
    "laguna": Architecture("windowed:laguna", gating=SIGMOID, period=4, full_first=True),
    "lfm2": Architecture("hybrid:lfm2", recurrent="conv"),  # LFM2, LFM2.5
    "lfm2moe": Architecture("hybrid:lfm2", gating=SIGMOID, recurrent="conv"),
    "llama": Architecture("llama"),  # Llama 2 and 3, SmolLM2, Mistral, Mixtral
    "llama4": Architecture(  # Llama 4 Scout and Maverick
        "llama:llama4",
        gating=SIGMOID,
        renormalize=False,
        weight_on_input=True,
        shared_expert=True,
        window=8192,
        period=4,
        chunked=True,
    ),
    "mellum": Architecture("windowed", period=4),  # Mellum 2
    "mimo2": Architecture("qwen", gating=SIGMOID, period=1),  # MiMo V2 Flash, V2.5
    "minimax-m2": Architecture("qwen", gating=SIGMOID),  # MiniMax M2
    "mistral3": Architecture("llama"),  # Ministral 3, Mistral Small 3
    "mistral4": Architecture(
        "deepseek", renormalize=False, log_multiplier_unit=0.1
    ),  # Mistral Small 4
    # Nemotron-H, Nemotron Nano 2
    "nemotron_h": Architecture(
        "hybrid:nemotron", recurrent="mamba2", single_blocks=True, rotates=False
    ),
    "nemotron_h_moe": Architecture(  # Nemotron 3 Nano, Super, Puzzle
        "hybrid:nemotron", gating=SIGMOID, recurrent="mamba2", single_blocks=True, rotates=False
    ),
    "olmoe": Architecture("qwen", renormalize=False),  # OLMoE-1B-7B
    "phimoe": Architecture("phimoe", gating=SPARSE_MIXER, renormalize=False),  # Phi-3.5-MoE
    "qwen2": Architecture("qwen"),  # Qwen2, Qwen2.5
    # Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B
    "qwen2moe": Architecture("qwen", renormalize=False, routed_as_dense=True),
    "qwen3": Architecture("qwen"),  # Qwen3, 0.6B to 32B
    "qwen35": Architecture("hybrid:qwen35", recurrent="delta"),  # Qwen3.5, Qwen3.6
    "qwen35moe": Architecture("hybrid:qwen35", recurrent="delta"),
    "qwen3moe": Architecture("qwen"),  # Qwen3-30B-A3B, 235B-A22B, Qwen3-Coder
    "qwen3next": Architecture("hybrid:qwen3next", recurrent="delta"),
    "qwen4exp": Architecture("qwen4exp", recurrent="delta"),  # Qwen3.8 Flash Next
    "qwen3vl": Architecture("qwen"),  # the text models of Qwen3-VL, 2B to 32B, ...
    "qwen3vlmoe": Architecture("qwen"),  # ... and 30B-A3B, 235B-A22B
    "step35": Architecture(  # Step 3.5 Flash, 3.7 Flash
        "windowed", gating=SIGMOID, period=4, full_first=True, rotary_share=0.5
    ),
}


def require_architecture(name: str) -> Architecture:
    """Return an architecture's row. Raises UnsupportedError if the architecture is unknown."""
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"architecture {name!r} is not supported (supported: {supported})")
    return ARCHITECTURES[name]


def builder(name: str) -> Callable[..., Any]:
    """Import and return an architecture's function `(ModelConfig, Weights) -> Decoder`."""
    module, _, function = require_architecture(name).build.partition(":")
    source = importlib.import_module(f"engine.architectures.{module}")
    found: Callable[..., Any] = getattr(source, function or "build")
    return found
