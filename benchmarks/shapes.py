"""The catalog models that synthesize.py can write: their metadata, and the tensors of a layer.

A shape's sizes are its metadata, so that both agree; what builds a layer reads them there. Tensors
have no types here: `synthesize.py` gives them those of the published file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

# A number, a truth, a text, an array. A function gives an array with a number for each layer.
Value = float | bool | str | tuple[int, ...] | Callable[[int], int]
Rows = Iterator[tuple[str, tuple[int, ...]]]  # a tensor's name behind `blk.N.`, and its shape


@dataclass(frozen=True)
class Shape:
    """What a model is built from.

    keys: metadata behind the architecture's prefix. layer: lists the tensors of a layer. mix: how
    the published file is quantised, a key of `synthesize.MIXES`. tied: the head is the embedding.
    """

    name: str
    architecture: str
    layers: int
    vocab: int
    keys: Mapping[str, Value]
    layer: Callable[[Shape, int], Rows]
    mix: str = "Q4_K_M"
    tied: bool = False

    def size(self, key: str) -> Any:
        """Look a number up; 0 where the model has no such key."""
        return self.keys.get(key, 0)

    @property
    def width(self) -> int:
        """The length of what goes from layer to layer."""
        width: int = self.size("embedding_length")
        return width


def attention(shape: Shape, whole_norms: bool = False) -> Rows:
    """Attention over heads; with norms of queries and keys, of each head or the whole of them."""
    width, head = shape.width, shape.size("attention.key_length")
    head = head or width // shape.size("attention.head_count")
    queries = shape.size("attention.head_count") * head
    keys = shape.size("attention.head_count_kv") * head
    yield "attn_k.weight", (keys, width)
    yield "attn_k_norm.weight", (keys if whole_norms else head,)
    yield "attn_norm.weight", (width,)
    yield "attn_output.weight", (width, queries)
    yield "attn_q.weight", (queries, width)
    yield "attn_q_norm.weight", (queries if whole_norms else head,)
    yield "attn_v.weight", (keys, width)


def experts(shape: Shape, norm: str = "ffn_norm") -> Rows:
    """The routed feed-forward layer and the norm before it."""
    width, count = shape.width, shape.size("expert_count")
    hidden = shape.size("expert_feed_forward_length") or shape.size("feed_forward_length")
    yield "ffn_down_exps.weight", (count, width, hidden)
    yield "ffn_gate_exps.weight", (count, hidden, width)
    yield "ffn_gate_inp.weight", (count, width)
    yield f"{norm}.weight", (width,)
    yield "ffn_up_exps.weight", (count, hidden, width)


def gated(shape: Shape, hidden: int, suffix: str = "") -> Rows:
    """A feed-forward layer for every token: dense, or a shared expert's."""
    yield f"ffn_down{suffix}.weight", (shape.width, hidden)
    yield f"ffn_gate{suffix}.weight", (hidden, shape.width)
    yield f"ffn_up{suffix}.weight", (hidden, shape.width)


def qwen3moe(shape: Shape, _layer: int) -> Rows:
    """Every layer the same, norms on heads."""
    yield from attention(shape)
    yield from experts(shape)


def olmoe(shape: Shape, _layer: int) -> Rows:
    """Every layer the same, norms on whole projections."""
    yield from attention(shape, whole_norms=True)
    yield from experts(shape)


def gpt_oss(shape: Shape, _layer: int) -> Rows:
    """Every layer the same, biases everywhere, sinks."""
    rows = {name: dims for name, dims in attention(shape) if "_norm" not in name[5:]}
    rows |= dict(experts(shape, "post_attention_norm"))
    for name, dims in rows.items():
        yield name, dims
        if "norm" not in name:
            yield name.replace(".weight", ".bias"), dims[:-1]
    yield "attn_sinks.weight", (shape.size("attention.head_count"),)


def deepseek2(shape: Shape, layer: int) -> Rows:
    """Latent attention, keys' and values' projections in one, as in files from before April 2025.

    The first layer dense, the others with experts that a router chooses and some that always run.
    """
    width, rank = shape.width, shape.size("attention.kv_lora_rank")
    heads, turned = shape.size("attention.head_count"), shape.size("rope.dimension_count")
    key, value = shape.size("attention.key_length"), shape.size("attention.value_length")
    yield "attn_kv_a_mqa.weight", (rank + turned, width)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_kv_b.weight", (heads * (key - turned + value), rank)
    yield "attn_norm.weight", (width,)
    yield "attn_output.weight", (width, heads * value)
    yield "attn_q.weight", (heads * key, width)
    if layer < shape.size("leading_dense_block_count"):
        yield "ffn_norm.weight", (width,)
        yield from gated(shape, shape.size("feed_forward_length"))
    else:
        yield from experts(shape)
        shared = shape.size("expert_shared_count") * shape.size("expert_feed_forward_length")
        yield from gated(shape, shared, "_shexp")


