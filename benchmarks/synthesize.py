"""Write a GGUF file with a catalog model's exact shapes and quantisation mix, and random weights.

It takes the time and the memory that the model takes, without being downloaded, and with as many
layers as there is room for; what it says is nonsense. The types of the tensors are those that
`llama-quantize ... Q4_K_M` chooses for a model with that many layers. The same seed gives the same
file. Blocks are cut at random places out of one large random tile per type and width, and written
as they are cut: memory stays bounded.

    python benchmarks/synthesize.py /tmp/moe.gguf --model qwen3-30b-a3b --layers 12
"""

from __future__ import annotations

import argparse
import math
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ALIGNMENT = 32
TILE_BYTES = 32 << 20
Q4_K_M = 15  # general.file_type
BLOCKS = {"F32": (0, 1, 4), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}  # id, weights, bytes

# Types of metadata values.
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Shape:
    """What a model of the architecture `qwen3moe` is built from."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    experts_used: int
    expert_width: int
    feed_forward: int
    vocab: int
    context: int
    rope_base: float


SHAPES = {
    "qwen3-30b-a3b": Shape(
        name="Qwen3-30B-A3B",
        layers=48,
        width=2048,
        heads=32,
        kv_heads=4,
        head_width=128,
        experts=128,
        experts_used=8,
        expert_width=768,
        feed_forward=6144,
        vocab=151_936,
        context=40_960,
        rope_base=1e6,
    )
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. shape: outermost first; std: the spread of its weights, 0 for ones."""

    name: str
    shape: tuple[int, ...]
    type: str
    std: float

    @property
    def size_bytes(self) -> int:
        """How many bytes its blocks take."""
        _, weights, size_bytes = BLOCKS[self.type]
        return math.prod(self.shape) // weights * size_bytes


def main() -> int:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, help="as many as the model has, if left out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = SHAPES[options.model]
    shape = replace(shape, layers=options.layers or shape.layers)
    size_bytes = synthesize(shape, options.out, options.seed)
    print(f"{options.out}: {shape.layers} layers, {size_bytes:,} bytes")
    return 0


def synthesize(shape: Shape, path: Path, seed: int) -> int:
    """Write the file; says how many bytes it has. It takes its name when it is complete."""
    tensors = plan(shape)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(header(metadata(shape, seed), tensors))
        tiles: dict[tuple[str, float], np.ndarray] = {}
        rng = np.random.default_rng(seed)
        for tensor in tensors:
            _write(file, tensor, tiles, rng)
        size_bytes = file.tell()
    partial.replace(path)
    return size_bytes


def plan(shape: Shape) -> list[Tensor]:
    """List the tensors, each of the type that llama-quantize gives it."""
    width = shape.width
    tensors = [
        Tensor("output.weight", (shape.vocab, width), "Q6_K", width**-0.5),
        Tensor("token_embd.weight", (shape.vocab, width), "Q4_K", 1.0),
        Tensor("output_norm.weight", (width,), "F32", 0),
    ]
    for layer in range(shape.layers):
        tensors += _plan_layer(shape, layer)
    return tensors


def _plan_layer(shape: Shape, layer: int) -> Iterator[Tensor]:
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    more = "Q6_K" if use_more_bits(layer, shape.layers) else "Q4_K"
    count, hidden, width = shape.experts, shape.expert_width, shape.width
    for name, dims, type in (
        ("attn_k", (keys, width), "Q4_K"),
        ("attn_k_norm", (shape.head_width,), "F32"),
        ("attn_norm", (width,), "F32"),
        ("attn_output", (width, queries), "Q4_K"),
        ("attn_q", (queries, width), "Q4_K"),
        ("attn_q_norm", (shape.head_width,), "F32"),
        ("attn_v", (keys, width), more),
        ("ffn_down_exps", (count, width, hidden), more),
        ("ffn_gate_exps", (count, hidden, width), "Q4_K"),
        ("ffn_gate_inp", (count, width), "F32"),
        ("ffn_norm", (width,), "F32"),
        ("ffn_up_exps", (count, hidden, width), "Q4_K"),
    ):
        std = 0.0 if len(dims) == 1 else dims[-1] ** -0.5
        yield Tensor(f"blk.{layer}.{name}.weight", dims, type, std)


