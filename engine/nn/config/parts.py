"""Read the keys of one part of a model: rotary embedding, experts, latent or recurrent layers."""

from __future__ import annotations

from engine.architectures.registry import (
    SIGMOID,
    SOFTMAX,
    SOFTMAX_OF_CHOSEN,
    SQRT_SOFTPLUS,
    Architecture,
)
from engine.errors import GGUFError, UnsupportedError
from engine.gguf.metadata import Metadata
from engine.nn.config.model import (
    ExpertConfig,
    IndexerConfig,
    LatentConfig,
    RecurrentConfig,
    RopeConfig,
)


def read_rope(
    keys: Metadata, defaults: Architecture, key_dim: int, latent: LatentConfig | None
) -> RopeConfig:
    if not defaults.rotates:
        return RopeConfig(dims=key_dim, base=10_000.0)  # not used
    rotated = int(key_dim * defaults.rotary_share)
    dims = _read_rope_dims(keys, "rope.dimension_count", key_dim, rotated)
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
        yarn_factor=keys.number("rope.scaling.yarn_attn_factor", 0.0, 1e3, 0.0),
        attention_factor=keys.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0) or 1.0,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        rounded=defaults.yarn_rounded,
        log_multiplier=multiplier / defaults.log_multiplier_unit,
    )


def read_window_rope(
    keys: Metadata, defaults: Architecture, rope: RopeConfig, key_dim: int
) -> RopeConfig:
    """Read the rotary embedding of layers with a window, whose context is not stretched.

    key_dim: width of these layers' heads. Unless `rope.dimension_count_swa` says otherwise, it
    rotates as many values as `rope.dimension_count` says, or all.
    """
    default = min(rope.dims, key_dim) if "rope.dimension_count" in keys else key_dim
    return RopeConfig(
        dims=_read_rope_dims(keys, "rope.dimension_count_swa", key_dim, default),
        base=keys.number("rope.freq_base_swa", 2.0, 1e12, defaults.window_base or rope.base),
    )


def _read_rope_dims(keys: Metadata, name: str, key_dim: int, default: int) -> int:
    dims = keys.integer(name, 2, key_dim, default)
    if dims % 2:
        raise GGUFError(f"{keys.prefix}{name} must be even, got {dims}")
    return dims


def read_experts(
    keys: Metadata, defaults: Architecture, layers: int, dense: int, vocab: int
) -> ExpertConfig | None:
    """Read the expert configuration. dense: hidden width of the dense feed-forward layers."""
    count = keys.integer("expert_count", 0, 1024, 0)
    if count == 0:
        return None
    gating = keys.integer("expert_gating_func", 0, 255, 0)
    if gating and gating not in (SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS):
        raise UnsupportedError(f"{keys.prefix}expert_gating_func {gating} is not supported")
    used_by_layer = keys.each("expert_used_count", layers, 0, count)
    if not (used := max(used_by_layer)):
        raise GGUFError(f"{keys.prefix}expert_used_count must be at least 1")
    default = dense // used if defaults.routed_as_dense else dense
    widths = keys.each("expert_feed_forward_length", layers, 0, 1 << 24, default)
    if not (width := max(widths)):
        raise GGUFError(f"{keys.prefix}expert_feed_forward_length must be at least 1")
    differ = min(used_by_layer) != used or min(widths) != width
    if any((not one) != (not two) for one, two in zip(used_by_layer, widths, strict=True)):
        name = keys.prefix + "expert_used_count"
        raise GGUFError(f"{name} and expert_feed_forward_length must be 0 in the same layers")
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
        averaged=defaults.averages_shared,
        shared_width=_shared_width(keys, defaults, width),
        latent_width=keys.integer("moe_latent_size", 0, 1 << 20, 0),
        used_by_layer=used_by_layer if differ else (),
        width_by_layer=widths if differ else (),
        hashed_layers=keys.integer("hash_layer_count", 0, layers, 0),
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


def read_latent(
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


def read_recurrent(
    keys: Metadata, defaults: Architecture, width: int, heads: int
) -> RecurrentConfig | None:
    """Read the keys of recurrent layers. heads: the number of attention heads."""
    kind = defaults.recurrent
    if not kind:
        return None
    if kind == "conv":
        kernel = keys.integer("shortconv.l_cache", 2, 64)
        return RecurrentConfig(kind, kernel, (kernel - 1) * width)
    kernel = keys.integer("ssm.conv_kernel", 2, 64)
    if kind == "kda":
        return _read_kda(keys, defaults, kernel, heads)
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


def _read_kda(keys: Metadata, defaults: Architecture, kernel: int, heads: int) -> RecurrentConfig:
    dims = keys.integer("kda.head_dim", 1, 65_536)
    if not keys.flag("kda.safe_gate", True):
        raise UnsupportedError(f"{keys.prefix}kda.safe_gate = false is not supported")
    inner = heads * dims
    return RecurrentConfig(
        kind="kda",
        kernel=kernel,
        state_values=(kernel - 1) * 3 * inner + inner * dims,
        state=dims,
        groups=heads,
        heads=heads,
        inner=inner,
        decay_bound=keys.number("kda.gate_lower_bound", -1e3, 0.0, defaults.decay_bound),
    )
