"""The tensors of a model file, by their GGUF names, as weights that multiply.

Shapes are held against what the architecture expects, so that a file whose tensors contradict its
metadata ends in an error that names the tensor. Knows files and kernels; knows no architecture.
"""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import mlx.core as mx

from engine.errors import GGUFError
from engine.gguf import ModelFile, TensorInfo
from engine.kernels import Kernels, QTensor


class Weights:
    """A model file, mapped; each tensor is made into a weight when it is asked for."""

    def __init__(self, file: ModelFile, kernels: Kernels) -> None:
        self.tensors = file.tensors
        self.kernels = kernels
        self._parts = [_map(path) for path in file.parts]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def matrix(self, name: str, *shape: int) -> QTensor:
        """Load a matrix (out, in) or a stack (E, out, in), which must have this shape."""
        info = self._info(name, shape)
        return self.kernels.load(self._blocks(info), info)

    def vector(self, name: str, size: int) -> mx.array:
        """Load a float32 vector, which must have this size."""
        info = self._info(name, (size,))
        if info.type.name != "F32":
            raise GGUFError(f"tensor {name!r} is {info.type.name}, expected F32")
        floats = self._blocks(info).cast("f")
        return mx.array(floats)  # type: ignore[arg-type]  # it takes any buffer

    def optional_vector(self, name: str, size: int) -> mx.array | None:
        """Load a float32 vector, or None where the file has none."""
        return self.vector(name, size) if name in self else None

    def experts(self, prefix: str, projection: str, *shape: int) -> QTensor:
        """Load the stack `prefix.projection_exps.weight` (E, out, in).

        Files from before April 2024 hold one tensor for each expert; those are stacked.
        """
        name = f"{prefix}.{projection}_exps.weight"
        if name in self:
            return self.matrix(name, *shape)
        count, *one = shape
        infos = [self._info(f"{prefix}.{projection}.{e}.weight", tuple(one)) for e in range(count)]
        if len({info.type.name for info in infos}) != 1:
            raise GGUFError(f"the experts of {prefix}.{projection} differ in type")
        blocks = b"".join([self._blocks(info) for info in infos])
        stack = dataclasses.replace(infos[0], name=name, shape=tuple(shape), size_bytes=len(blocks))
        return self.kernels.load(memoryview(blocks), stack)

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(f"tensor {name!r} is missing")
        if info.shape != shape:
            raise GGUFError(f"tensor {name!r} has shape {info.shape}, expected {shape}")
        return info

    def _blocks(self, info: TensorInfo) -> memoryview:
        part = self._parts[info.part]
        end = info.offset + info.size_bytes
        if end > len(part):
            raise GGUFError(f"tensor {info.name!r} ends at byte {end:,}, past the end of the file")
        return memoryview(part)[info.offset : end]


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