def granitehybrid(shape: Shape, layer: int) -> Rows:
    """Mamba-2, or attention in the layers that have keys; experts and one that always runs."""
    if shape.size("attention.head_count_kv")(layer):
        keys = {
            **shape.keys,
            "attention.head_count_kv": shape.size("attention.head_count_kv")(layer),
        }
        rows = attention(replace(shape, keys=keys))
        yield from (
            (name, dims) for name, dims in rows if "k_norm" not in name and "q_norm" not in name
        )
    else:
        inner, heads = shape.size("ssm.inner_size"), shape.size("ssm.time_step_rank")
        groups = shape.size("ssm.group_count")
        channels = inner + 2 * groups * shape.size("ssm.state_size")
        yield "attn_norm.weight", (shape.width,)
        yield "ssm_a", (heads, 1)
        yield "ssm_conv1d.bias", (channels,)
        yield "ssm_conv1d.weight", (channels, shape.size("ssm.conv_kernel"))
        yield "ssm_d", (heads, 1)
        yield "ssm_dt.bias", (heads,)
        yield "ssm_in.weight", (inner + channels + heads, shape.width)
        yield "ssm_norm.weight", (groups, inner // groups)
        yield "ssm_out.weight", (shape.width, inner)
    yield from experts(shape)
    yield from gated(shape, shape.size("expert_shared_feed_forward_length"), "_shexp")


def qwen35moe(shape: Shape, layer: int) -> Rows:
    """Three gated delta nets, then attention whose queries come with gates; a shared expert."""
    if (layer + 1) % shape.size("full_attention_interval") == 0:
        rows = dict(attention(shape))
        queries, width = rows["attn_q.weight"]
        yield from (rows | {"attn_q.weight": (2 * queries, width)}).items()
    else:
        inner, heads = shape.size("ssm.inner_size"), shape.size("ssm.time_step_rank")
        state, width = shape.size("ssm.state_size"), shape.width
        channels = inner + 2 * shape.size("ssm.group_count") * state
        yield "attn_gate.weight", (inner, width)
        yield "attn_norm.weight", (width,)
        yield "attn_qkv.weight", (channels, width)
        yield "ssm_a", (heads,)
        yield "ssm_alpha.weight", (heads, width)
        yield "ssm_beta.weight", (heads, width)
        yield "ssm_conv1d.weight", (channels, shape.size("ssm.conv_kernel"))
        yield "ssm_dt.bias", (heads,)
        yield "ssm_norm.weight", (inner // heads,)
        yield "ssm_out.weight", (width, inner)
    yield from experts(shape, "post_attention_norm")
    yield "ffn_gate_inp_shexp.weight", (shape.width,)
    yield from gated(shape, shape.size("expert_shared_feed_forward_length"), "_shexp")


SHAPES = {
    "qwen3-30b-a3b": Shape(
        name="Qwen3-30B-A3B",
        architecture="qwen3moe",
        layers=48,
        vocab=151_936,
        keys={
            "context_length": 40_960,
            "embedding_length": 2048,
            "feed_forward_length": 6144,
            "attention.head_count": 32,
            "attention.head_count_kv": 4,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
            "rope.freq_base": 1e6,
        },
        layer=qwen3moe,
    ),
    "olmoe-1b-7b": Shape(
        name="OLMoE-1B-7B",
        architecture="olmoe",
        layers=16,
        vocab=50_304,
        keys={
            "context_length": 4096,
            "embedding_length": 2048,
            "feed_forward_length": 1024,
            "attention.head_count": 16,
            "attention.head_count_kv": 16,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "expert_count": 64,
            "expert_used_count": 8,
            "rope.freq_base": 1e4,
        },
        layer=olmoe,
    ),
    "gpt-oss-20b": Shape(
        name="gpt-oss-20b",
        architecture="gpt-oss",
        layers=24,
        vocab=201_088,
        keys={
            "context_length": 131_072,
            "embedding_length": 2880,
            "feed_forward_length": 2880,
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 128,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 2880,
            "rope.freq_base": 150_000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
        layer=gpt_oss,
        mix="MXFP4",
    ),
    "deepseek-v2-lite": Shape(
        name="DeepSeek-V2-Lite",
        architecture="deepseek2",
        layers=27,
        vocab=102_400,
        keys={
            "context_length": 163_840,
            "embedding_length": 2048,
            "feed_forward_length": 10_944,
            "attention.head_count": 16,
            "attention.head_count_kv": 16,
            "attention.key_length": 192,
            "attention.value_length": 128,
            "attention.kv_lora_rank": 512,
            "attention.q_lora_rank": 0,  # llama.cpp asks, unless there are 26 or 27 layers
            "attention.layer_norm_rms_epsilon": 1e-6,
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_feed_forward_length": 1408,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.0,
            "leading_dense_block_count": 1,
            "rope.dimension_count": 64,
            "rope.freq_base": 1e4,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_log_multiplier": 0.0707,
            "vocab_size": 102_400,
        },
        layer=deepseek2,
    ),
    "granite-4.0-h-tiny": Shape(
        name="Granite-4.0-H-Tiny",
        architecture="granitehybrid",
        layers=40,
        vocab=100_352,
        keys={
            "context_length": 1_048_576,
            "embedding_length": 1536,
            "feed_forward_length": 512,
            "attention.head_count": 12,
            "attention.head_count_kv": lambda layer: 4 if layer % 10 == 5 else 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.scale": 0.0078125,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_feed_forward_length": 1024,
            "rope.dimension_count": 128,
            "rope.freq_base": 1e4,
            "rope.scaling.finetuned": False,
            "ssm.conv_kernel": 4,
            "ssm.group_count": 1,
            "ssm.inner_size": 3072,
            "ssm.state_size": 128,
            "ssm.time_step_rank": 48,
            "vocab_size": 100_352,
        },
        layer=granitehybrid,
        tied=True,
    ),
    "qwen3.5-35b-a3b": Shape(
        name="Qwen3.5-35B-A3B",
        architecture="qwen35moe",
        layers=40,
        vocab=248_320,
        keys={
            "context_length": 262_144,
            "embedding_length": 2048,
            "attention.head_count": 16,
            "attention.head_count_kv": 2,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
            "full_attention_interval": 4,
            "rope.dimension_count": 64,
            "rope.dimension_sections": (11, 11, 10, 0),
            "rope.freq_base": 1e7,
            "ssm.conv_kernel": 4,
            "ssm.group_count": 16,
            "ssm.inner_size": 4096,
            "ssm.state_size": 128,
            "ssm.time_step_rank": 32,
        },
        layer=qwen35moe,
    ),
}
