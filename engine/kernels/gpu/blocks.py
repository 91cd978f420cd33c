"""The kernels `blocks`: weights stay as they are in the file. Everything else is as in `stock`."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import mlx.core as mx
import numpy as np

from engine.gguf.reader import TensorInfo
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import BlockTensor, row_bytes
from engine.kernels.gpu.texts import TYPES
from engine.kernels.stock import StockKernels
from engine.kernels.streamed import Stack


class BlockKernels(StockKernels):
    """Kernels that read GGUF blocks as they lie in the file. backend: metal, cuda or cpu.

    gpu: where they run; tests give an emulator, with the backend cpu. refusal: returns why a block
    type cannot be used, or None. Weights of such a type are converted, as `stock` does, and
    `refusals` says why.
    """

    name = "blocks"
    groups_by_expert = True

    def __init__(
        self,
        backend: str,
        gpu: Gpu,
        dtype: mx.Dtype = mx.float16,
        refusal: Callable[[str], str | None] = lambda type_name: None,
    ) -> None:
        super().__init__(backend, threads=None)
        self.gpu, self._dtype = gpu, dtype
        self._refusal = refusal
        self._tried: dict[str, str | None] = {}
        self.refusals = MappingProxyType(self._tried)

    @property
    def dtype(self) -> mx.Dtype:
        return self._dtype

    def _load(self, blocks: memoryview, info: TensorInfo) -> Stack:
        if info.type.name not in TYPES or self._refused(info.type.name):
            return super()._load(blocks, info)
        shape = (*info.shape[:-1], row_bytes(info.type, info.shape[-1]))
        held = mx.array(np.frombuffer(blocks, np.uint8).reshape(shape))
        mx.eval(held)
        return BlockTensor(held, info.shape, info.type, self.gpu, self.dtype)

    def _refused(self, type_name: str) -> bool:
        if type_name not in self._tried:
            self._tried[type_name] = self._refusal(type_name)
        return self._tried[type_name] is not None
