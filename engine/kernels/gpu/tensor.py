"""A weight held as its file's blocks.

Few vectors are multiplied by kernels that read the blocks. For the many of a prompt, a dense matrix
is turned into numbers, in pieces of bounded size, for MLX's own matmul.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from engine.gguf.types import BlockType
from engine.kernels.gpu.launch import Gpu, dims
from engine.kernels.gpu.texts import kernel_text
from engine.limits import PIECE_BYTES

FEW = 8  # vectors that kernels multiply one by one; each reads all blocks
SORT_FROM = 64  # pairs of a token and an expert from which sorting by expert is faster
TILE = (32, 64, 128)  # tokens, rows and threads of a tile of the grouped product


@dataclass(frozen=True, slots=True)
class Grouped:
    """Pairs of a token and an expert, sorted by expert.

    order: for each sorted pair, which one it is. experts: its expert, (M,). ends: where each
    expert's pairs end, (E,).
    """

    order: mx.array
    experts: mx.array
    ends: mx.array

    @staticmethod
    def of(ids: mx.array, count: int) -> Grouped:
        """Sort pairs by expert: ids of any shape, of `count` experts."""
        flat = ids.reshape(-1)
        order = mx.argsort(flat)
        ends = mx.cumsum(mx.zeros(count, mx.int32).at[flat].add(1))
        return Grouped(order, flat[order], ends)

    def take(self, x: mx.array, used: int) -> mx.array:
        """Return the pairs' vectors: x (T, 1 or used, in) -> (M, in)."""
        own = self.order if x.shape[1] > 1 else self.order // used
        return x.reshape(-1, x.shape[-1])[own]

    def restore(self, y: mx.array) -> mx.array:
        """Undo the sorting of y (M, out)."""
        return y[mx.argsort(self.order)]


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """A matrix (out, in) or a stack (E, out, in) of blocks.

    blocks: uint8, whose last axis is a row's bytes; an array of its own, as kernels read it in
    aligned words.
    """

    blocks: mx.array
    shape: tuple[int, ...]
    type: BlockType
    gpu: Gpu
    dtype: mx.Dtype  # of activations

    def matmul(self, x: mx.array) -> mx.array:
        count, columns = self.shape
        if x.shape[0] > FEW:
            pieces = self._pieces(self.blocks, count, x.dtype, lambda w: x @ w.T)
            return mx.concatenate(list(pieces), axis=-1)
        inputs = [self.blocks, x, dims(columns, count)]
        shape = (x.shape[0], count)
        return self.gpu.by_rows(
            "product", self.type.name, inputs, count, x.shape[0], shape, x.dtype
        )

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        if ids.size < SORT_FROM:
            return self._chosen(x, ids)
        groups = Grouped.of(ids, self.shape[0])
        y = self.grouped_matmul(groups.take(x, ids.shape[1]), groups)
        return groups.restore(y).reshape(*ids.shape, -1)

    def stack_matmul(self, x: mx.array) -> mx.array:
        experts, count, columns = self.shape
        if x.shape[0] <= FEW:
            ids = mx.broadcast_to(mx.arange(experts, dtype=mx.uint32), x.shape[:2])
            return self._chosen(x, ids)
        rows = x.swapaxes(0, 1)  # (E, T, in)
        at_once = max(1, PIECE_BYTES // (x.dtype.size * count * columns))
        parts = []
        for start in range(0, experts, at_once):
            part = slice(start, start + at_once)
            ids = mx.arange(start * count, min(start + at_once, experts) * count)
            w = self._numbers(ids, x.dtype).reshape(-1, count, columns)
            parts.append(rows[part] @ w.swapaxes(-1, -2))
        return mx.concatenate(parts, axis=0).swapaxes(0, 1)

    def rows(self, ids: mx.array) -> mx.array:
        return self._numbers(ids, self.dtype)

    @property
    def size_bytes(self) -> int:
        return self.blocks.nbytes

    def joined(self, stacks: Sequence[BlockTensor]) -> BlockTensor:
        """Return one stack of all these, which are like this one."""
        blocks = mx.concatenate([stack.blocks for stack in stacks])
        return replace(self, blocks=blocks, shape=(len(stacks), *self.shape[1:]))

    def grouped_matmul(self, x: mx.array, groups: Grouped) -> mx.array:
        """Multiply vectors sorted by expert: x (M, in) -> (M, out)."""
        experts, count, columns = self.shape
        if self.gpu.cuda:
            return self._grouped_by_mlx(x, groups)
        tokens, rows, threads = TILE
        return self.gpu.launch(
            kernel_text("grouped", self.type.name, self.gpu.cuda),
            [self.blocks, x, groups.ends, dims(columns, count, experts)],
            {"T": x.dtype},
            (-(-count // rows) * threads, x.shape[0] // tokens + experts, 1),
            (threads, 1, 1),
            (x.shape[0], count),
            x.dtype,
        )

    def _grouped_by_mlx(self, x: mx.array, groups: Grouped) -> mx.array:
        experts, count, columns = self.shape
        at_once = max(1, PIECE_BYTES // (x.dtype.size * experts * columns))
        parts = []
        for start in range(0, count, at_once):
            rows = mx.arange(start, min(start + at_once, count))
            ids = (mx.arange(experts)[:, None] * count + rows).reshape(-1)
            w = self._numbers(ids, x.dtype).reshape(experts, -1, columns).swapaxes(-1, -2)
            parts.append(
                mx.gather_mm(
                    x[:, None, :], w, rhs_indices=groups.experts, sorted_indices=True
                ).squeeze(1)
            )
        return mx.concatenate(parts, axis=-1)

    def _chosen(self, x: mx.array, ids: mx.array) -> mx.array:
        _, count, columns = self.shape
        share = ids.shape[1] // x.shape[1]
        inputs = [self.blocks, x, ids.astype(mx.uint32), dims(columns, count, share)]
        shape = (*ids.shape, count)
        return self.gpu.by_rows("chosen", self.type.name, inputs, count, ids.size, shape, x.dtype)

    def _pieces(
        self,
        blocks: mx.array,
        count: int,
        dtype: mx.Dtype,
        multiply: Callable[[mx.array], mx.array],
    ) -> Iterator[mx.array]:
        at_once = max(1, PIECE_BYTES // (dtype.size * self.shape[-1]))
        for start in range(0, count, at_once):
            yield multiply(self._numbers(mx.arange(start, min(start + at_once, count)), dtype))

    def _numbers(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        return self.gpu.rows_of(self.type.name, self.blocks, ids, self.shape[-1], dtype)


def row_bytes(type: BlockType, columns: int) -> int:
    """Return the size of a row in bytes."""
    assert columns % math.lcm(type.weights, 32) == 0
    return columns // type.weights * type.size_bytes
