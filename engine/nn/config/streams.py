"""Read the keys of models with several residual streams: attention to blocks, and n-grams."""

from __future__ import annotations

from engine.errors import GGUFError, UnsupportedError
from engine.gguf.metadata import Metadata
from engine.nn.config.model import (
    BlocksConfig,
    EntriesConfig,
    IndexerConfig,
    NgramConfig,
    StreamsConfig,
)

MAX_RATIO = 4096
MAX_FACTOR = (1 << 63) - 1


def read_streams(keys: Metadata) -> StreamsConfig | None:
    if "hyper_connection.count" not in keys:
        return None
    return StreamsConfig(
        count=keys.integer("hyper_connection.count", 1, 64),
        rank=keys.integer("hyper_connection.low_rank", 1, 1 << 20, 1),
        iterations=keys.integer("hyper_connection.sinkhorn_iterations", 1, 1000, 1),
        eps=keys.number("hyper_connection.epsilon", 0.0, 1.0, 0.0),
    )


def read_blocks(keys: Metadata, layers: int, rotated: int) -> BlocksConfig | None:
    """Read the keys of attention to blocks of tokens. rotated: values per head."""
    name = "attention.compress_ratios"
    if name not in keys:
        return None
    ratios = keys.integers(name, layers, 0, MAX_RATIO)
    if 1 in ratios:
        raise GGUFError(f"{keys.prefix + name} must not contain 1")
    indexer = IndexerConfig(
        heads=keys.integer("attention.indexer.head_count", 1, 65_536),
        dims=keys.integer("attention.indexer.key_length", rotated, 65_536),
        top=keys.integer("attention.indexer.top_k", 1, 1 << 31),
        own=tuple(ratio > 0 for ratio in ratios),
    )
    return BlocksConfig(ratios, indexer)


def read_entries(keys: Metadata, heads: tuple[int, ...]) -> EntriesConfig | None:
    """Read the keys of DeepSeek V4's attention."""
    if "attention.output_group_count" not in keys:
        return None
    groups = keys.integer("attention.output_group_count", 1, 65_536)
    if any(count % groups for count in heads):
        raise GGUFError(f"{keys.prefix}attention.output_group_count must divide the head count")
    if "attention.compress_ratios" not in keys:
        raise GGUFError(f"{keys.prefix}attention.compress_ratios is missing")
    return EntriesConfig(
        query_rank=keys.integer("attention.q_lora_rank", 1, 65_536),
        output_groups=groups,
        output_rank=keys.integer("attention.output_lora_rank", 1, 65_536),
        rope_base=keys.number("attention.compress_rope_freq_base", 2.0, 1e12),
    )


def read_ngrams(keys: Metadata, kv_heads: tuple[int, ...]) -> NgramConfig | None:
    """Read the keys of n-gram embeddings, which one recurrent layer has."""
    if "ple.layers" not in keys:
        return None
    places = keys.listed("ple.layers", 0, len(kv_heads) - 1)
    if len(places) != 1 or kv_heads[places[0]]:
        raise UnsupportedError(f"{keys.prefix}ple.layers must name one recurrent layer")
    if "hyper_connection.count" not in keys:
        raise GGUFError(f"{keys.prefix}hyper_connection.count is missing")
    longest = keys.integer("ple.ngram_size", 2, 16)
    heads = keys.integer("ple.heads_per_ngram", 1, 256)
    count = (longest - 1) * heads
    return NgramConfig(
        layer=places[0],
        longest=longest,
        heads=heads,
        width=keys.integer("embedding_length_per_layer_input", 1, 1 << 20),
        kernel=keys.integer("ple.conv_kernel", 1, 64),
        end=keys.integer("ple.eos_token_id", 0, 1 << 24),
        multipliers=keys.integers("ple.layer_multipliers", longest, 0, MAX_FACTOR),
        sizes=keys.integers("ple.head_vocab_sizes", count, 1, 1 << 40),
        offsets=keys.integers("ple.head_offsets", count, 0, 1 << 40),
    )
