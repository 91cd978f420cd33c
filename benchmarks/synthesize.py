"""Write a GGUF file with a catalog model's exact shapes and quantisation mix, and random weights.

It takes the time and the memory that the model takes, without being downloaded, and with as many
layers as there is room for; what it says is nonsense. The types of the tensors are those that
`llama-quantize` chooses for a model with that many layers, or with --mix another published mix.
shapes.py has the models. The same seed gives the same file. Blocks are cut at random places out of
one large random tile per type and width, and written as they are cut: memory stays bounded.

    python benchmarks/synthesize.py /tmp/moe.gguf --model qwen3-30b-a3b --layers 12

Its routers choose evenly, which no real model's do: each token needs other experts than the last.
--locality makes them repeat themselves as published (locality.py).
"""

from __future__ import annotations

import argparse
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from blocks import BLOCKS, MAKERS
from layers import Shape, Value
from locality import Locality
from packing import BOOL, INT32, array, boolean, float32, packed, string, uint32
from shapes import SHAPES
from words import vocabulary

ALIGNMENT = 32


Choice = Callable[[int, int], bool]  # of a layer's number, and of how many there are


def use_more_bits(layer: int, layers: int) -> bool:
    """True for the layers whose attn_v and ffn_down llama-quantize gives six bits in Q4_K_M."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def first(part: int) -> Choice:
    """Choose the first `part`-th of the layers."""
    return lambda layer, layers: layer < layers // part


@dataclass(frozen=True)
class Mix:
    """How a file is quantised.

    types: by the start of a tensor's name, without `blk.N.`; "" is every other matrix. special: the
    same, for chosen layers; it comes first. The first that fits holds.
    """

    file_type: int  # general.file_type
    types: Mapping[str, str]
    special: tuple[tuple[str, Choice, str], ...] = ()

    def type_of(self, part: str, layer: int, layers: int) -> str:
        """Return the type of a matrix, whose name without `blk.N.` is `part`."""
        for start, chosen, type in self.special:
            if part.startswith(start) and chosen(layer, layers):
                return type
        return next(type for start, type in self.types.items() if part.startswith(start))


# What llama-quantize does with an importance matrix (llama_tensor_get_type), for models that have
# experts and at least four queries to a key. UD-Q2_K_XL is unsloth's: the types that published
# files hold, in about their shares.
MIXES = {
    "Q4_K_M": Mix(
        15,
        {"output": "Q6_K", "attn_qkv": "Q5_K", "": "Q4_K"},
        (("attn_v.", use_more_bits, "Q6_K"), ("ffn_down", use_more_bits, "Q6_K")),
    ),
    "Q6_K": Mix(18, {"": "Q6_K"}),
    "Q3_K_M": Mix(
        12,
        {
            "output": "Q6_K",
            "attn_output": "Q4_K",
            "attn_qkv": "Q4_K",
            "attn_v.": "Q4_K",
            "ffn_down": "Q4_K",
            "": "Q3_K",
        },
        (("attn_v.", lambda layer, _: layer < 2, "Q5_K"), ("ffn_down", first(16), "Q5_K")),
    ),
    "IQ3_XXS": Mix(
        23,
        {
            "output": "Q5_K",
            "token_embd": "IQ3_S",
            "attn_output": "IQ3_S",
            "attn_k.": "IQ2_S",
            "attn_q.": "IQ2_S",
            "attn_v.": "Q4_K",
            "": "IQ3_XXS",
        },
    ),
    "IQ2_XS": Mix(
        20,
        {"output": "Q5_K", "token_embd": "Q2_K", "attn_v.": "Q4_K", "": "IQ2_XS"},
        (("ffn_down", first(8), "Q2_K"),),
    ),
    "UD-Q2_K_XL": Mix(
        10,
        {
            "output": "Q6_K",
            "token_embd": "Q5_K",
            "attn_k.": "Q5_K",
            "attn_output": "IQ4_XS",
            "attn_q.": "IQ3_XXS",
            "attn_v.": "Q6_K",
            "ffn_down": "IQ3_XXS",
            "ffn_up": "IQ2_S",
            "": "IQ2_XS",
        },
        (("ffn_down", first(8), "IQ3_S"),),
    ),
    "MXFP4": Mix(
        38,
        {
            "ffn_down_exps": "MXFP4",
            "ffn_gate_exps": "MXFP4",
            "ffn_up_exps": "MXFP4",
            "": "Q8_0",
        },
    ),
}
# What rows that are no whole blocks of 256 get instead.
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
# Parts of names of matrices that stay in float32.
FLOATS = ("ffn_gate_inp.", "exps.bias", "ssm_conv1d", "shortconv.conv.", "indexer.proj.")
# What all weights of a vector are whose name ends so; the others are small and random.
CONSTANTS = {
    "norm.weight": 1.0,
    "norm_1.weight": 1.0,
    "norm_2.weight": 1.0,
    "scale": 1.0,
    "scale.weight": 1.0,
    "rope_freqs.weight": 1.0,
    "rope_factors_long.weight": 1.0,
    "rope_factors_short.weight": 1.0,
    "ssm_a": -1.0,
    "ssm_d": 1.0,
}
SMALL = 0.02  # the spread of random vectors


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. shape: outermost first; std: the spread of its weights around `mean`."""

    name: str
    shape: tuple[int, ...]
    type: str
    std: float
    mean: float = 0.0

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
    parser.add_argument("--mix", choices=MIXES, help="the published file's, if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--locality", action="store_true", help="routers that repeat their choices")
    options = parser.parse_args()
    shape = SHAPES[options.model]
    shape = replace(shape, layers=options.layers or shape.layers, mix=options.mix or shape.mix)
    size_bytes = synthesize(shape, options.out, options.seed, options.locality)
    print(f"{options.out}: {shape.layers} layers, {size_bytes:,} bytes")
    return 0


