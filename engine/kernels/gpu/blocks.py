"""The kernels `blocks`: weights stay as they are in the file. Everything else is as in `stock`."""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx
import numpy as np

from engine.gguf.reader import TensorInfo
from engine.kernels.base import QTensor
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import BlockTensor, row_bytes
from engine.kernels.gpu.texts import TYPES
from engine.kernels.stock import StockKernels


class BlockKernels(StockKernels):
    """Kernels that read GGUF blocks as they lie in the file. backend: metal, cuda or cpu.

    types: the block types for which they are used; others are converted, as `stock` does. gpu:
    where they run; tests give an emulator, with the backend cpu.
    """

    name = "blocks"
    groups_by_expert = True

    def __init__(
        self,
        backend: str,
        gpu: Gpu,
        dtype: mx.Dtype = mx.float16,
        types: Collection[str] = TYPES,
    ) -> None:
        super().__init__(backend, threads=None)
        self.gpu, self.types = gpu, types
        self._dtype = dtype

    @property
    def dtype(self) -> mx.Dtype:
        return self._dtype

    def _load(self, blocks: memoryview, info: TensorInfo) -> QTensor:
        if info.type.name not in self.types:
            return super()._load(blocks, info)
        shape = (*info.shape[:-1], row_bytes(info.type, info.shape[-1]))
        held = mx.array(np.frombuffer(blocks, np.uint8).reshape(shape))
        mx.eval(held)
        return BlockTensor(held, info.shape, info.type, self.gpu, self.dtype)
