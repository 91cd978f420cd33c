"""Read a model's hyperparameters from GGUF metadata, checking each key's type and range.

An invalid value raises a GGUFError that names the key, so layers can use every value unchecked,
including as a divisor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from engine.architectures.registry import (
    SIGMOID,
    SOFTMAX,
    SOFTMAX_OF_CHOSEN,
    Architecture,
    require_architecture,
)
from engine.errors import GGUFError, UnsupportedError
from engine.gguf.kinds import not_a_model
from engine.gguf.metadata import Metadata
from engine.gguf.reader import TensorInfo, numbers
from engine.nn.cache.spec import CacheSpec

OTHER_PARTS = ("nextn.", "mtp.", "vis_")  # of a block: for drafts and images
# `blk.0.ffn_up_exps.weight`, or `blk.0.ffn_up.7.weight` in files from before April 2024.
OF_EXPERTS = re.compile(r"blk\.\d+\.\w+(_exps|\.\d+)\.\w+")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding for the first `dims` values of each head.

    attention_factor: multiplies cos and sin, in addition to YaRN's own factor.
    log_multiplier: `mscale_all_dim`, or 0 if the file does not set it.
    """

    dims: int
    base: float
    scaling: str = "none"  # none | linear | yarn | longrope
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    rounded: bool = True  # round the ends of YaRN's ramp to whole pairs
    log_multiplier: float = 0.0


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Routed experts in MoE layers: each token uses `used` of the `count` experts.

    Starting at layer `first`, every `step`th layer is an MoE layer. Experts are chosen from the
    best `groups_used` of `groups` groups. width: hidden width of each routed expert. shared_width:
    hidden width of the shared expert, which always runs; 0 if there is none.
    """

    count: int
    used: int
    width: int
    gating: int = SOFTMAX
    renormalize: bool = True  # scale the chosen experts' weights to sum to 1
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    weight_on_input: bool = False
    shared_width: int = 0
    first: int = 0
    step: int = 1


@dataclass(frozen=True, slots=True)
class IndexerConfig:
    """The lightning indexer, which chooses the `top` tokens that each token attends to.

    own: one flag per layer. True if the layer has its own indexer, False if it reuses the
    previous layer's choice.
    """

    heads: int
    dims: int
    top: int
    own: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Multi-head latent attention: keys and values are cached as one `rank`-wide latent per token.

    key_dim, value_dim: width per head; the last `rope.dims` values of each key are rotated.
    query_rank: 0 if queries are projected in one step.
    """

    rank: int
    query_rank: int
    key_dim: int
    value_dim: int
    indexer: IndexerConfig | None = None


@dataclass(frozen=True, slots=True)
class RecurrentConfig:
    """A causal convolution over `kernel` tokens and, except in conv layers, a recurrent state.

    groups: number of key heads (delta), or of groups that share B and C (mamba2). heads: number of
    value heads. state: key width per head. inner: value width summed over all heads. state_values:
    number of float32 values that each layer caches.
    """

    kind: str  # delta | mamba2 | conv
    kernel: int
    state_values: int
    state: int = 0
    groups: int = 0
    heads: int = 0
    inner: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's hyperparameters. Widths are in values, context lengths in tokens."""

    architecture: str
    name: str
    layers: int  # excludes draft-only layers
    width: int
    vocab: int
    context: int
    heads: int
    kv_heads: tuple[int, ...]  # one per layer; 0 where the layer is recurrent
    key_dim: int
    value_dim: int
    feed_forward: tuple[int, ...]  # one per layer
    norm_eps: float
    attention_scale: float
    rope: RopeConfig
    experts: ExpertConfig | None = None
    windows: tuple[int, ...] = ()  # one per layer, in tokens; 0: no window
    chunked: bool = False  # windows do not slide: each token attends only within its chunk
    window_base: float = 0.0  # rotary base in windowed layers
    rope_enabled: bool = True
    score_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0  # multiplies the logits
    temperature_scale: float = 0.0  # `scale` in `engine.nn.rope.Temperature`; 0: disabled
    temperature_length: int = 0  # `length` in `engine.nn.rope.Temperature`, in tokens
    latent: LatentConfig | None = None
    recurrent: RecurrentConfig | None = None

    def cache_spec(self, layer: int) -> CacheSpec:
        """Return the cache spec for a layer."""
        if self.recurrent and not self.kv_heads[layer]:
            return CacheSpec(state_values=self.recurrent.state_values)
        if self.latent:
            indexer = self.latent.indexer
            latents = (1, self.latent.rank + self.rope.dims)
            if indexer is None:
                return CacheSpec((latents,))
            keys = ((1, indexer.dims),) if indexer.own[layer] else ()
            return CacheSpec((latents, *keys), chosen=indexer.top)
        heads = self.kv_heads[layer]
        window = self.windows[layer] if self.windows else 0
        return CacheSpec(((heads, self.key_dim), (heads, self.value_dim)), window=window)

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        return tuple(self.cache_spec(layer) for layer in range(self.layers))

    def routed(self, layer: int) -> bool:
        """Return True if a layer is an MoE layer."""
        experts = self.experts
        return bool(experts and layer >= experts.first and (layer + 1) % experts.step == 0)