def synthesize(shape: Shape, path: Path, seed: int, locality: bool = False) -> int:
    """Write the file; says how many bytes it has. It takes its name when it is complete.

    locality: routers repeat their choices; needs a model whose heads' queries have a norm.
    """
    tensors = plan(shape)
    repeating = _repeating(shape, tensors, seed) if locality else None
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(header(metadata(shape, seed), tensors))
        tiles: dict[tuple[str, float], np.ndarray] = {}
        rng = np.random.default_rng(seed)
        for tensor in tensors:
            _write(file, tensor, tiles, rng, repeating)
        size_bytes = file.tell()
    partial.replace(path)
    return size_bytes


def _repeating(shape: Shape, tensors: list[Tensor], seed: int) -> Locality:
    norms = [tensor for tensor in tensors if "attn_q_norm" in tensor.name]
    if not norms or math.prod(norms[0].shape) != shape.size("attention.key_length"):
        raise SystemExit(f"--locality needs a model with a norm on each head, not {shape.name}")
    return Locality(shape.layers, shape.width, shape.size("attention.key_length"), seed)


def plan(shape: Shape) -> list[Tensor]:
    """List the tensors, each of the type that the file's mix gives it."""
    width, mix = shape.width, MIXES[shape.mix]
    dims, types = (shape.vocab, width), mix.types
    output = _type(types.get("output", types[""]), width)
    if shape.tied:
        tensors = [Tensor("token_embd.weight", dims, output, width**-0.5)]
    else:
        # As large as what all layers add: else tokens become alike, and choose the same experts.
        spread = (2 * shape.layers) ** 0.5
        embedding = _type(types.get("token_embd", types[""]), width)
        tensors = [
            Tensor("output.weight", dims, output, width**-0.5),
            Tensor("token_embd.weight", dims, embedding, spread),
        ]
    tensors.append(Tensor(f"{shape.last_norm}.weight", (width,), "F32", 0.0, 1.0))
    tensors += [_plan_tensor(name, dims, types[""]) for name, dims in shape.extra(shape)]
    for layer in range(shape.layers):
        for part, dims in shape.layer(shape, layer):
            name, type = f"blk.{layer}.{part}", mix.type_of(part, layer, shape.layers)
            tensors.append(_plan_tensor(name, dims, type))
    return tensors


