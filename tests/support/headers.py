"""Headers of models made up for a test: metadata only, sound until a test changes it."""

from __future__ import annotations

from engine.nn.config import ModelConfig

TOKENS = {"tokenizer.ggml.tokens": ["a", "b", "c"]}


def metadata(architecture: str, **changes: object) -> dict[str, object]:
    """A sound header of two layers; in `changes` two underscores stand for a dot."""
    keys = {
        "block_count": 2,
        "context_length": 131_072,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-6,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    prefixed = {f"{architecture}.{key}": value for key, value in keys.items()}
    return {"general.architecture": architecture} | TOKENS | prefixed


def kv_values(config: ModelConfig) -> int:
    """Count the values that one token adds to the KV cache, over all layers."""
    layers = config.cache_specs
    return sum(heads * dims for layer in layers for heads, dims in layer.buffers)
