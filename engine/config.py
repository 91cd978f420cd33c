"""A model's hyper-parameters, read from GGUF metadata with every key typed and range-checked.

A nonsense file ends here, in a GGUFError that names the key. Nothing below this page divides by a
number that it has not checked. It knows no tensors: shapes are held against the config by
`engine.weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import GGUFError, UnsupportedError
from engine.gguf import WHOLE, numbers
from engine.models import require_architecture

SOFTMAX = 1  # of the gating functions, the one that the pages so far need
SCALINGS = ("none", "linear", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: `dims` of each head turn, at base `base`, stretched as `scaling` says."""

    dims: int
    base: float
    scaling: str = "none"  # none | linear | yarn
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """The routed experts of one layer: `used` of `count`, each of `width` hidden units."""

    count: int
    used: int
    width: int
    renormalize: bool | None = None  # the chosen weights; None where the file leaves it open
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the graph of a model is built from. Widths count values, contexts count tokens."""

    architecture: str
    name: str
    layers: int
    width: int
    vocab: int
    context: int
    heads: int
    kv_heads: tuple[int, ...]  # one per layer
    key_dim: int
    value_dim: int
    feed_forward: int
    norm_eps: float
    attention_scale: float
    rope: RopeConfig
    experts: ExpertConfig | None = None

    def kv_values(self) -> int:
        """Count the values that one token adds to the KV cache, over all layers."""
        return sum(self.kv_heads) * (self.key_dim + self.value_dim)


class Keys:
    """Metadata under one architecture's prefix; every read is checked and names its key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.prefix = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Read a whole number in low..high."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise GGUFError(f"{self.prefix + key} is not a whole number")
        if not low <= value <= high:
            raise GGUFError(f"{self.prefix + key} is {value:,}, outside {low:,}..{high:,}")
        return value

    def integers(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """Read a whole number per layer: one for all of them, or an array of `count`."""
        value = self._value(key, None)
        array = numbers(value)
        if array is None:
            return (self.integer(key, low, high),) * count
        if array.format not in WHOLE or len(array) < count:
            raise GGUFError(f"{self.prefix + key} is not an array of {count} whole numbers")
        values = tuple(array[:count].tolist())
        if not all(low <= v <= high for v in values):
            raise GGUFError(f"{self.prefix + key} has a value outside {low:,}..{high:,}")
        return values

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Read a finite number in low..high."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GGUFError(f"{self.prefix + key} is not a number")
        if not (math.isfinite(value) and low <= value <= high):
            raise GGUFError(f"{self.prefix + key} is {value}, outside {low:g}..{high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise GGUFError(f"{self.prefix + key} is not true or false")
        return value

    def word(self, key: str, default: str) -> str:
        """Read a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise GGUFError(f"{self.prefix + key} is not a string")
        return value

    def _value(self, key: str, default: object) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise GGUFError(f"{self.prefix + key} is missing")
        return value


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """Read the architecture string. Raises GGUFError where there is none."""
    value = metadata.get("general.architecture")
    if not isinstance(value, str) or not value:
        raise GGUFError("general.architecture is missing or not a string")
    return value


def read_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Read and check the hyper-parameters.

    Raises UnsupportedError for an architecture without a page, before its keys are judged by what
    other architectures need; GGUFError naming the key at fault.
    """
    architecture = architecture_of(metadata)
    require_architecture(architecture)
    keys = Keys(metadata, architecture)
    layers = keys.integer("block_count", 1, 512)
    width = keys.integer("embedding_length", 1, 1 << 20)
    heads = keys.integer("attention.head_count", 1, 65_536)
    kv_heads = (
        keys.integers("attention.head_count_kv", layers, 1, 65_536)
        if "attention.head_count_kv" in keys
        else (heads,) * layers
    )
    if any(heads % kv for kv in kv_heads):
        raise GGUFError(
            f"{architecture}.attention.head_count_kv does not divide the {heads} query heads"
        )
    key_dim = keys.integer("attention.key_length", 1, 65_536, width // heads)
    value_dim = keys.integer("attention.value_length", 1, 65_536, width // heads)
    feed_forward = keys.integer("feed_forward_length", 1, 1 << 24)
    name = metadata.get("general.name")
    return ModelConfig(
        architecture=architecture,
        name=name if isinstance(name, str) else architecture,
        layers=layers,
        width=width,
        vocab=_vocabulary_size(metadata, keys),
        context=keys.integer("context_length", 1, 1 << 31),
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        feed_forward=feed_forward,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        attention_scale=keys.number("attention.scale", 0.0, 1e6, 0.0) or key_dim**-0.5,
        rope=_read_rope(keys, key_dim),
        experts=_read_experts(keys, feed_forward),
    )


def _vocabulary_size(metadata: Mapping[str, Any], keys: Keys) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError("tokenizer.ggml.tokens is missing or empty")
    if "vocab_size" in keys and keys.integer("vocab_size", 1, 1 << 24) != len(tokens):
        raise GGUFError(f"{keys.prefix}vocab_size is not the {len(tokens):,} tokens of the file")
    return len(tokens)


def _read_rope(keys: Keys, key_dim: int) -> RopeConfig:
    dims = keys.integer("rope.dimension_count", 2, key_dim, key_dim)
    if dims % 2:
        raise GGUFError(f"{keys.prefix}rope.dimension_count is {dims}, an odd number")
    scaling = keys.word("rope.scaling.type", "none")
    if scaling not in SCALINGS:
        raise UnsupportedError(f"{keys.prefix}rope.scaling.type {scaling!r} is not supported")
    legacy = keys.number("rope.scale_linear", 0.0, 1e6, 1.0)
    factor = keys.number("rope.scaling.factor", 0.0, 1e6, legacy) or 1.0
    if scaling == "none" and "rope.scaling.type" not in keys and factor != 1.0:
        scaling = "linear"
    original = keys.integer("rope.scaling.original_context_length", 0, 1 << 31, 0)
    if scaling == "yarn" and original == 0:
        original = keys.integer("context_length", 1, 1 << 31)
    return RopeConfig(
        dims=dims,
        base=keys.number("rope.freq_base", 2.0, 1e12, 10_000.0),
        scaling=scaling,
        factor=factor,
        original_context=original,
        attention_factor=keys.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
    )


def _read_experts(keys: Keys, feed_forward: int) -> ExpertConfig | None:
    count = keys.integer("expert_count", 0, 1024, 0)
    if count == 0:
        return None
    gating = keys.integer("expert_gating_func", 0, 255, 0)
    if gating not in (0, SOFTMAX):
        raise UnsupportedError(f"{keys.prefix}expert_gating_func {gating} is not supported")
    return ExpertConfig(
        count=count,
        used=keys.integer("expert_used_count", 1, count),
        width=keys.integer("expert_feed_forward_length", 1, 1 << 24, feed_forward),
        renormalize=(
            keys.flag("expert_weights_norm", False) if "expert_weights_norm" in keys else None
        ),
        scale=keys.number("expert_weights_scale", 0.0, 1e6, 0.0) or 1.0,
    )
