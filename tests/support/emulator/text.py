"""The whole text of a kernel, as MLX gives it to a GPU's compiler."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from engine.kernels.gpu.texts import KernelText

METAL_TYPES = {
    mx.float32: "float",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.uint8: "uint8_t",
    mx.uint32: "uint32_t",
    mx.int32: "int",
}
CUDA_TYPES = METAL_TYPES | {mx.bfloat16: "__nv_bfloat16", mx.float16: "__half", mx.int32: "int32_t"}
Template = Mapping[str, mx.Dtype | int]


def whole_text(
    kernel: KernelText, arrays: Sequence[mx.array], template: Template, dtype: mx.Dtype
) -> str:
    """Return the text of a kernel for these inputs and an output of this type."""
    few = tuple((a.dtype, a.ndim, min(a.size, 8)) for a in arrays)
    make = _cuda if kernel.cuda else _metal
    return make(kernel, few, tuple(template.items()), dtype)


@cache
def _metal(kernel: KernelText, arrays: tuple, template: tuple, dtype: mx.Dtype) -> str:
    """MLX's own text: tracing a call prints it, even where there is no Metal."""
    made = mx.fast.metal_kernel(
        name=kernel.name,
        input_names=list(kernel.inputs),
        output_names=["y"],
        source=kernel.source,
        header=kernel.header,
    )

    def call(*inputs: mx.array) -> object:
        return made(
            inputs=list(inputs),
            template=list(template),
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[dtype],
            verbose=True,
        )

    # The text depends on an input's type and rank, and on whether it has fewer than 8 elements.
    like = [mx.zeros((size, *[1] * (rank - 1))[:rank], of) for of, rank, size in arrays]
    with tempfile.TemporaryDirectory() as folder:
        printed = os.open(f"{folder}/text", os.O_RDWR | os.O_CREAT)
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(printed, 1)
        try:
            mx.export_function(f"{folder}/f.mlxfn", call, *like)
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
            os.close(printed)
        text = Path(f"{folder}/text").read_text()
    found = re.search(r"```\n(.*?)\n```", text, re.DOTALL)
    assert found, text
    return found[1]


@cache
def _cuda(kernel: KernelText, arrays: tuple, template: tuple, dtype: mx.Dtype) -> str:
    """As mlx/backend/cuda/custom_kernel.cpp does: tracing is not possible without a card."""
    given = zip(kernel.inputs, arrays, strict=True)
    params = [f"const {CUDA_TYPES[of]}* {name}" for name, (of, *_) in given]
    params.append(f"{CUDA_TYPES[dtype]}* y")
    lines = [f"__global__ void custom_kernel_{kernel.name}(\n    " + ",\n    ".join(params) + ") {"]
    for name, value in template:
        if isinstance(value, mx.Dtype):
            lines.append(f"  using {name} = {CUDA_TYPES[value]};")
        else:
            lines.append(f"  constexpr int {name} = {value};")
    body = "\n".join([*lines, kernel.source, "}"])
    return f"{kernel.header}\nnamespace mlx::core::cu {{\n{body}\n}}\n"


def bits(array: mx.array) -> np.ndarray:
    """Return an array's values for NumPy, those of bfloat16 as their 16 bits."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
