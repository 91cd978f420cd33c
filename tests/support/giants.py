"""Models too large for a test machine: their headers, in the exact shapes, over files of holes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from support.gguf_writer import Tensor, write_sparse_parts

DEEPSEEK_V3: dict[str, Any] = {
    "general.architecture": "deepseek2",
    "general.name": "DeepSeek V3",
    "deepseek2.block_count": 61,
    "deepseek2.context_length": 163_840,
    "deepseek2.embedding_length": 7168,
    "deepseek2.feed_forward_length": 18_432,
    "deepseek2.attention.head_count": 128,
    "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.layer_norm_rms_epsilon": 1e-6,
    "deepseek2.attention.q_lora_rank": 1536,
    "deepseek2.attention.kv_lora_rank": 512,
    "deepseek2.attention.key_length": 576,
    "deepseek2.attention.value_length": 512,
    "deepseek2.attention.key_length_mla": 192,
    "deepseek2.attention.value_length_mla": 128,
    "deepseek2.rope.dimension_count": 64,
    "deepseek2.rope.scaling.type": "yarn",
    "deepseek2.rope.scaling.factor": 40.0,
    "deepseek2.rope.scaling.original_context_length": 4096,
    "deepseek2.rope.scaling.yarn_log_multiplier": 0.1,
    "deepseek2.leading_dense_block_count": 3,
    "deepseek2.expert_count": 256,
    "deepseek2.expert_used_count": 8,
    "deepseek2.expert_group_count": 8,
    "deepseek2.expert_group_used_count": 4,
    "deepseek2.expert_gating_func": 2,
    "deepseek2.expert_feed_forward_length": 2048,
    "deepseek2.expert_shared_count": 1,
    "deepseek2.expert_weights_norm": True,
    "deepseek2.expert_weights_scale": 2.5,
}
QWEN3_235B: dict[str, Any] = {
    "general.architecture": "qwen3moe",
    "general.name": "Qwen3 235B A22B",
    "qwen3moe.block_count": 94,
    "qwen3moe.context_length": 40_960,
    "qwen3moe.embedding_length": 4096,
    "qwen3moe.feed_forward_length": 12_288,
    "qwen3moe.attention.head_count": 64,
    "qwen3moe.attention.head_count_kv": 4,
    "qwen3moe.attention.key_length": 128,
    "qwen3moe.attention.value_length": 128,
    "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen3moe.rope.freq_base": 1e6,
    "qwen3moe.expert_count": 128,
    "qwen3moe.expert_used_count": 8,
    "qwen3moe.expert_feed_forward_length": 1536,
}

LLAMA_405B: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Llama 3.1 405B",
    "llama.block_count": 126,
    "llama.context_length": 131_072,
    "llama.embedding_length": 16_384,
    "llama.feed_forward_length": 53_248,
    "llama.attention.head_count": 128,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500_000.0,
}


def write_llama_405b(folder: Path, parts: int) -> list[Path]:
    """Write Llama 3.1 405B in Q8_0, dense: every token reads all of it."""
    return _write(folder, "llama-405b", LLAMA_405B, 128_256, list(_llama_405b()), parts)


def write_deepseek_v3(folder: Path, parts: int) -> list[Path]:
    """Write DeepSeek-V3 in Q8_0, the first of several parts without tensors."""
    return _write(folder, "deepseek-v3", DEEPSEEK_V3, 129_280, list(_deepseek_v3()), parts)


def write_qwen3_235b(folder: Path, parts: int) -> list[Path]:
    """Write Qwen3-235B-A22B in Q8_0, the first of several parts without tensors."""
    return _write(folder, "qwen3-235b", QWEN3_235B, 151_936, list(_qwen3_235b()), parts)


def _write(
    folder: Path,
    stem: str,
    keys: dict[str, Any],
    vocab: int,
    tensors: list[tuple[str, tuple[int, ...]]],
    parts: int,
) -> list[Path]:
    made = [Tensor(name, shape, _type(name)) for name, shape in tensors]
    groups = [list(group) for group in np.array_split(np.arange(len(made)), max(1, parts - 1))]
    files = [[made[i] for i in group] for group in groups]
    keys = keys | {"tokenizer.ggml.tokens": [f"<{i}>" for i in range(vocab)]}
    return write_sparse_parts(folder, stem, keys, [[], *files] if parts > 1 else files)


def _type(name: str) -> str:
    kept = name.endswith(("norm.weight", "ffn_gate_inp.weight", ".bias"))
    return "F32" if kept else "Q8_0"


def _deepseek_v3() -> Iterator[tuple[str, tuple[int, ...]]]:
    width, heads, experts, hidden = 7168, 128, 256, 2048
    yield from _ends(129_280, width)
    for layer in range(61):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", (width,)
        yield at + "attn_q_a.weight", (1536, width)
        yield at + "attn_q_a_norm.weight", (1536,)
        yield at + "attn_q_b.weight", (heads * 192, 1536)
        yield at + "attn_kv_a_mqa.weight", (576, width)
        yield at + "attn_kv_a_norm.weight", (512,)
        yield at + "attn_k_b.weight", (heads, 512, 128)
        yield at + "attn_v_b.weight", (heads, 128, 512)
        yield at + "attn_output.weight", (width, heads * 128)
        yield at + "ffn_norm.weight", (width,)
        if layer < 3:
            yield from _feed_forward(at, "", (), 18_432, width)
            continue
        yield at + "ffn_gate_inp.weight", (experts, width)
        yield at + "exp_probs_b.bias", (experts,)
        yield from _feed_forward(at, "_exps", (experts,), hidden, width)
        yield from _feed_forward(at, "_shexp", (), hidden, width)


def _qwen3_235b() -> Iterator[tuple[str, tuple[int, ...]]]:
    width, heads, kv_heads, dims, experts = 4096, 64, 4, 128, 128
    yield from _ends(151_936, width)
    for layer in range(94):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", (width,)
        yield at + "attn_q.weight", (heads * dims, width)
        yield at + "attn_k.weight", (kv_heads * dims, width)
        yield at + "attn_v.weight", (kv_heads * dims, width)
        yield at + "attn_q_norm.weight", (dims,)
        yield at + "attn_k_norm.weight", (dims,)
        yield at + "attn_output.weight", (width, heads * dims)
        yield at + "ffn_norm.weight", (width,)
        yield at + "ffn_gate_inp.weight", (experts, width)
        yield from _feed_forward(at, "_exps", (experts,), 1536, width)


def _llama_405b() -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden = 16_384, 53_248
    yield from _ends(128_256, width)
    for layer in range(126):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", (width,)
        yield at + "attn_q.weight", (width, width)
        yield at + "attn_k.weight", (1024, width)
        yield at + "attn_v.weight", (1024, width)
        yield at + "attn_output.weight", (width, width)
        yield at + "ffn_norm.weight", (width,)
        yield from _feed_forward(at, "", (), hidden, width)


def _ends(vocab: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (vocab, width)
    yield "output_norm.weight", (width,)
    yield "output.weight", (vocab, width)


def _feed_forward(
    at: str, suffix: str, stack: tuple[int, ...], hidden: int, width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}ffn_gate{suffix}.weight", (*stack, hidden, width)
    yield f"{at}ffn_up{suffix}.weight", (*stack, hidden, width)
    yield f"{at}ffn_down{suffix}.weight", (*stack, width, hidden)
