"""A small GGUF writer for tests: sound files from Python values, and unsound ones on request.

It shares no code with the reader but the table of block sizes. Everything a hostile file may want
to lie about (counts, lengths, ids, offsets) can be set by hand; what is not set is right.

    blob = gguf_bytes({"general.architecture": "llama"}, [Tensor("w", (2, 32), "Q8_0")])
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.gguf.types import TYPE_BY_NAME

# Value type ids of the format, by NumPy dtype; a string is 8, an array 9.
NUMBER_IDS = {
    "uint8": 0,
    "int8": 1,
    "uint16": 2,
    "int16": 3,
    "uint32": 4,
    "int32": 5,
    "float32": 6,
    "bool": 7,
    "uint64": 10,
    "int64": 11,
    "float64": 12,
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Raw:
    """A metadata value given as its type id and bytes, taken as they are."""

    type_id: int
    payload: bytes = b""


@dataclass(frozen=True)
class Tensor:
    """A tensor; `shape` is outermost first, `data` its blocks (zeros if None).

    To lie: `name` packed, `type` as an id, `dims` (innermost first), `dim_count`, `offset`.
    """

    name: str | bytes
    shape: tuple[int, ...]
    type: str | int = "F32"
    data: bytes | np.ndarray[Any, Any] | None = None
    offset: int | None = None
    dims: tuple[int, ...] | None = None
    dim_count: int | None = None

    def blob(self) -> bytes:
        """Return the tensor's bytes, without padding."""
        if self.data is not None:
            return self.data if isinstance(self.data, bytes) else self.data.tobytes()
        if isinstance(self.type, int):
            return b""
        block = TYPE_BY_NAME[self.type]
        return bytes(math.prod(self.shape) // block.weights * block.size_bytes)


def u32(value: int) -> bytes:
    """Pack a uint32."""
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    """Pack a uint64."""
    return struct.pack("<Q", value)


def string(text: str | bytes, size_bytes: int | None = None) -> bytes:
    """Pack a string; `size_bytes` is the length to claim."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if size_bytes is None else size_bytes) + raw


def array(type_id: int, payload: bytes, count: int) -> Raw:
    """Make an array value of `count` claimed elements."""
    return Raw(ARRAY, u32(type_id) + u64(count) + payload)


def gguf_bytes(
    metadata: Mapping[str, Any] | Iterable[tuple[str | bytes, Any]] = (),
    tensors: Sequence[Tensor] = (),
    version: int = 3,
    alignment: int = 32,
    *,
    magic: bytes = b"GGUF",
    tensor_count: int | None = None,
    key_count: int | None = None,
    pad_last: bool = True,
    trailing: bytes = b"",
) -> bytes:
    """Write a file.

    metadata: values by key, or pairs (then keys may repeat, or be packed bytes). An int is a
    uint32, or int32 if negative, or 64 bits if it must; a float is float32; NumPy values and arrays
    keep their dtype; a list is an array of strings, int32 or float32. Other alignments than 32 are
    recorded in the metadata.
    """
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    if alignment != 32:
        pairs.append(("general.alignment", alignment))
    head = magic + u32(version)
    head += u64(len(tensors) if tensor_count is None else tensor_count)
    head += u64(len(pairs) if key_count is None else key_count)
    for key, value in pairs:
        raw = _value(value)
        head += (key if isinstance(key, bytes) else string(key)) + u32(raw.type_id) + raw.payload
    offset = 0
    blobs = []
    for tensor in tensors:
        head += _tensor_info(tensor, offset)
        blobs.append(_padded(tensor.blob(), alignment))
        offset += len(blobs[-1])
    if tensors:
        head = _padded(head, alignment)
        if not pad_last:
            blobs[-1] = tensors[-1].blob()
    elif pad_last:
        head = _padded(head, alignment)
    return b"".join([head, *blobs, trailing])


def split_bytes(
    metadata: Mapping[str, Any], parts: Sequence[Sequence[Tensor]], **changes: Any
) -> list[bytes]:
    """Write a model as several files; `changes` overrides or adds metadata in all of them."""
    total = sum(len(part) for part in parts)
    blobs = []
    for number, tensors in enumerate(parts):
        keys: dict[str, Any] = dict(metadata) if number == 0 else {}
        keys["split.no"] = np.uint16(number)
        keys["split.count"] = np.uint16(len(parts))
        keys["split.tensors.count"] = np.int32(total)
        blobs.append(gguf_bytes(keys | changes, tensors))
    return blobs


def write_parts(folder: Path, stem: str, blobs: Sequence[bytes]) -> list[Path]:
    """Write the parts of a model under the names that belong to them."""
    paths = [
        folder / f"{stem}-{number:05}-of-{len(blobs):05}.gguf"
        for number in range(1, len(blobs) + 1)
    ]
    for path, blob in zip(paths, blobs, strict=True):
        path.write_bytes(blob)
    return paths


def write_sparse_parts(
    folder: Path, stem: str, metadata: Mapping[str, Any], parts: Sequence[Sequence[Tensor]]
) -> list[Path]:
    """Write a model as several files, or one, whose tensors are holes that take no room."""
    total = sum(len(part) for part in parts)
    paths = []
    for number, tensors in enumerate(parts):
        keys = dict(metadata) if number == 0 else {}
        path = folder / f"{stem}.gguf"
        if len(parts) > 1:
            path = folder / f"{stem}-{number + 1:05}-of-{len(parts):05}.gguf"
            keys |= {"split.no": np.uint16(number), "split.count": np.uint16(len(parts))}
            keys["split.tensors.count"] = np.int32(total)
        offset, empty = 0, []
        for tensor in tensors:
            block = TYPE_BY_NAME[str(tensor.type)]
            empty.append(replace(tensor, data=b"", offset=offset))
            size_bytes = math.prod(tensor.shape) // block.weights * block.size_bytes
            offset += size_bytes + -size_bytes % 32
        head = gguf_bytes(keys, empty)
        path.write_bytes(head)
        os.truncate(path, len(head) + offset)
        paths.append(path)
    return paths


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def _tensor_info(tensor: Tensor, offset: int) -> bytes:
    dims = tensor.shape[::-1] if tensor.dims is None else tensor.dims
    type_id = tensor.type if isinstance(tensor.type, int) else TYPE_BY_NAME[tensor.type].id
    return (
        (tensor.name if isinstance(tensor.name, bytes) else string(tensor.name))
        + u32(len(dims) if tensor.dim_count is None else tensor.dim_count)
        + b"".join(u64(dim) for dim in dims)
        + u32(type_id)
        + u64(offset if tensor.offset is None else tensor.offset)
    )


def _value(value: Any) -> Raw:
    if isinstance(value, Raw):
        return value
    if isinstance(value, str):
        return Raw(STRING, string(value))
    if isinstance(value, list) and (not value or isinstance(value[0], str)):
        return array(STRING, b"".join(string(text) for text in value), len(value))
    if isinstance(value, memoryview):
        value = np.asarray(value)
    if isinstance(value, list):
        value = np.array(value, np.int32 if isinstance(value[0], int) else np.float32)
    if isinstance(value, np.ndarray):
        return array(NUMBER_IDS[value.dtype.name], value.tobytes(), value.size)
    number = value if isinstance(value, np.generic) else _number(value)
    return Raw(NUMBER_IDS[number.dtype.name], number.tobytes())


def _number(value: bool | int | float) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    small, large = (np.int32, np.int64) if value < 0 else (np.uint32, np.uint64)
    return small(value) if abs(value) < 1 << (31 if value < 0 else 32) else large(value)