def used_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[TensorInfo]:
    """Yield the tensors that the model reads. Skips those for drafts, images and audio."""
    return (info for name, info in tensors.items() if _is_read(name, config.layers))


def _is_read(name: str, layers: int) -> bool:
    first, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    if first != "blk":
        return not inner  # `output.weight`, but not `mm.0.weight` or `v.patch_embd.weight`
    beyond = layer.isdecimal() and int(layer) >= layers
    return not (beyond or inner.startswith(OTHER_PARTS))


def token_share(
    info: TensorInfo, config: ModelConfig, tensors: Mapping[str, TensorInfo]
) -> Fraction:
    """Return the fraction of a tensor that one token uses.

    A token uses only the chosen experts of an expert tensor, and only one row of an untied
    embedding. It uses all of every other tensor.
    """
    if info.name == "token_embd.weight" and "output.weight" in tensors:
        return Fraction(1, config.vocab)
    if config.experts and OF_EXPERTS.fullmatch(info.name):
        return Fraction(config.experts.used, config.experts.count)
    return Fraction(1)


def count_parameters(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Return the total parameter count and the number of parameters active per token."""
    used = list(used_tensors(config, tensors))
    total = sum(math.prod(info.shape) for info in used)
    active = sum(math.prod(info.shape) * token_share(info, config, tensors) for info in used)
    return total, int(active)


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """Return the architecture string. Raises GGUFError if it is missing."""
    value = metadata.get("general.architecture")
    if not isinstance(value, str) or not value:
        raise GGUFError("general.architecture must be a non-empty string")
    return value


def read_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Read and check the hyperparameters.

    Raises UnsupportedError if the architecture is unknown, or GGUFError if a key is invalid. The
    architecture is checked first.
    """
    architecture = architecture_of(metadata)
    defaults = require_architecture(architecture)
    keys = Metadata(metadata, architecture)
    blocks = keys.integer("block_count", 1, 512)
    layers = blocks - keys.integer("nextn_predict_layers", 0, blocks - 1, 0)
    width = keys.integer("embedding_length", 1, 1 << 20)
    heads = keys.same("attention.head_count", layers, 1, 65_536)
    recurrent = _read_recurrent(keys, defaults.recurrent, width)
    key_dim = keys.integer("attention.key_length", 1, 65_536, width // heads)
    value_dim = keys.integer("attention.value_length", 1, 65_536, width // heads)
    # Files without dense layers may store 0.
    least = 0 if "expert_feed_forward_length" in keys else 1
    feed_forward = (0,) * layers
    if least or "feed_forward_length" in keys:
        feed_forward = keys.integers("feed_forward_length", layers, least, 1 << 24)
    latent = _read_latent(keys, defaults, layers, key_dim, value_dim)
    rope = _read_rope(keys, defaults, key_dim, latent)
    scored = latent.key_dim if latent else key_dim
    vocab = _vocabulary_size(metadata, keys)
    name = metadata.get("general.name")
    return ModelConfig(
        architecture=architecture,
        name=name if isinstance(name, str) else architecture,
        layers=layers,
        width=width,
        vocab=vocab,
        context=keys.integer("context_length", 1, 1 << 31),
        heads=heads,
        kv_heads=_read_kv_heads(keys, layers, heads, recurrent),
        key_dim=key_dim,
        value_dim=value_dim,
        feed_forward=feed_forward,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        attention_scale=keys.number("attention.scale", 0.0, 1e6, 0.0) or scored**-0.5,
        rope=rope,
        experts=_read_experts(keys, defaults, layers, max(feed_forward), vocab),
        windows=_read_windows(keys, defaults, layers),
        chunked=defaults.chunked,
        window_base=keys.number("rope.freq_base_swa", 2.0, 1e12, defaults.window_base or rope.base),
        rope_enabled=not defaults.rope_optional or keys.flag("rope.scaling.finetuned", True),
        score_cap=keys.number("attn_logit_softcapping", 0.0, 1e6, defaults.score_cap),
        logit_cap=keys.number("final_logit_softcapping", 0.0, 1e6, defaults.logit_cap),
        embedding_scale=keys.number("embedding_scale", 0.0, 1e6, 0.0) or 1.0,
        residual_scale=keys.number("residual_scale", 0.0, 1e6, 0.0) or 1.0,
        logit_scale=1 / (keys.number("logit_scale", 0.0, 1e6, 0.0) or 1.0),
        temperature_scale=keys.number("attention.temperature_scale", 0.0, 1e3, 0.0),
        temperature_length=keys.integer("attention.temperature_length", 0, 1 << 31, 0),
        latent=latent,
        recurrent=recurrent,
    )


def read_model_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> ModelConfig:
    """Read the hyperparameters of a complete text model.

    Raises UnsupportedError, naming the kind of file, for any other file. Otherwise raises the same
    errors as `read_config`.
    """
    if kind := not_a_model(metadata, tensors):
        raise UnsupportedError(f"not a model that can run, but {kind}")
    return read_config(metadata)


def _vocabulary_size(metadata: Mapping[str, Any], keys: Metadata) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError("tokenizer.ggml.tokens must be a non-empty array")
    if "vocab_size" in keys and keys.integer("vocab_size", 1, 1 << 24) != len(tokens):
        raise GGUFError(f"{keys.prefix}vocab_size must equal the token count ({len(tokens):,})")
    return len(tokens)


def _read_kv_heads(
    keys: Metadata, layers: int, heads: int, recurrent: RecurrentConfig | None
) -> tuple[int, ...]:
    name, kv_heads = "attention.head_count_kv", (heads,) * layers
    if name in keys:
        kv_heads = keys.integers(name, layers, 0 if recurrent else 1, 65_536)
    if any(kv and heads % kv for kv in kv_heads):
        raise GGUFError(f"{keys.prefix + name} must divide the query head count ({heads})")
    if recurrent is None or recurrent.kind != "delta":
        return kv_heads
    if "attention.recurrent_layers" in keys:
        marked = keys.flags("attention.recurrent_layers", layers)
    else:
        interval = keys.integer("full_attention_interval", 1, 512, 4)
        marked = tuple((layer + 1) % interval != 0 for layer in range(layers))
    return tuple(0 if m else kv for m, kv in zip(marked, kv_heads, strict=True))


def _read_windows(keys: Metadata, defaults: Architecture, layers: int) -> tuple[int, ...]:
    if not defaults.period:
        return (0,) * layers
    window = keys.integer("attention.sliding_window", 0, 1 << 31, defaults.window)
    pattern = "attention.sliding_window_pattern"
    if pattern in keys and numbers(keys.metadata[keys.prefix + pattern]) is not None:
        windowed = keys.flags(pattern, layers)
    else:
        period = keys.integer(pattern, 1, 512, defaults.period)
        windowed = tuple(layer % period < period - 1 for layer in range(layers))
    return tuple(window if w else 0 for w in windowed)


def _read_rope(
    keys: Metadata, defaults: Architecture, key_dim: int, latent: LatentConfig | None
) -> RopeConfig:
    dims = keys.integer("rope.dimension_count", 2, key_dim, key_dim)
    if dims % 2:
        raise GGUFError(f"{keys.prefix}rope.dimension_count must be even, got {dims}")
    if latent and dims >= latent.key_dim:
        raise GGUFError(f"{keys.prefix}rope.dimension_count must be less than the key length")
    if latent and latent.indexer and dims > latent.indexer.dims:
        raise GGUFError(f"{keys.prefix}attention.indexer.key_length must be at least {dims}")
    scaling = keys.word("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(f"{keys.prefix}rope.scaling.type {scaling!r} is not supported")
    legacy = keys.number("rope.scale_linear", 0.0, 1e6, 1.0)
    factor = keys.number("rope.scaling.factor", 0.0, 1e6, legacy) or 1.0
    if scaling == "none" and "rope.scaling.type" not in keys and factor != 1.0:
        scaling = "linear"
    original = keys.integer("rope.scaling.original_context_length", 0, 1 << 31, 0)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0)
    return RopeConfig(
        dims=dims,
        base=keys.number("rope.freq_base", 2.0, 1e12, 10_000.0),
        scaling=scaling,
        factor=factor,
        original_context=original or keys.integer("context_length", 1, 1 << 31),
        attention_factor=keys.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0) or 1.0,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        rounded=defaults.yarn_rounded,
        log_multiplier=multiplier / defaults.log_multiplier_unit,
    )


def _read_experts(
    keys: Metadata, defaults: Architecture, layers: int, dense: int, vocab: int
) -> ExpertConfig | None:
    """Read the expert configuration. dense: hidden width of the dense feed-forward layers."""
    count = keys.integer("expert_count", 0, 1024, 0)
    if count == 0:
        return None
    gating = keys.integer("expert_gating_func", 0, 255, 0)
    if gating and gating not in (SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN):
        raise UnsupportedError(f"{keys.prefix}expert_gating_func {gating} is not supported")
    used = keys.same("expert_used_count", layers, 1, count)
    default = dense // used if defaults.routed_as_dense else dense
    width = keys.same("expert_feed_forward_length", layers, 1, 1 << 24, default)
    groups = keys.integer("expert_group_count", 0, count, 1) or 1
    groups_used = keys.integer("expert_group_used_count", 0, groups, groups) or groups
    if count % groups:
        raise GGUFError(f"{keys.prefix}expert_group_count must divide the expert count ({count})")
    if used > groups_used * (count // groups):
        name = keys.prefix + "expert_used_count"
        raise GGUFError(f"{name} must not exceed the number of experts in the chosen groups")
    return ExpertConfig(
        count=count,
        used=used,
        width=width,
        gating=gating or (SIGMOID if vocab == defaults.sigmoid_vocabulary else defaults.gating),
        renormalize=keys.flag("expert_weights_norm", defaults.renormalize),
        scale=keys.number("expert_weights_scale", 0.0, 1e6, 0.0) or 1.0,
        groups=groups,
        groups_used=groups_used,
        weight_on_input=defaults.weight_on_input,
        shared_width=_shared_width(keys, defaults, width),
        first=keys.integer("leading_dense_block_count", 0, 512, 0),
        step=keys.integer("interleave_moe_layer_step", 1, 512, 1),
    )


def _shared_width(keys: Metadata, defaults: Architecture, width: int) -> int:
    """Return the total hidden width of the shared experts, which files store as one expert."""
    count = keys.integer("expert_shared_count", 0, 1024, 1 if defaults.shared_expert else 0)
    together = keys.integer("expert_shared_feed_forward_length", 0, 1 << 24, 0)
    if not together:
        return width * count
    return together * max(count, 1) if defaults.shared_width_is_one else together


def _read_latent(
    keys: Metadata, defaults: Architecture, layers: int, key_dim: int, value_dim: int
) -> LatentConfig | None:
    """Read the latent-attention keys. Files from before April 2025 have no `_mla` keys."""
    if "attention.kv_lora_rank" not in keys:
        return None
    return LatentConfig(
        rank=keys.integer("attention.kv_lora_rank", 1, 65_536),
        query_rank=keys.integer("attention.q_lora_rank", 0, 65_536, 0),
        key_dim=keys.integer("attention.key_length_mla", 1, 65_536, key_dim),
        value_dim=keys.integer("attention.value_length_mla", 1, 65_536, value_dim),
        indexer=_read_indexer(keys, defaults, layers),
    )


def _read_indexer(keys: Metadata, defaults: Architecture, layers: int) -> IndexerConfig | None:
    """Read the indexer keys.

    Without `attention.indexer.types`, the context length determines which layers have an indexer
    (GLM-5.2).
    """
    if "attention.indexer.top_k" not in keys:
        return None
    if "attention.indexer.types" in keys:
        own = keys.flags("attention.indexer.types", layers)
    else:
        long = 0 < defaults.indexers_shared_from <= keys.integer("context_length", 1, 1 << 31)
        own = tuple(not long or layer < 2 or layer % 4 == 2 for layer in range(layers))
    if not own[0]:
        raise GGUFError(f"{keys.prefix}attention.indexer.types must be true for the first layer")
    return IndexerConfig(
        heads=keys.integer("attention.indexer.head_count", 1, 65_536),
        dims=keys.integer("attention.indexer.key_length", 2, 65_536),
        top=keys.integer("attention.indexer.top_k", 1, 1 << 31),
        own=own,
    )


def _read_recurrent(keys: Metadata, kind: str, width: int) -> RecurrentConfig | None:
    if not kind:
        return None
    if kind == "conv":
        kernel = keys.integer("shortconv.l_cache", 2, 64)
        return RecurrentConfig(kind, kernel, (kernel - 1) * width)
    kernel = keys.integer("ssm.conv_kernel", 2, 64)
    state = keys.integer("ssm.state_size", 1, 65_536)
    groups = keys.integer("ssm.group_count", 1, 65_536)
    heads = keys.integer("ssm.time_step_rank", 1, 65_536)
    inner = keys.integer("ssm.inner_size", 1, 1 << 24)
    if inner % heads:
        raise GGUFError(
            f"{keys.prefix}ssm.inner_size must be a multiple of ssm.time_step_rank ({heads}), "
            f"got {inner}"
        )
    if heads % groups:
        raise GGUFError(f"{keys.prefix}ssm.group_count must divide ssm.time_step_rank ({heads})")
    values = (kernel - 1) * (2 * groups * state + inner) + inner * state
    return RecurrentConfig(kind, kernel, values, state, groups, heads, inner)
