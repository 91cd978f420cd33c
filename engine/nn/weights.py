"""Load a model file's tensors by GGUF name, in the form that the kernels require.

If a tensor's shape contradicts the metadata, the error names the tensor. Axes: E matrices in a
stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from engine.errors import GGUFError
from engine.gguf.reader import ModelFile, TensorInfo
from engine.gguf.types import TYPE_BY_NAME, TYPES
from engine.kernels.base import ExpertStore, Kernels, QTensor
from engine.nn.direct import DirectFile
from engine.nn.mapped import MappedFile
from engine.streaming import PART_NAMES

ROUTER_SCALE = "ffn_gate_inp.scale"  # scales what Gemma 4's router reads, not what it computes


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection with an optional bias."""

    weight: QTensor  # (out, in)
    bias: mx.array | None = None  # (out,)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.weight.matmul(x)
        return y if self.bias is None else y + self.bias.astype(y.dtype)


class Weights:
    """A model's files. on_load: called with (bytes loaded, total bytes).

    They are mapped into memory. With a store, experts stay in the files, and all else is copied.
    """

    def __init__(
        self,
        file: ModelFile,
        kernels: Kernels,
        on_load: Callable[[int, int], None] | None = None,
        store: ExpertStore | None = None,
    ) -> None:
        self.tensors = file.tensors
        self.kernels, self.store = kernels, store
        self._on_load = on_load
        self._loaded_bytes = 0
        stored = sum(one.stored_bytes for one in store.layers) if store else 0
        self._total_bytes = sum(info.size_bytes for info in file.tensors.values()) - stored
        open_part: Callable[[Path], DirectFile | MappedFile] = DirectFile if store else MappedFile
        self._parts = [open_part(path) for path in file.parts]

    def check_files(self) -> None:
        """Raise FileShrank or ReadFailed if a part of a file was lost since it was opened."""
        for part in self._parts:
            part.check()

    def loaded(self) -> None:
        """Let the system drop what its page cache has of files that are not mapped."""
        for part in self._parts:
            if isinstance(part, DirectFile):
                part.forget_cached()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def matrix(self, name: str, *shape: int) -> QTensor:
        """Load a matrix (out, in) or a stack of matrices (E, out, in)."""
        info = self._info(name, shape)
        return self._load(info, self._scales(info))

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        """Load the projection `name.weight` (rows, columns) and its optional `name.bias`."""
        weight = self.matrix(name + ".weight", rows, columns)
        return Linear(weight, self.optional_vector(name + ".bias", rows))

    def matrix_rows(self, name: str, rows: int, start: int, end: int, columns: int) -> QTensor:
        """Load rows start..end of the matrix `name` (rows, columns)."""
        info = self._info(name, (rows, columns))
        row_bytes, shape = info.size_bytes // rows, (end - start, columns)
        offset, size = info.offset + start * row_bytes, (end - start) * row_bytes
        part = replace(info, shape=shape, offset=offset, size_bytes=size)
        return self._load(part, self._scales(info))

    def stack(self, name: str, count: int, rows: int, columns: int) -> QTensor:
        """Load the matrix `name` (count * rows, columns) as a stack (count, rows, columns)."""
        info = self._info(name, (count * rows, columns))
        return self._load(replace(info, shape=(count, rows, columns)), self._scales(info))

    def table(self, name: str, *shape: int) -> mx.array:
        """Load a table of whole numbers."""
        info = self._info(name, shape)
        if info.type.name != "I32":
            raise GGUFError(f"tensor {name!r} has type {info.type.name}, expected I32")
        numbers = self._blocks(info).cast("i")
        return mx.array(numbers).reshape(shape)  # type: ignore[arg-type]  # accepts any buffer

    def stacked(
        self, name: str, shape: tuple[int, int, int], start: int, end: int, transpose: bool = False
    ) -> QTensor:
        """Split a matrix into E equal parts and load rows start..end of each as a stack.

        shape: (E, rows per part, columns). transpose: also transpose each part, converting
        quantised blocks to float16.
        """
        count, rows, columns = shape
        info = self._info(name, (count * rows, columns))
        blocks, row_bytes = self._blocks(info), info.size_bytes // (count * rows)
        size = (end - start) * row_bytes
        starts = range(start * row_bytes, len(blocks), rows * row_bytes)
        copy = b"".join([blocks[at : at + size] for at in starts])
        info = replace(info, shape=(count, end - start, columns))
        return self._load_copy(*(_transposed(copy, info) if transpose else (copy, info)))

    def _load(self, info: TensorInfo, scales: mx.array | None) -> QTensor:
        if info.type.id not in TYPES:
            raise GGUFError(f"tensor {info.name!r} has type {info.type.name}, expected weights")
        tensor = self.kernels.load(self._blocks(info), info, scales)
        if not self.kernels.in_place:
            self._parts[info.part].release(info.offset, info.offset + info.size_bytes)
        return tensor

    def _load_copy(self, blocks: bytes, info: TensorInfo) -> QTensor:
        info = replace(info, size_bytes=len(blocks))
        return self.kernels.load(memoryview(blocks), info, self._scales(info))

    def _scales(self, info: TensorInfo) -> mx.array | None:
        """Load the factor of a matrix, or of each matrix of a stack, that NVFP4 files have."""
        name = info.name.removesuffix(".weight") + ".scale"
        if name not in self or name.endswith(ROUTER_SCALE):
            return None
        count = info.shape[0] if len(info.shape) == 3 else 1
        held = math.prod(self.shape(name))
        return mx.broadcast_to(self.array(name, count if held > 1 else 1), (count,))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, or () if the file does not contain it."""
        info = self.tensors.get(name)
        return info.shape if info else ()

    def array(self, name: str, *shape: int) -> mx.array:
        """Load a float32 tensor with this shape, ignoring axes of size 1."""
        held = self.shape(name)
        same = [size for size in held if size > 1] == [size for size in shape if size > 1]
        info = self._info(name, held if held and same else shape)
        if info.type.name != "F32":
            raise GGUFError(f"tensor {name!r} has type {info.type.name}, expected F32")
        floats = self._blocks(info).cast("f")
        return mx.array(floats).reshape(shape)  # type: ignore[arg-type]  # accepts any buffer

    def optional_vector(self, name: str, size: int) -> mx.array | None:
        """Load a float32 vector, or return None if the file does not contain it."""
        return self.array(name, size) if name in self else None

    def experts(self, prefix: str, projection: str, *shape: int) -> QTensor:
        """Load the stack `prefix.projection_exps.weight` (E, out, in).

        Files from before April 2024 have one tensor per expert; this method stacks them.
        """
        name = f"{prefix}.{projection}_exps.weight"
        count, *one = shape
        if self.store is not None:
            return self._stored(self.store, prefix, projection, *shape)
        if name in self:
            return self.matrix(name, *shape)
        infos = [self._info(f"{prefix}.{projection}.{e}.weight", tuple(one)) for e in range(count)]
        _require_one_type(prefix, projection, infos)
        blocks = b"".join([self._blocks(info) for info in infos])
        return self._load_copy(blocks, replace(infos[0], name=name, shape=tuple(shape)))

    def _stored(
        self, store: ExpertStore, prefix: str, projection: str, count: int, *one: int
    ) -> QTensor:
        name = f"{prefix}.{projection}_exps.weight"
        if name in self:
            infos = [self._info(name, (count, *one))]
        else:
            infos = [self._info(f"{prefix}.{projection}.{e}.weight", one) for e in range(count)]
        _require_one_type(prefix, projection, infos)
        for info in infos:
            self._require_in_file(info)
        info = replace(infos[0], name=name, shape=(count, *one))
        factors = self._scales(info)
        layer = int(prefix.removeprefix("blk."))
        listed: list[float] | None = None if factors is None else factors.tolist()  # type: ignore[assignment]
        return store.tensor(layer, PART_NAMES[projection], info, listed)

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(f"tensor {name!r} is missing")
        if info.shape != shape:
            raise GGUFError(f"tensor {name!r} has shape {info.shape}, expected {shape}")
        return info

    def _blocks(self, info: TensorInfo) -> memoryview:
        part = self._require_in_file(info)
        self._loaded_bytes += info.size_bytes
        if self._on_load is not None:
            self._on_load(min(self._loaded_bytes, self._total_bytes), self._total_bytes)
        return part.blocks(info.offset, info.offset + info.size_bytes)

    def _require_in_file(self, info: TensorInfo) -> DirectFile | MappedFile:
        part = self._parts[info.part]
        part.check()
        end = info.offset + info.size_bytes
        if end > part.size_bytes:
            raise GGUFError(
                f"tensor {info.name!r} ends at byte {end:,}, past the end of the file "
                f"({part.size_bytes:,})"
            )
        return part


def _require_one_type(prefix: str, projection: str, infos: list[TensorInfo]) -> None:
    if len({info.type.name for info in infos}) != 1:
        raise GGUFError(f"tensors {prefix}.{projection}.*.weight must all have the same type")


def _transposed(blocks: bytes, info: TensorInfo) -> tuple[bytes, TensorInfo]:
    import numpy as np

    count, rows, columns = info.shape
    kind, values = info.type, np.frombuffer(blocks, np.uint8).reshape(-1, info.type.size_bytes)
    if kind.weights > 1:
        from engine.gguf.dequant import dequantize

        values = dequantize(values, kind).astype(np.float16).view(np.uint8)
        kind = TYPE_BY_NAME["F16"]
    transposed = values.reshape(count, rows, columns, kind.size_bytes).swapaxes(1, 2)
    return transposed.tobytes(), replace(info, type=kind, shape=(count, columns, rows))
