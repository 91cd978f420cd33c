"""Assemble the text of each kernel, as mx.fast.metal_kernel and mx.fast.cuda_kernel take it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from engine.gguf.dequant import IQ4_VALUES, MXFP4_VALUES
from engine.gguf.grids import grid
from engine.gguf.types import TYPE_BY_NAME

TEXT = Path(__file__).parent / "text"
# The inputs of each operation, which its text describes. All have one output, `y`.
OPERATIONS = {
    "product": ("w", "x", "dims"),
    "chosen": ("w", "x", "ids", "dims"),
    "gated": ("gate", "up", "x", "ids", "gate_bias", "up_bias", "limit", "dims"),
    "weighted": ("w", "x", "ids", "scores", "bias", "dims"),
    "rows": ("w", "ids", "dims"),
    "grouped": ("w", "x", "ends", "dims"),
}
# What an operation's text needs besides its type.
_NEEDS = dict.fromkeys(("product", "chosen", "weighted"), ("dot",)) | {
    "gated": ("dot", "activation")
}
# What a type's text needs: another text, or a table (name, element type, numbers).
_SCALES = dict.fromkeys(("Q4_K", "Q5_K"), "k_scales")
_CODEBOOKS = dict.fromkeys(("IQ4_NL", "IQ4_XS"), IQ4_VALUES + 128) | dict.fromkeys(
    ("MXFP4", "NVFP4"), MXFP4_VALUES + 12
)
_GRIDS = {"IQ1_S": "IQ1", "IQ1_M": "IQ1"} | {
    name: name for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
}
TYPES = tuple(name for name in TYPE_BY_NAME if name not in ("F32", "F16", "BF16"))


@dataclass(frozen=True, slots=True)
class KernelText:
    """A kernel: what comes before it, and its body."""

    name: str
    inputs: tuple[str, ...]
    header: str
    source: str
    cuda: bool


@cache
def kernel_text(operation: str, type_name: str, cuda: bool) -> KernelText:
    """Return the kernel of an operation for a block type."""
    parts = ["prelude.cuda" if cuda else "prelude.metal", "words.metal"]
    header = "".join(map(read_text, parts)) + _tables(type_name)
    parts = [f"types/{type_name.lower()}.metal"]
    if type_name in _SCALES:
        parts.insert(0, f"types/{_SCALES[type_name]}.metal")
    parts += [f"{name}.metal" for name in _NEEDS.get(operation, ())]
    header += "".join(map(read_text, parts)) + f"typedef {type_name} Type;\n"
    name = f"conifer_{operation}_{type_name.lower()}"
    source = "CUDA_POSITIONS\n" * cuda + read_text(f"operations/{operation}.metal")
    return KernelText(name, OPERATIONS[operation], header, source, cuda)


def read_text(file: str) -> str:
    """Return a file's text. A compiler's errors name the file, and lines within it."""
    return f'#line 1 "{file}"\n{(TEXT / file).read_text(encoding="utf-8")}'


def packed_points(name: str) -> list[int]:
    """Return a grid's points as numbers of 16 bits: two bits a weight, or three in IQ3.

    A weight is the number of its level, the lowest first.
    """
    points = grid(name)
    levels, digits = np.unique(points, return_inverse=True)
    bits = 2 if len(levels) < 4 else 3
    shifts = bits * np.arange(points.shape[1])
    return [int(number) for number in (digits.reshape(points.shape) << shifts).sum(axis=1)]


def _tables(type_name: str) -> str:
    if type_name in _CODEBOOKS:
        values = [int(value) for value in _CODEBOOKS[type_name]]
        return _table("uchar", "codebook", values) + read_text("types/codebook.metal")
    if type_name in _GRIDS:
        return _table("ushort", "points", packed_points(_GRIDS[type_name]))
    return ""


def _table(element: str, name: str, values: list[int]) -> str:
    numbers = ",".join(map(str, values))
    return f"TABLE({element}, {name}, {len(values)}) = {{{numbers}}};\n"
