"""Compute the size of loaded tensors, from a file's header or the name of its quantisation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache

from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME

# Bits per weight in the stock kernels, excluding scales and biases.
RESIDENT_BITS = {
    "Q1_0": 1,
    **dict.fromkeys(("Q2_0", "TQ1_0", "TQ2_0", "IQ1_S"), 2),
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K", "IQ3_S"), 4),
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K"), 5),
    **dict.fromkeys(("Q8_0", "Q2_K", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"), 8),
    **dict.fromkeys(("IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), 8),
}
IN_FILE_FORM = ("native", "blocks")  # kernels that hold weights as they are in the file
FP4 = ("MXFP4", "NVFP4")  # MLX has modes for them, which keep their bytes


def scale_group(type_name: str) -> int:
    """Return how many weights share a scale in MLX's matrix."""
    return {"NVFP4": 16, "Q2_0": 64, "Q1_0": 128, "TQ1_0": 128, "TQ2_0": 128}.get(type_name, 32)


def resident_bytes(info: TensorInfo, device: str, kernels: str) -> int:
    """Return how many bytes a tensor takes once loaded on cpu, metal or cuda.

    kernels: native, which reads the mapped file in place, blocks, which copies it, or stock. For
    `attn_kv_b`, which is split into two matrices when loaded, this is an upper bound.
    """
    if info.name.endswith(".attn_kv_b.weight"):
        return max(info.size_bytes, 2 * math.prod(info.shape))
    bits = RESIDENT_BITS.get(info.type.name)
    if kernels in IN_FILE_FORM or bits is None:  # floats, MXFP4 and NVFP4 do not change size
        return info.size_bytes
    weights = math.prod(info.shape)
    scale_and_bias = 2 * (4 if device == "cpu" else 2)
    return weights * bits // 8 + weights // scale_group(info.type.name) * scale_and_bias


def bytes_by_type(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Return the size in the file of the tensors of each type, by its name, largest first."""
    sizes: dict[str, int] = {}
    for info in tensors.values():
        sizes[info.type.name] = sizes.get(info.type.name, 0) + info.size_bytes
    return dict(sorted(sizes.items(), key=lambda pair: -pair[1]))


# Names of mixes that no block type has, and the type that most of the weights have.
_MIXES = {
    "IQ2_M": "IQ2_S",
    "IQ3_XS": "IQ3_XXS",
    "IQ3_M": "IQ3_S",
    "UD-TQ1_0": "IQ1_S",
    "UD-Q2_K_XL": "IQ2_XS",
    "UD-Q3_K_XL": "IQ3_XXS",
    "Q8_K_XL": "Q8_0",
    "FP16": "F16",
    "FP32": "F32",
}


_DYNAMIC = ("UD-Q1", "UD-Q2", "UD-Q3", "UD-TQ")  # unsloth's mixes, mostly of IQ types


def supports(quant: str) -> bool:
    """Return True if the kernels support the block types that a quantisation uses."""
    interleaved = re.search(r"_[48]_[48]$", quant)  # Q4_0_4_8: blocks in an order of their own
    known = (*RESIDENT_BITS, *FP4, "F32", "F16", "BF16")
    return interleaved is None and _base(quant).startswith(known)


@cache
def main_type(quant: str) -> str | None:
    """Return the block type that most weights of a quantisation have, or None if it is unknown."""
    names = sorted(TYPE_BY_NAME, key=len, reverse=True)
    return next((name for name in names if _base(quant).startswith(name)), None)


def loaded_size_ratio(quant: str, device: str, kernels: str) -> float:
    """Estimate a quantisation's ratio of loaded size to file size. Returns 1 if it is unknown.

    A mix such as Q4_K_M is treated as three parts Q4_K and one part Q6_K.
    """
    base = next((kind for kind in RESIDENT_BITS if _base(quant).startswith(kind)), None)
    if kernels in IN_FILE_FORM or base is None:
        return 1.0
    mixed_in = base if quant.upper().removeprefix("UD-") == base else "Q6_K"
    return 0.75 * _type_ratio(base, device) + 0.25 * _type_ratio(mixed_in, device)


def loaded_bytes(
    quant: str, size_bytes: int, weights: int | None, device: str, kernels: str, most: bool = True
) -> int:
    """Estimate the size of a quantisation's loaded weights from the size of its file.

    How much of an IQ mix has which type is unknown: all of it counts as the type that grows most,
    unless `most` is False. weights: how many the file has, or None if that is unknown.
    """
    likely = int(size_bytes * loaded_size_ratio(quant, device, kernels))
    of_grids = _base(quant).startswith(("IQ1", "IQ2", "IQ3"))
    if kernels in IN_FILE_FORM or not (of_grids or quant.upper().startswith(_DYNAMIC)):
        return likely
    bound = int(size_bytes * _type_ratio("IQ1_M", device))
    if weights is not None:  # as many bytes as at 8 bits, which is the most
        at_8_bits = weights // 32 * TYPE_BY_NAME["Q8_0"].size_bytes
        bound = min(bound, max(size_bytes, int(at_8_bits * _type_ratio("Q8_0", device))))
    return bound if most else min(likely, bound)


def _base(quant: str) -> str:
    name = quant.upper()
    plain = name.removeprefix("UD-")
    return _MIXES.get(name) or _MIXES.get(plain) or plain


def _type_ratio(type_name: str, device: str) -> float:
    kind = TYPE_BY_NAME[type_name]
    block = TensorInfo("", (1, math.lcm(kind.weights, scale_group(type_name))), kind, 0, 0)
    in_file = math.prod(block.shape) // kind.weights * kind.size_bytes
    return resident_bytes(block, device, "stock") / in_file