def use_more_bits(layer: int, layers: int) -> bool:
    """Say whether llama-quantize gives this layer's attn_v and ffn_down six bits in Q4_K_M."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


# Weights


def _write(
    file: BinaryIO, tensor: Tensor, tiles: dict[tuple[str, float], Any], rng: np.random.Generator
) -> None:
    """Write the blocks of a tensor, and the padding after it."""
    if tensor.std == 0:
        file.write(np.ones(math.prod(tensor.shape), "<f4").tobytes())
    else:
        key = tensor.type, tensor.std
        if key not in tiles:
            tiles[key] = MAKERS[tensor.type](rng, tensor.std)
        tile, left = tiles[key], math.prod(tensor.shape) // BLOCKS[tensor.type][1]
        while left:
            start = int(rng.integers(len(tile)))
            piece = tile[start : start + left]
            file.write(memoryview(piece).cast("B"))
            left -= len(piece)
    file.write(bytes(-file.tell() % ALIGNMENT))


def _f32(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make normally distributed weights: (n, 1)."""
    weights = rng.standard_normal((TILE_BYTES // 16, 1), np.float32) * np.float32(std)
    return weights.astype("<f4")


def _q4_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q4_K blocks around 0: (n, 144). Every sub-block's minimum has the number of its scale,
    and the block's scale for minima is 7.5 times its scale, so that w = d * sc * (q - 7.5)."""
    blocks = _random_bytes(rng, 144)
    spread = math.sqrt(_mean_square(0, 63) * (16**2 - 1) / 12)
    scales = _scales(rng, len(blocks), std / spread)
    blocks[:, 0:2] = scales.astype("<f2").view(np.uint8)
    blocks[:, 2:4] = (7.5 * scales).astype("<f2").view(np.uint8)
    blocks[:, 8:12] = blocks[:, 4:8]  # scales in 4..8, minima in 8..12, four low bits of both in
    blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17  # 12..16
    return blocks


def _q6_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q6_K blocks around 0: (n, 210). w = d * sc * (q - 32), sc signed."""
    blocks = _random_bytes(rng, 210)
    spread = math.sqrt(_mean_square(-128, 127) * _mean_square(-32, 31))
    blocks[:, 208:210] = _scales(rng, len(blocks), std / spread).astype("<f2").view(np.uint8)
    return blocks


MAKERS = {"F32": _f32, "Q4_K": _q4_k, "Q6_K": _q6_k}


def _random_bytes(rng: np.random.Generator, size_bytes: int) -> np.ndarray:
    count = TILE_BYTES // size_bytes
    return np.frombuffer(bytearray(rng.bytes(count * size_bytes)), np.uint8).reshape(count, -1)


def _scales(rng: np.random.Generator, count: int, around: float) -> np.ndarray:
    return around * rng.uniform(0.75, 1.25, (count, 1))


def _mean_square(low: int, high: int) -> float:
    return float(np.mean(np.arange(low, high + 1) ** 2.0))


# The header


def header(pairs: list[tuple[str, bytes]], tensors: list[Tensor]) -> bytes:
    """Put the header together, padded to where the first tensor starts."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    parts += [_packed(key) + value for key, value in pairs]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_packed(tensor.name) + struct.pack("<I", len(dims)))
        parts.append(struct.pack(f"<{len(dims)}QIQ", *dims, BLOCKS[tensor.type][0], offset))
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    data = b"".join(parts)
    return data + bytes(-len(data) % ALIGNMENT)


def metadata(shape: Shape, seed: int) -> list[tuple[str, bytes]]:
    """List the keys, each value with its type."""
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_width,
    }
    floats = {"rope.freq_base": shape.rope_base, "attention.layer_norm_rms_epsilon": 1e-6}
    return [
        ("general.architecture", _string("qwen3moe")),
        ("general.type", _string("model")),
        ("general.name", _string(f"{shape.name} shapes, {shape.layers} layers, random weights")),
        ("general.file_type", _uint32(Q4_K_M)),
        ("general.quantization_version", _uint32(2)),
        *((f"qwen3moe.{key}", _uint32(value)) for key, value in numbers.items()),
        *((f"qwen3moe.{key}", struct.pack("<If", FLOAT32, v)) for key, v in floats.items()),
        *_vocabulary(shape.vocab, seed),
    ]


# The vocabulary

# As Qwen3 has them: after the merged tokens, and before what pads the vocabulary to its size.
SPECIALS = {
    "<|endoftext|>": CONTROL,
    "<|im_start|>": CONTROL,
    "<|im_end|>": CONTROL,
    "<|object_ref_start|>": CONTROL,
    "<|object_ref_end|>": CONTROL,
    "<|box_start|>": CONTROL,
    "<|box_end|>": CONTROL,
    "<|quad_start|>": CONTROL,
    "<|quad_end|>": CONTROL,
    "<|vision_start|>": CONTROL,
    "<|vision_end|>": CONTROL,
    "<|vision_pad|>": CONTROL,
    "<|image_pad|>": CONTROL,
    "<|video_pad|>": CONTROL,
    "<tool_call>": USER_DEFINED,
    "</tool_call>": USER_DEFINED,
    "<|fim_prefix|>": CONTROL,
    "<|fim_middle|>": CONTROL,
    "<|fim_suffix|>": CONTROL,
    "<|fim_pad|>": CONTROL,
    "<|repo_name|>": CONTROL,
    "<|file_sep|>": CONTROL,
    "<tool_response>": USER_DEFINED,
    "</tool_response>": USER_DEFINED,
    "<think>": USER_DEFINED,
    "</think>": USER_DEFINED,
}
PADDING = 267  # tokens that nothing uses, of a vocabulary of 151,936
LONGEST_PART = 4  # characters of what is merged again: keeps tokens as long as real ones
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _vocabulary(size: int, seed: int) -> list[tuple[str, bytes]]:
    """Make up a byte-level vocabulary of `size` tokens, merged out of letters at random."""
    padding = PADDING if size > 1024 else 0
    words, merges = make_words(size - len(SPECIALS) - padding, seed)
    specials = [*SPECIALS, *(f"[PAD{len(words) + len(SPECIALS) + i}]" for i in range(padding))]
    kinds = [NORMAL] * len(words) + [*SPECIALS.values()] + [UNUSED] * padding
    ids = {text: len(words) + i for i, text in enumerate(SPECIALS)}
    prefix = "tokenizer.ggml."
    return [
        (prefix + "model", _string("gpt2")),
        (prefix + "pre", _string("qwen2")),
        (prefix + "tokens", _strings(words + specials)),
        (prefix + "token_type", _array(INT32, np.array(kinds, "<i4").tobytes(), len(kinds))),
        (prefix + "merges", _strings(merges)),
        (prefix + "eos_token_id", _uint32(ids["<|im_end|>"])),
        (prefix + "padding_token_id", _uint32(ids["<|endoftext|>"])),
        (prefix + "bos_token_id", _uint32(ids["<|endoftext|>"])),
        (prefix + "add_bos_token", struct.pack("<I?", BOOL, False)),
        ("tokenizer.chat_template", _string(TEMPLATE)),
    ]


def make_words(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Make `count` tokens, the 256 bytes first, and the merges that lead to the others."""
    words = byte_letters()
    draw = random.Random(seed)
    space = "Ġ"  # how a space is written; it only starts a word
    inner, starting, known = list(LETTERS), [space], set(words)
    merges: list[str] = []
    while len(words) < count:
        left = draw.choice(starting if draw.random() < 0.5 else inner)
        right = draw.choice(inner)
        word = left + right
        if word in known:
            continue
        known.add(word)
        words.append(word)
        merges.append(f"{left} {right}")
        if len(word) <= LONGEST_PART:
            (starting if word.startswith(space) else inner).append(word)
    return words, merges


def byte_letters() -> list[str]:
    """List the letters that stand for bytes in a byte-level vocabulary, in GPT-2's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


# Packing


def _packed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _string(text: str) -> bytes:
    return struct.pack("<I", STRING) + _packed(text)


def _uint32(value: int) -> bytes:
    return struct.pack("<II", UINT32, value)


def _strings(texts: list[str]) -> bytes:
    return _array(STRING, b"".join(_packed(text) for text in texts), len(texts))


def _array(type_id: int, payload: bytes, count: int) -> bytes:
    return struct.pack("<IIQ", ARRAY, type_id, count) + payload


if __name__ == "__main__":
    sys.exit(main())