def _plan_tensor(name: str, dims: tuple[int, ...], type: str) -> Tensor:
    means = [mean for end, mean in CONSTANTS.items() if name.endswith(end)]
    if means:
        return Tensor(name, dims, "F32", 0.0, means[0])
    if len(dims) == 1 or any(part in name for part in FLOATS):
        vector = len(dims) == 1 or name.endswith(".bias")
        return Tensor(name, dims, "F32", SMALL if vector else dims[-1] ** -0.5)
    return Tensor(name, dims, _type(type, dims[-1]), dims[-1] ** -0.5)


def _type(type: str, columns: int) -> str:
    return type if columns % BLOCKS[type][1] == 0 else FALLBACKS[type]


# Weights


def _write(
    file: BinaryIO,
    tensor: Tensor,
    tiles: dict[tuple[str, float], Any],
    rng: np.random.Generator,
    repeating: Locality | None,
) -> None:
    """Write the blocks of a tensor, and the padding after it."""
    weights = math.prod(tensor.shape)
    if tensor.std == 0:
        vector = repeating and repeating.vector(tensor.name, weights)
        file.write((np.full(weights, tensor.mean, "<f4") if vector is None else vector).tobytes())
    elif repeating and "ffn_gate_inp." in tensor.name:
        file.write(repeating.router(tensor.name, tensor.shape[0]).tobytes())
    else:
        key = tensor.type, tensor.std
        if key not in tiles:
            tiles[key] = MAKERS[tensor.type](rng, tensor.std)
        tile, count = tiles[key], weights // BLOCKS[tensor.type][1]
        edit = repeating and repeating.edit(tensor.name, tile)
        if edit:
            matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            for _ in range(matrices):
                blocks = np.concatenate([*_pieces(tile, count // matrices, rng)])
                edit(blocks.reshape(tensor.shape[-2], -1, blocks.shape[-1]))
                file.write(memoryview(blocks).cast("B"))
        else:
            for piece in _pieces(tile, count, rng):
                file.write(memoryview(piece).cast("B"))
    file.write(bytes(-file.tell() % ALIGNMENT))


def _pieces(tile: np.ndarray, left: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut so many blocks out of a tile at random places."""
    while left:
        start = int(rng.integers(len(tile)))
        piece = tile[start : start + left]
        yield piece
        left -= len(piece)


# The header


def header(pairs: list[tuple[str, bytes]], tensors: list[Tensor]) -> bytes:
    """Put the header together, padded to where the first tensor starts."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    parts += [packed(key) + value for key, value in pairs]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(packed(tensor.name) + struct.pack("<I", len(dims)))
        parts.append(struct.pack(f"<{len(dims)}QIQ", *dims, BLOCKS[tensor.type][0], offset))
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    data = b"".join(parts)
    return data + bytes(-len(data) % ALIGNMENT)


def metadata(shape: Shape, seed: int) -> list[tuple[str, bytes]]:
    """List the keys, each value with its type."""
    prefix = shape.architecture
    return [
        ("general.architecture", string(prefix)),
        ("general.type", string("model")),
        ("general.name", string(f"{shape.name} shapes, {shape.layers} layers, random weights")),
        ("general.file_type", uint32(MIXES[shape.mix].file_type)),
        ("general.quantization_version", uint32(2)),
        (f"{prefix}.block_count", uint32(shape.layers)),
        *((f"{prefix}.{key}", _value(value, shape.layers)) for key, value in shape.keys.items()),
        *vocabulary(shape.vocab, seed),
    ]


def _value(value: Value, layers: int) -> bytes:
    """Pack a value of the table with its type: whole numbers are unsigned but in arrays."""
    if callable(value):
        value = tuple(value(layer) for layer in range(layers))
    if isinstance(value, tuple) and isinstance(value[0], bool):
        return array(BOOL, bytes(value), len(value))
    if isinstance(value, tuple):
        return array(INT32, np.array(value, "<i4").tobytes(), len(value))
    if isinstance(value, str):
        return string(value)
    if isinstance(value, bool):
        return boolean(value)
    return uint32(value) if isinstance(value, int) else float32(value)


if __name__ == "__main__":
    sys.exit(main())
