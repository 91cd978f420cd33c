"""Read a model's hyperparameters from GGUF metadata, checking each key's type and range.

An invalid value raises a GGUFError that names the key, so layers can use every value unchecked,
including as a divisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.architectures.registry import Architecture, require_architecture
from engine.errors import GGUFError, UnsupportedError
from engine.gguf.kinds import not_a_model
from engine.gguf.metadata import Metadata
from engine.gguf.reader import TensorInfo, numbers
from engine.nn.config.model import ModelConfig, NgramConfig, RecurrentConfig
from engine.nn.config.parts import (
    read_experts,
    read_latent,
    read_recurrent,
    read_rope,
    read_window_rope,
)
from engine.nn.config.streams import read_blocks, read_entries, read_ngrams, read_streams

RMS_EPS, LAYER_NORM_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


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
    heads = keys.integers("attention.head_count", layers, 1, 65_536)
    recurrent = read_recurrent(keys, defaults, width, max(heads))
    key_dim = keys.integer("attention.key_length", 1, 65_536, width // max(heads))
    value_dim = keys.integer("attention.value_length", 1, 65_536, width // max(heads))
    window_key_dim = keys.integer("attention.key_length_swa", 1, 65_536, key_dim)
    # Files without dense layers may store 0, and so may layers that only mix.
    least = 0 if "expert_feed_forward_length" in keys or defaults.single_blocks else 1
    feed_forward = (0,) * layers
    if least or "feed_forward_length" in keys:
        feed_forward = keys.integers("feed_forward_length", layers, least, 1 << 24)
    latent = read_latent(keys, defaults, layers, key_dim, value_dim)
    rope = read_rope(keys, defaults, key_dim, latent)
    scale = defaults.attention_scale or (latent.key_dim if latent else key_dim) ** -0.5
    windows = _read_windows(keys, defaults, layers)
    vocab = _vocabulary_size(metadata, keys)
    kv_heads = _read_kv_heads(keys, layers, heads, recurrent)
    ngrams = read_ngrams(keys, kv_heads)
    name = metadata.get("general.name")
    return ModelConfig(
        architecture=architecture,
        name=name if isinstance(name, str) else architecture,
        layers=layers,
        width=width,
        vocab=vocab,
        context=keys.integer("context_length", 1, 1 << 31),
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        window_key_dim=window_key_dim,
        window_value_dim=keys.integer("attention.value_length_swa", 1, 65_536, value_dim),
        feed_forward=feed_forward,
        norm_eps=_read_norm_eps(keys),
        attention_scale=keys.number("attention.scale", 0.0, 1e6, 0.0) or scale,
        rope=rope,
        window_rope=read_window_rope(keys, defaults, rope, window_key_dim),
        experts=read_experts(keys, defaults, layers, max(feed_forward), vocab),
        windows=windows,
        chunked=defaults.chunked,
        rope_enabled=not defaults.rope_optional or keys.flag("rope.scaling.finetuned", True),
        borrowed_layers=_read_borrowed_layers(keys, windows),
        per_layer_width=_read_per_layer_width(keys, ngrams),
        expert_clamps=_read_clamps(keys, "swiglu_clamp_exp", layers),
        dense_clamps=_read_clamps(keys, "swiglu_clamp_shexp", layers),
        centred_norms=defaults.centred_norms and RMS_EPS not in keys,
        score_cap=keys.number("attn_logit_softcapping", 0.0, 1e6, defaults.score_cap),
        logit_cap=keys.number("final_logit_softcapping", 0.0, 1e6, defaults.logit_cap),
        embedding_scale=keys.number("embedding_scale", 0.0, 1e6, 0.0) or 1.0,
        residual_scale=keys.number("residual_scale", 0.0, 1e6, 0.0) or 1.0,
        logit_scale=_read_logit_scale(keys, defaults),
        value_scale=keys.number("attention.value_scale", 0.0, 1e6, 0.0) or 1.0,
        temperature_scale=keys.number("attention.temperature_scale", 0.0, 1e3, 0.0),
        temperature_length=keys.integer("attention.temperature_length", 0, 1 << 31, 0)
        or rope.original_context,
        latent=latent,
        recurrent=recurrent,
        blocks=read_blocks(keys, layers, rope.dims),
        entries=read_entries(keys, heads),
        streams=read_streams(keys),
        ngrams=ngrams,
        single_blocks=defaults.single_blocks,
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
    config = read_config(metadata)
    if config.experts is None:
        return config
    dense = tuple(layer for layer in range(config.layers) if _is_dense(tensors, layer))
    return replace(config, experts=replace(config.experts, dense=dense))


def _is_dense(tensors: Mapping[str, TensorInfo], layer: int) -> bool:
    prefix = f"blk.{layer}.ffn_"
    return f"{prefix}up.weight" in tensors and f"{prefix}gate_inp.weight" not in tensors


def _vocabulary_size(metadata: Mapping[str, Any], keys: Metadata) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError("tokenizer.ggml.tokens must be a non-empty array")
    if "vocab_size" in keys and keys.integer("vocab_size", 1, 1 << 24) != len(tokens):
        raise GGUFError(f"{keys.prefix}vocab_size must equal the token count ({len(tokens):,})")
    return len(tokens)


def _read_norm_eps(keys: Metadata) -> float:
    """Read the epsilon of norms, which some converters store as that of layer norms."""
    name = LAYER_NORM_EPS if LAYER_NORM_EPS in keys and RMS_EPS not in keys else RMS_EPS
    return keys.number(name, 0.0, 1.0)


def _read_logit_scale(keys: Metadata, defaults: Architecture) -> float:
    scale = keys.number("logit_scale", 0.0, 1e6, 0.0) or 1.0
    return scale if defaults.scales_logits_up else 1 / scale


def _read_clamps(keys: Metadata, name: str, layers: int) -> tuple[float, ...]:
    return keys.numbers(name, layers, 0.0, 1e6) if name in keys else (0.0,) * layers


def _read_per_layer_width(keys: Metadata, ngrams: NgramConfig | None) -> int:
    """Read the width of each layer's embedding of tokens. With n-grams, the key is about these."""
    return 0 if ngrams else keys.integer("embedding_length_per_layer_input", 0, 1 << 20, 0)


def _read_borrowed_layers(keys: Metadata, windows: tuple[int, ...]) -> int:
    """Read how many of the last layers borrow keys, and check that there are some to borrow."""
    name, layers = "attention.shared_kv_layers", len(windows)
    count = keys.integer(name, 0, layers - 1, 0)
    own, borrowed = windows[: layers - count], windows[layers - count :]
    if not set(map(bool, borrowed)) <= set(map(bool, own)):
        raise GGUFError(f"{keys.prefix + name} leaves no layer of the same kind to share with")
    return count


def _read_kv_heads(
    keys: Metadata, layers: int, heads: tuple[int, ...], recurrent: RecurrentConfig | None
) -> tuple[int, ...]:
    name, kv_heads = "attention.head_count_kv", heads
    if name in keys:
        kv_heads = keys.integers(name, layers, 0 if recurrent else 1, 65_536)
    for count, kv in zip(heads, kv_heads, strict=True):
        if kv and count % kv:
            raise GGUFError(f"{keys.prefix + name} must divide the query head count ({count})")
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
        full = 0 if defaults.full_first else period - 1
        windowed = tuple(layer % period != full for layer in range(layers))
    return tuple(window if w else 0 for w in windowed)
