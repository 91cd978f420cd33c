"""What a model that synthesize.py writes is made of, and the tensors of each family's layers.

A shape's sizes are its metadata, so that both agree; what builds a layer reads them there. Tensors
have no types here: `synthesize.py` gives them those of the published file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A number, a truth, a text, an array. A function gives an array with a number or a truth for each
# layer.
Value = float | bool | str | tuple[int, ...] | Callable[[int], int]
Rows = Iterable[tuple[str, tuple[int, ...]]]  # a tensor's name behind `blk.N.`, and its shape


@dataclass(frozen=True)
class Shape:
    """What a model is built from.

    keys: metadata behind the architecture's prefix. layer: lists the tensors of a layer. mix: how
    the published file is quantised, a key of `synthesize.MIXES`. tied: the head is the embedding.
    last_norm: the name of the norm before the head. extra: tensors that no layer has, besides it,
    the embedding and the head.
    """

    name: str
    architecture: str
    layers: int
    vocab: int
    keys: Mapping[str, Value]
    layer: Callable[[Shape, int], Rows]
    mix: str = "Q4_K_M"
    tied: bool = False
    last_norm: str = "output_norm"
    extra: Callable[[Shape], Rows] = lambda shape: ()

    def size(self, key: str, layer: int = 0) -> Any:
        """Look a number up, of a layer where each has its own; 0 where there is no such key."""
        value = self.keys.get(key, 0)
        return value(layer) if callable(value) else value

    @property
    def width(self) -> int:
        """The length of what goes from layer to layer."""
        width: int = self.size("embedding_length")
        return width


def attention(shape: Shape, layer: int = 0, norms: str = "heads", local: str = "") -> Rows:
    """Attention over heads.

    norms: of queries and keys: of the "heads", of each "whole" projection, or "none". local: what
    the keys end in that hold the sizes of heads, where such layers have their own.
    """
    width, head = shape.width, shape.size(f"attention.key_length{local}")
    head = head or width // shape.size("attention.head_count", layer)
    queries = shape.size("attention.head_count", layer) * head
    keys = shape.size("attention.head_count_kv", layer) * head
    yield "attn_k.weight", (keys, width)
    if norms != "none":
        yield "attn_k_norm.weight", (keys if norms == "whole" else head,)
    yield "attn_norm.weight", (width,)
    yield "attn_output.weight", (width, queries)
    yield "attn_q.weight", (queries, width)
    if norms != "none":
        yield "attn_q_norm.weight", (queries if norms == "whole" else head,)
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


def turns(*names: str) -> Callable[[Shape], Rows]:
    """Return what lists vectors with a number for each pair of values that positions rotate."""
    return lambda shape: ((name, (shape.size("rope.dimension_count") // 2,)) for name in names)


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
    yield from attention(shape, norms="whole")
    yield from experts(shape)


def gpt_oss(shape: Shape, _layer: int) -> Rows:
    """Every layer the same, biases everywhere, sinks."""
    rows = dict(attention(shape, norms="none")) | dict(experts(shape, "post_attention_norm"))
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


def mamba2(shape: Shape) -> Rows:
    """A Mamba-2 mixer and the norm before it."""
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


def granitehybrid(shape: Shape, layer: int) -> Rows:
    """Mamba-2, or attention in the layers that have keys; experts and one that always runs."""
    if shape.size("attention.head_count_kv", layer):
        yield from attention(shape, layer, norms="none")
    else:
        yield from mamba2(shape)
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


def nemotron(shape: Shape, layer: int) -> Rows:
    """One block a layer: experts without gates, attention in layers that have keys, or Mamba-2."""
    width = shape.width
    if shape.size("feed_forward_length", layer):
        count, hidden = shape.size("expert_count"), shape.size("expert_feed_forward_length")
        shared = shape.size("expert_shared_feed_forward_length")
        yield "attn_norm.weight", (width,)
        yield "exp_probs_b.bias", (count,)
        yield "ffn_down_exps.weight", (count, width, hidden)
        yield "ffn_down_shexp.weight", (width, shared)
        yield "ffn_gate_inp.weight", (count, width)
        yield "ffn_up_exps.weight", (count, hidden, width)
        yield "ffn_up_shexp.weight", (shared, width)
    elif shape.size("attention.head_count_kv", layer):
        yield from attention(shape, layer, norms="none")
    else:
        yield from mamba2(shape)


def gemma4(shape: Shape, layer: int) -> Rows:
    """Attention whose keys are its values where it sees all; a dense layer next to the experts."""
    if shape.size("attention.sliding_window_pattern", layer):
        yield from attention(shape, layer, local="_swa")
    else:
        rows = dict(attention(shape, layer))
        yield from ((name, dims) for name, dims in rows.items() if name != "attn_v.weight")
    width, count = shape.width, shape.size("expert_count")
    hidden = shape.size("expert_feed_forward_length")
    yield from gated(shape, shape.size("feed_forward_length"))
    yield "ffn_down_exps.scale", (count,)
    yield "ffn_down_exps.weight", (count, width, hidden)
    yield "ffn_gate_inp.scale", (width,)
    yield "ffn_gate_inp.weight", (count, width)
    yield "ffn_gate_up_exps.weight", (count, 2 * hidden, width)
    yield "layer_output_scale.weight", (1,)
    norms = "ffn_norm", "post_attention_norm", "post_ffw_norm", "pre_ffw_norm_2"
    for name in (*norms, "post_ffw_norm_1", "post_ffw_norm_2"):
        yield f"{name}.weight", (width,)


def gemma4_small(shape: Shape, layer: int) -> Rows:
    """A dense layer with an embedding of its own; the last ones borrow their keys and values."""
    local = "_swa" if shape.size("attention.sliding_window_pattern", layer) else ""
    rows = dict(attention(shape, layer, local=local))
    if layer >= shape.layers - shape.size("attention.shared_kv_layers"):
        rows = {name: dims for name, dims in rows.items() if name[:6] not in ("attn_k", "attn_v")}
    yield from rows.items()
    yield from gated(shape, shape.size("feed_forward_length", layer))
    width, own = shape.width, shape.size("embedding_length_per_layer_input")
    yield "inp_gate.weight", (own, width)
    yield "layer_output_scale.weight", (1,)
    yield "proj.weight", (width, own)
    for name in ("ffn_norm", "post_attention_norm", "post_ffw_norm", "post_norm"):
        yield f"{name}.weight", (width,)


def gemma4_small_extra(shape: Shape) -> Rows:
    """The table of the layers' embeddings, and what they get from a token's first one."""
    own = shape.size("embedding_length_per_layer_input")
    yield from turns("rope_freqs.weight")(shape)
    yield "per_layer_model_proj.weight", (shape.layers * own, shape.width)
    yield "per_layer_proj_norm.weight", (own,)
    yield "per_layer_token_embd.weight", (shape.vocab, shape.layers * own)


def dense_or_experts(shape: Shape, layer: int, shared: int = 0) -> Rows:
    """The first layers dense, the others with experts that a biased sigmoid chooses.

    shared: the width of what always runs besides them.
    """
    if layer < shape.size("leading_dense_block_count"):
        yield "ffn_norm.weight", (shape.width,)
        yield from gated(shape, shape.size("feed_forward_length"))
    else:
        yield "exp_probs_b.bias", (shape.size("expert_count"),)
        yield from experts(shape)
        if shared:
            yield from gated(shape, shared, "_shexp")


def laguna(shape: Shape, layer: int) -> Rows:
    """Attention with a gate on each head; one shared expert."""
    yield "attn_gate.weight", (shape.size("attention.head_count", layer), shape.width)
    yield from attention(shape, layer)
    yield from dense_or_experts(shape, layer, shape.size("expert_shared_feed_forward_length"))


def absorbed(shape: Shape) -> Rows:
    """What latent attention keeps and reads: keys' and values' projections apart, head by head."""
    width, rank = shape.width, shape.size("attention.kv_lora_rank")
    heads, turned = shape.size("attention.head_count"), shape.size("rope.dimension_count")
    key, value = (shape.size(f"attention.{kind}_length_mla") for kind in ("key", "value"))
    yield "attn_k_b.weight", (heads, rank, key - turned)
    yield "attn_kv_a_mqa.weight", (rank + turned, width)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_norm.weight", (width,)
    yield "attn_output.weight", (width, heads * value)
    yield "attn_v_b.weight", (heads, value, rank)


def kimi_linear(shape: Shape, layer: int) -> Rows:
    """Latent attention in layers that have keys, else a delta net whose channels decay apart."""
    width, heads = shape.width, shape.size("attention.head_count")
    if shape.size("attention.head_count_kv", layer):
        yield from absorbed(shape)
        yield "attn_q.weight", (heads * shape.size("attention.key_length_mla"), width)
    else:
        head = shape.size("kda.head_dim")
        inner, kernel = heads * head, shape.size("ssm.conv_kernel")
        yield "attn_norm.weight", (width,)
        yield "attn_output.weight", (width, inner)
        for part in "kqv":
            yield f"attn_{part}.weight", (inner, width)
            yield f"ssm_conv1d_{part}.weight", (1, inner, 1, kernel)
        for part in "fg":
            yield f"ssm_{part}_a.weight", (head, width)
            yield f"ssm_{part}_b.weight", (inner, head)
        yield "ssm_a", (1, 1, heads, 1)
        yield "ssm_beta.weight", (heads, width)
        yield "ssm_dt.bias", (inner,)
        yield "ssm_norm.weight", (head,)
    yield from dense_or_experts(shape, layer, shape.size("expert_feed_forward_length"))


def glm_dsa(shape: Shape, layer: int) -> Rows:
    """Latent attention to the tokens that an indexer chooses."""
    width, low = shape.width, shape.size("attention.q_lora_rank")
    head, heads = (shape.size(f"attention.indexer.{key}") for key in ("key_length", "head_count"))
    queries = shape.size("attention.head_count") * shape.size("attention.key_length_mla")
    yield from absorbed(shape)
    yield "attn_q_a.weight", (low, width)
    yield "attn_q_a_norm.weight", (low,)
    yield "attn_q_b.weight", (queries, low)
    yield "indexer.attn_k.weight", (head, width)
    yield "indexer.attn_q_b.weight", (heads * head, low)
    yield "indexer.k_norm.bias", (head,)
    yield "indexer.k_norm.weight", (head,)
    yield "indexer.proj.weight", (heads, width)
    yield from dense_or_experts(shape, layer, shape.size("expert_feed_forward_length"))


def lfm2moe(shape: Shape, layer: int) -> Rows:
    """Attention in layers that have keys, else a short convolution between gates."""
    width = shape.width
    if shape.size("attention.head_count_kv", layer):
        yield from attention(shape, layer)
    else:
        yield "attn_norm.weight", (width,)
        yield "shortconv.conv.weight", (width, shape.size("shortconv.l_cache"))
        yield "shortconv.in_proj.weight", (3 * width, width)
        yield "shortconv.out_proj.weight", (width, width)
    yield from dense_or_experts(shape, layer)


def llama4(shape: Shape, _layer: int) -> Rows:
    """Every layer the same: no norms on heads, one shared expert."""
    yield from attention(shape, norms="none")
    yield from experts(shape)
    yield from gated(shape, shape.size("expert_feed_forward_length"), "_shexp")


def phimoe(shape: Shape, _layer: int) -> Rows:
    """Every layer the same, biases on attention and on norms."""
    rows = dict(attention(shape, norms="none"))
    for name, dims in (rows | dict(experts(shape))).items():
        yield name, dims
        if name in rows or "norm" in name:
            yield name.replace(".weight", ".bias"), dims[:1]


def phimoe_extra(shape: Shape) -> Rows:
    """The biases of the head and its norm, and the two ways to stretch positions."""
    yield from turns("rope_factors_long.weight", "rope_factors_short.weight")(shape)
    yield "output.bias", (shape.vocab,)
    yield "output_norm.bias", (shape.width,)
