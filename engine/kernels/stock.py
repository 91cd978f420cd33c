"""Stock kernels: convert GGUF blocks to MLX's quantised matrices, and multiply with MLX.

Activations, scales and biases are float32 on a CPU and bfloat16 on Metal and CUDA.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine import sampling
from engine.device import cores, return_large_blocks
from engine.gguf.reader import TensorInfo
from engine.gguf.types import BlockType
from engine.kernels.base import ExpertStore, QTensor, Rows
from engine.kernels.repack import Affine, repack, repack_mxfp4, repack_nvfp4
from engine.kernels.streamed import StreamedExperts
from engine.limits import SCAN_CHUNK
from engine.nn import scan as recurrence
from engine.streaming import divide_bytes, expert_layers

if TYPE_CHECKING:
    from engine.kernels.streamed import Stack
    from engine.nn.config import ModelConfig

Bytes = npt.NDArray[np.uint8]

FP4 = {"MXFP4": repack_mxfp4, "NVFP4": repack_nvfp4}
FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
CHUNK_WEIGHTS = 1 << 23  # weights converted at a time, to limit extra memory during loading
LATENT_BYTES = 32 << 20  # latent-attention scores computed at a time
SPLIT_WORK = 1 << 18  # multiply-adds above which more CPU streams help


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """A floating-point matrix or stack.

    Products use the weights' type if the activations have the same type, and float32 otherwise.
    """

    w: mx.array  # (out, in) or (E, out, in)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.w.shape)

    def matmul(self, x: mx.array) -> mx.array:
        if self.w.dtype == x.dtype:
            return x @ self.w.T
        return (x.astype(mx.float32) @ self.w.astype(mx.float32).T).astype(x.dtype)

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        w = self.w
        if ids.size < w.shape[0]:  # fewer rows than experts: convert only those chosen
            w, ids = w[ids.reshape(-1)], mx.arange(ids.size).reshape(ids.shape)
        w = w.astype(mx.float32).swapaxes(-1, -2)  # the only type that gather_mm supports on a CPU
        y = mx.gather_mm(x[..., None, :].astype(mx.float32), w, rhs_indices=ids)
        return y.squeeze(-2).astype(x.dtype)

    def stack_matmul(self, x: mx.array) -> mx.array:
        w, rows = self.w.swapaxes(-1, -2), x.swapaxes(0, 1)
        if w.dtype != x.dtype:
            w, rows = w.astype(mx.float32), rows.astype(mx.float32)
        return (rows @ w).swapaxes(0, 1).astype(x.dtype)

    def rows(self, ids: mx.array) -> mx.array:
        return self.w[ids]

    @property
    def size_bytes(self) -> int:
        return self.w.nbytes

    def joined(self, stacks: Sequence[FloatTensor]) -> FloatTensor:
        return FloatTensor(mx.concatenate([stack.w for stack in stacks]))


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix or stack in one of MLX's quantised formats."""

    packed: Affine
    shape: tuple[int, ...]
    format: dict[str, Any]  # MLX's arguments: group_size, bits and mode
    dtype: mx.Dtype  # of activations
    streams: tuple[mx.Stream, ...]  # one CPU thread each; if empty, the default stream is used

    def matmul(self, x: mx.array) -> mx.array:
        rows = self.shape[0]
        if len(self.streams) < 2 or x.size * rows < SPLIT_WORK:
            return self._matmul(x, self.packed, None)
        cuts = [rows * i // len(self.streams) for i in range(len(self.streams) + 1)]
        runs = [self.packed.at(slice(start, end)) for start, end in itertools.pairwise(cuts)]
        parts = [self._matmul(x, *job) for job in zip(runs, self.streams, strict=True)]
        return mx.concatenate(parts, axis=-1)

    def _matmul(self, x: mx.array, packed: Affine, stream: mx.Stream | None) -> mx.array:
        return mx.quantized_matmul(x, *packed.arrays, stream=stream, **self.format)

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        return self._gather(x[..., None, :], ids).squeeze(-2)

    def stack_matmul(self, x: mx.array) -> mx.array:
        return self._gather(x.swapaxes(0, 1), mx.arange(self.shape[0])).swapaxes(0, 1)

    def _gather(self, x: mx.array, ids: mx.array) -> mx.array:
        """Multiply each x (*ids.shape, T, in) by a matrix of the stack: (*ids.shape, T, out)."""
        return mx.gather_qmm(x, *self.packed.arrays, rhs_indices=ids, **self.format)

    def rows(self, ids: mx.array) -> mx.array:
        return mx.dequantize(*self.packed.at(ids).arrays, **self.format).astype(self.dtype)

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.packed.arrays if array is not None)

    def joined(self, stacks: Sequence[QuantizedTensor]) -> QuantizedTensor:
        shape = (len(stacks), *self.shape[1:])
        packed = Affine.join([stack.packed for stack in stacks], shape[:2])
        return replace(self, packed=packed, shape=shape)


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """A matrix with a factor, or a stack with a factor for each matrix."""

    tensor: QTensor
    scales: mx.array  # (1,) or (E,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def matmul(self, x: mx.array) -> mx.array:
        return self._scaled(self.tensor.matmul(x), self.scales)

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        return self._scaled(self.tensor.gather_matmul(x, ids), self.scales[ids][..., None])

    def stack_matmul(self, x: mx.array) -> mx.array:
        return self._scaled(self.tensor.stack_matmul(x), self.scales[:, None])

    def rows(self, ids: mx.array) -> mx.array:
        return self._scaled(self.tensor.rows(ids), self.scales)

    def _scaled(self, y: mx.array, scales: mx.array) -> mx.array:
        return (y * scales).astype(y.dtype)


