"""Start a kernel on this machine's GPU. Tests put an emulator in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import mlx.core as mx

from engine.kernels.gpu.texts import KernelText, kernel_text

LANES = 32
Template = Mapping[str, mx.Dtype | int]


class Launch(Protocol):
    """How a kernel starts."""

    def __call__(
        self,
        kernel: KernelText,
        inputs: Sequence[mx.array],
        template: Template,
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        shape: tuple[int, ...],
        dtype: mx.Dtype,
    ) -> mx.array:
        """Run a kernel on a grid, in threads, and return its output."""


def on_gpu(
    kernel: KernelText,
    inputs: Sequence[mx.array],
    template: Template,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shape: tuple[int, ...],
    dtype: mx.Dtype,
) -> mx.array:
    """Run a kernel on the GPU, lazily. MLX compiles it at its first use."""
    out: mx.array = _compiled(kernel)(
        inputs=list(inputs),
        template=list(template.items()),
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=[shape],
        output_dtypes=[dtype],
    )[0]
    return out


@cache
def _compiled(kernel: KernelText) -> Any:
    make = mx.fast.cuda_kernel if kernel.cuda else mx.fast.metal_kernel
    return make(
        name=kernel.name,
        input_names=list(kernel.inputs),
        output_names=["y"],
        source=kernel.source,
        header=kernel.header,
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """Where kernels run, and how many rows a simdgroup and simdgroups a threadgroup have."""

    cuda: bool
    launch: Launch = on_gpu
    rows: int = 2
    simdgroups: int = 2

    def by_rows(
        self,
        operation: str,
        type_name: str,
        inputs: Sequence[mx.array],
        count: int,
        vectors: int,
        shape: tuple[int, ...],
        dtype: mx.Dtype,
        **template: int,
    ) -> mx.array:
        """Run an operation in which a simdgroup computes a few of `count` rows for one vector."""
        groups = -(-count // (self.rows * self.simdgroups))
        wide = LANES * self.simdgroups
        return self.launch(
            kernel_text(operation, type_name, self.cuda),
            inputs,
            {"T": dtype, "R": self.rows, "NSG": self.simdgroups, **template},
            (groups * wide, vectors, 1),
            (wide, 1, 1),
            shape,
            dtype,
        )

    def rows_of(
        self, type_name: str, blocks: mx.array, ids: mx.array, columns: int, dtype: mx.Dtype
    ) -> mx.array:
        """Return rows of blocks as numbers: ids (n,) -> (n, columns)."""
        return self.launch(
            kernel_text("rows", type_name, self.cuda),
            [blocks, ids.astype(mx.uint32), dims(columns)],
            {"T": dtype},
            (-(-columns // (32 * LANES)) * LANES, ids.size, 1),
            (LANES, 1, 1),
            (ids.size, columns),
            dtype,
        )


@cache
def dims(*numbers: int) -> mx.array:
    """Return the sizes that a kernel reads as its input `dims`."""
    return mx.array(numbers, mx.int32)
