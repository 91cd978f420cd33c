"""Try the kernels of a block type on this GPU, against NumPy's dequantisation.

Run as a program: python -P -m engine.kernels.gpu.self_test TYPE FILE CUDA. It keeps a verdict for
each operation in FILE, and first that its test was begun.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine.gguf.dequant import dequantize
from engine.gguf.types import TYPE_BY_NAME, BlockType
from engine.kernels.gpu.experts import gated, weighted
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import BlockTensor, Grouped, row_bytes
from engine.kernels.gpu.texts import OPERATIONS
from engine.kernels.gpu.verdicts import BEGUN, GOOD, Verdicts, this_gpu

Floats = npt.NDArray[np.float64]
Case = tuple[mx.array, Floats, Floats]  # the result, the exact one, and the sum of |w| |x|
EXPERTS, USED, TOKENS = 5, 2, 3
SIZES = 1e-3, 100.0  # of the largest weight of a block: random scales would be of any size
BOUND, STAGED_BOUND = 2e-6, 2.0**-10  # shares of the sum of |w| |x|; as half, weights lose bits


def test_type(type_name: str, verdicts: Verdicts, gpu: Gpu) -> None:
    """Try all operations of a type, and keep their verdicts."""
    for operation in OPERATIONS:
        verdicts.put(operation, type_name, gpu.cuda, BEGUN)
        verdicts.put(operation, type_name, gpu.cuda, verdict(operation, type_name, gpu))


def verdict(operation: str, type_name: str, gpu: Gpu) -> str:
    """Return what is wrong with a kernel, or GOOD."""
    kind = TYPE_BY_NAME[type_name]
    unit = math.lcm(32, kind.weights)
    bound = STAGED_BOUND if operation == "grouped" else BOUND
    try:
        for rows, columns in ((1, unit), (7, 3 * unit), (70, 1024 // unit * unit + unit)):
            y, exact, size = _CASES[operation](_Weights(kind, gpu), rows, columns)
            wrong = np.abs(np.array(y, np.float64) - exact) / np.maximum(size, 1e-30)
            if not wrong.max() <= bound:
                return f"{rows} rows are off by {wrong.max():.1e}, above {bound:.1e}"
    except (RuntimeError, ValueError) as error:  # MLX raises them with the compiler's log
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    return GOOD


class _Weights:
    """A source of random weights of a type, with their numbers, and of vectors."""

    def __init__(self, kind: BlockType, gpu: Gpu) -> None:
        self.kind, self.gpu, self.random = kind, gpu, np.random.default_rng(1)

    def weight(self, *shape: int) -> tuple[BlockTensor, Floats]:
        count = math.prod(shape) // self.kind.weights
        kept = np.empty((0, self.kind.size_bytes), np.uint8)
        while len(kept) < count:
            tried = self.random.integers(0, 256, (2 * count, self.kind.size_bytes), dtype=np.uint8)
            sizes = np.abs(dequantize(tried, self.kind)).max(axis=1)
            usual = (sizes > SIZES[0]) & (sizes < SIZES[1])
            kept = np.concatenate([kept, tried[usual]])
        held = kept[:count].reshape(*shape[:-1], row_bytes(self.kind, shape[-1]))
        numbers = dequantize(held, self.kind).astype(np.float64)
        return BlockTensor(mx.array(held), shape, self.kind, self.gpu, mx.float32), numbers

    def vectors(self, *shape: int) -> tuple[mx.array, Floats]:
        x = self.random.standard_normal(shape).astype(np.float32)
        return mx.array(x), x.astype(np.float64)

    def ids(self) -> npt.NDArray[np.int64]:
        return np.stack([self.random.permutation(EXPERTS)[:USED] for _ in range(TOKENS)])


def _rows(source: _Weights, rows: int, columns: int) -> Case:
    tensor, w = source.weight(rows, columns)
    ids = np.array([rows - 1, 0])
    return tensor.rows(mx.array(ids)), w[ids], np.abs(w[ids]).max(axis=1, keepdims=True)


def _product(source: _Weights, rows: int, columns: int) -> Case:
    (tensor, w), (x, wide) = source.weight(rows, columns), source.vectors(2, columns)
    return tensor.matmul(x), wide @ w.T, np.abs(wide) @ np.abs(w).T


def _chosen(source: _Weights, rows: int, columns: int) -> Case:
    tensor, w = source.weight(EXPERTS, rows, columns)
    (x, wide), ids = source.vectors(TOKENS, 1, columns), source.ids()
    exact, size = (np.einsum("tki,tkoi->tko", a, b) for a, b in _sides(wide, w[ids]))
    return tensor.gather_matmul(x, mx.array(ids)), exact, size


def _gated(source: _Weights, rows: int, columns: int) -> Case:
    gate, g = source.weight(EXPERTS, rows, columns)
    up, u = source.weight(EXPERTS, rows, columns)
    (x, wide), ids = source.vectors(TOKENS, columns), source.ids()
    (g, g_size), (u, u_size) = (
        tuple(np.einsum("ti,tkoi->tko", a, b) for a, b in _sides(wide, w[ids])) for w in (g, u)
    )
    with np.errstate(over="ignore"):
        exact = g / (1 + np.exp(-g)) * u
    size = 1.2 * (g_size * (np.abs(u) + 1) + u_size * (np.abs(g) + 1))
    limit = mx.zeros(1, mx.float32)
    return gated(gate, up, None, x, mx.array(ids), 0, limit), exact, size


def _weighted(source: _Weights, rows: int, columns: int) -> Case:
    tensor, w = source.weight(EXPERTS, rows, columns)
    (x, wide), ids = source.vectors(TOKENS, USED, columns), source.ids()
    scores = source.random.random((TOKENS, USED)).astype(np.float32)
    exact, size = (
        np.einsum("tki,tkoi,tk->to", a, b, scores.astype(np.float64))
        for a, b in _sides(wide, w[ids])
    )
    return weighted(tensor, None, x, mx.array(ids), mx.array(scores)), exact, size


def _grouped(source: _Weights, rows: int, columns: int) -> Case:
    tensor, w = source.weight(EXPERTS, rows, columns)
    ids = np.repeat(np.arange(EXPERTS), (5, 0, 33, 0, 1))
    x, wide = source.vectors(len(ids), columns)
    exact, size = (np.einsum("mi,moi->mo", a, b) for a, b in _sides(wide, w[ids]))
    return tensor.grouped_matmul(x, Grouped.of(mx.array(ids), EXPERTS)), exact, size


def _sides(x: Floats, w: Floats) -> list[tuple[Floats, Floats]]:
    """Return the factors of a product, and of the sum of its terms without their signs."""
    return [(x, w), (np.abs(x), np.abs(w))]


_CASES: dict[str, Callable[[_Weights, int, int], Case]] = {
    "product": _product,
    "chosen": _chosen,
    "gated": _gated,
    "weighted": _weighted,
    "rows": _rows,
    "grouped": _grouped,
}


if __name__ == "__main__":
    name, file, cuda = sys.argv[1:]
    mx.set_default_device(mx.gpu)
    test_type(name, Verdicts(Path(file), this_gpu()), Gpu(cuda == "1"))
