"""Determine from a model's header whether the native kernels can run all its layers as one task."""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.architectures.registry import SQRT_SOFTPLUS
from engine.gguf.reader import TensorInfo
from engine.nn.config import ModelConfig, used_tensors

MAX_GROUP = 128  # query heads per key head; MAX_ROWS in core/attention/attention.h
# Parts of tensor names that identify layers the C++ core does not implement.
UNFUSED = (
    *(f"ffn_{part}.bias" for part in ("down", "gate", "up", "latent_down", "latent_up")),
    *(f"ssm_{part}.bias" for part in ("in", "out", "ba", "beta", "alpha")),
    *(f"ssm_{part}.bias" for part in ("f_a", "f_b", "g_a", "g_b")),
    *(f"shortconv.{part}_proj.bias" for part in ("in", "out")),
    "attn_gate.bias",
    "inp_gate.bias",
    "shexp.bias",
    ".proj.bias",
)
UNFUSED_DELTA = ("attn_qkv.bias",)
UNFUSED_LATENT_EXPERTS = ("ffn_gate_inp_shexp",)


def fuses(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return True if the C++ core implements every layer.

    If it does not, the native kernels only multiply weights, and MLX does the rest.
    """
    if not _has_layers(config):
        return False
    used = list(used_tensors(config, tensors))
    delta = config.recurrent is not None and config.recurrent.kind == "delta"
    unfused = UNFUSED + (UNFUSED_DELTA if delta else ())
    if config.experts and config.experts.latent_width:
        unfused += UNFUSED_LATENT_EXPERTS
    if any(part in info.name for info in used for part in unfused):
        return False
    normed_after = any("post_ffw_norm" in info.name for info in used)
    if normed_after and (config.latent or config.recurrent):
        return False
    biased = any("attn_output.bias" in info.name for info in used)
    if config.value_scale != 1.0 and (biased or normed_after):
        return False
    if config.latent:
        return not any(".attn_" in info.name and info.name.endswith(".bias") for info in used)
    norms = [info for info in used if info.name.endswith(("attn_q_norm.weight", "k_norm.weight"))]
    whole = {_normalises_all_heads(config, info) for info in norms}
    if len(whole) > 1 or (delta and True in whole):
        return False
    return True not in whole or not _shares_keys_and_values(config, tensors)


def _normalises_all_heads(config: ModelConfig, norm: TensorInfo) -> bool:
    """Return True if a norm of queries or keys covers all heads, not each of them."""
    key_dim, _ = config.head_dims(int(norm.name.split(".")[1]))
    return math.prod(norm.shape) != key_dim


def _shares_keys_and_values(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return True if a layer has one projection for its keys and its values."""
    names = (f"blk.{layer}.attn_" for layer in range(config.layers))
    return any(name + "k.weight" in tensors and name + "v.weight" not in tensors for name in names)


def _has_layers(config: ModelConfig) -> bool:
    kind = config.recurrent.kind if config.recurrent else ""
    if config.streams or config.blocks:
        return False
    if config.experts and config.experts.gating == SQRT_SOFTPLUS:
        return False
    if config.experts and len({*config.experts.used_by_layer} - {0}) > 1:
        return False  # a step records as many ids in every layer
    if config.latent:
        return config.latent.indexer is None or config.latent.query_rank > 0
    if kind == "delta" and config.key_dim != config.value_dim:
        return False
    groups = zip(config.heads, config.kv_heads, strict=True)
    return all(heads <= MAX_GROUP * kv_heads for heads, kv_heads in groups if kv_heads)
