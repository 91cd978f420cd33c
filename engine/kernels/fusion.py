"""Determine from a model's header whether the native kernels can run all its layers as one task."""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.architectures.registry import SPARSE_MIXER
from engine.gguf.reader import TensorInfo
from engine.nn.config import ModelConfig, used_tensors

MAX_GROUP = 128  # query heads per key head; MAX_ROWS in core/attention/attention.h
# Parts of tensor names that identify layers the C++ core does not implement.
UNFUSED = (
    "_norm.bias",
    "ffn_down.bias",
    "ffn_gate.bias",
    "ffn_up.bias",
    "gate_up_exps",
    "post_ffw_norm",
    "rope_factors_long",
    "shexp.bias",
    "ffn_latent_down.bias",
    "ffn_latent_up.bias",
    *(f"ssm_{part}.bias" for part in ("in", "out", "ba", "beta", "alpha")),
    *(f"ssm_{part}.bias" for part in ("f_a", "f_b", "g_a", "g_b")),
)
UNFUSED_DELTA = ("ssm_in.weight", "attn_qkv.bias", "attn_gate.bias")
UNFUSED_ATTENTION = ("attn_gate.weight",)  # in a delta net, it is the gate of the recurrent layer
UNFUSED_LATENT_EXPERTS = ("ffn_gate_inp_shexp",)


def fuses(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return True if the C++ core implements every layer.

    If it does not, the native kernels only multiply weights, and MLX does the rest.
    """
    if not _has_layers(config):
        return False
    used = [info for info in used_tensors(config, tensors) if info.name != "output_norm.bias"]
    delta = config.recurrent is not None and config.recurrent.kind == "delta"
    unfused = UNFUSED
    if delta or not config.latent:  # latent attention has its gate
        unfused += UNFUSED_DELTA if delta else UNFUSED_ATTENTION
    if config.experts and config.experts.latent_width:
        unfused += UNFUSED_LATENT_EXPERTS
    if any(part in info.name for info in used for part in unfused):
        return False
    if config.value_scale != 1.0 and any("attn_output.bias" in info.name for info in used):
        return False
    if config.latent:
        return not any(".attn_" in info.name and info.name.endswith(".bias") for info in used)
    norms = [info for info in used if info.name.endswith(("attn_q_norm.weight", "k_norm.weight"))]
    whole = {math.prod(info.shape) != config.key_dim for info in norms}  # one norm over all heads
    return len(whole) < 2 and not (delta and True in whole)


def _has_layers(config: ModelConfig) -> bool:
    experts, kind = config.experts, config.recurrent.kind if config.recurrent else ""
    if experts and (experts.gating == SPARSE_MIXER or experts.weight_on_input):
        return False
    if config.centred_norms or any(config.expert_clamps + config.dense_clamps):
        return False
    if config.score_cap or config.temperature_scale or (config.chunked and any(config.windows)):
        return False
    if config.latent:
        return config.latent.indexer is None
    if kind == "conv" or (kind == "delta" and config.key_dim != config.value_dim):
        return False
    groups = zip(config.heads, config.kv_heads, strict=True)
    return all(heads <= MAX_GROUP * kv_heads for heads, kv_heads in groups if kv_heads)