class StockKernels:
    """Kernels that use MLX operations. backend: cpu, metal or cuda.

    threads: number of CPU streams that share the work of a large product; None means one per
    available core.
    """

    name = "stock"
    groups_by_expert = False
    in_place = False
    block_tokens = 0
    isa = None
    refusals: Mapping[str, str | None] = MappingProxyType({})
    convolve = staticmethod(recurrence.convolve)
    gated_norm = staticmethod(recurrence.gated_norm)
    sample = staticmethod(sampling.sample)

    def __init__(
        self, backend: str, threads: int | None, fallback_reason: str | None = None
    ) -> None:
        self.fallback_reason = fallback_reason
        self.device = backend
        self.on_cpu = backend == "cpu"
        self.streams = cpu_streams(threads or cores()) if self.on_cpu else ()
        mx.set_default_device(mx.cpu if self.on_cpu else mx.gpu)
        if self.on_cpu:
            return_large_blocks()
        chunk = recurrence.CPU_CHUNK if self.on_cpu else SCAN_CHUNK
        self.scan = functools.partial(recurrence.scan, chunk=chunk)

    @property
    def dtype(self) -> mx.Dtype:
        return mx.float32 if self.on_cpu else mx.bfloat16

    def reading(self) -> AbstractContextManager[object]:
        return nullcontext()  # one token and many use the same operations

    def load(self, blocks: memoryview, info: TensorInfo, scales: mx.array | None = None) -> QTensor:
        tensor = self._load(blocks, info)
        return tensor if scales is None else ScaledTensor(tensor, scales)

    def _load(self, blocks: memoryview, info: TensorInfo) -> Stack:
        if info.type.name in FLOATS:
            return FloatTensor(self._load_float(np.frombuffer(blocks, np.uint8), info))
        mode = info.type.name.lower() if info.type.name in FP4 else "affine"
        packed = self._load_blocks(np.frombuffer(blocks, np.uint8), info)
        format = {"group_size": packed.group, "bits": packed.bits, "mode": mode}
        return QuantizedTensor(packed, info.shape, format, self.dtype, self.streams)

    def store(
        self,
        config: ModelConfig,
        tensors: Mapping[str, TensorInfo],
        expert_bytes: int,
        files: tuple[Path, ...],
    ) -> ExpertStore:
        at_once, room = divide_bytes(config, tensors, expert_bytes, self.name, self.device)
        layers = expert_layers(config, tensors)
        return StreamedExperts(layers, files, self._load, ScaledTensor, room, at_once)

    def latent_attention(self, q: mx.array, rows: Rows, value_dim: int) -> mx.array:
        keys = rows.floats().astype(q.dtype)
        tokens, heads, dims = q.shape
        past = keys.shape[0] - tokens
        step = max(1, LATENT_BYTES // (4 * heads * keys.shape[0]))
        mixed = []
        for start in range(0, tokens, step):
            part, visible = q[start : start + step], min(past + start + step, keys.shape[0])
            seen, last = keys[:visible], mx.arange(past + start, visible)[:, None, None]
            scores = (part.reshape(-1, dims) @ seen.T).reshape(-1, heads, visible)
            scores = mx.where(mx.arange(visible) <= last, scores, -math.inf)
            weights = mx.softmax(scores, axis=-1, precise=True).reshape(-1, visible)
            mixed.append((weights @ seen[:, :value_dim]).reshape(-1, heads, value_dim))
        return mx.concatenate(mixed, axis=0)

    def _load_float(self, blocks: Bytes, info: TensorInfo) -> mx.array:
        w = mx.array(blocks).view(FLOATS[info.type.name]).reshape(info.shape)
        if info.type.name != "F32" and self.dtype != mx.float32:
            w = w.astype(self.dtype)  # F32 tensors, such as routers and norms, stay float32
        mx.eval(w)
        return w

    def _load_blocks(self, blocks: Bytes, info: TensorInfo) -> Affine:
        width = info.shape[-1]
        raw = blocks.reshape(-1, width // info.type.weights, info.type.size_bytes)
        chunk = max(1, CHUNK_WEIGHTS // width)
        starts = range(0, len(raw), chunk)
        parts = [self._repack(mx.array(raw[at : at + chunk]), info.type) for at in starts]
        joined = Affine.join(parts, info.shape[:-1])
        mx.eval([array for array in joined.arrays if array is not None])
        return joined

    def _repack(self, raw: mx.array, type: BlockType) -> Affine:
        convert = FP4.get(type.name)
        part = convert(raw) if convert else repack(raw, type.name, self.dtype)
        mx.eval(part.q, part.scales)
        return part


@functools.cache
def cpu_streams(count: int) -> tuple[mx.Stream, ...]:
    """Return `count` CPU streams, one thread each, shared by all models in this process."""
    return (mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(count - 1)))
