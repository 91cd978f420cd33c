"""Read the header of a GGUF file: the metadata and the tensor table, but no weights.

The file is not trusted. Every count, length and offset is checked against a limit and the file size
before anything is allocated or sliced. A hostile file therefore causes an error, but cannot consume
much memory or time.

Layout (versions 2 and 3, little-endian):

    start     magic, version u32, tensor count u64, key count u64
    keys      for each: name, type u32, value
    tensors   for each: name, number of dims u32, dims u64 (innermost first), type u32, offset u64
    data      weights; its start and each tensor are padded to the alignment

A string is stored as its length (u64) and its UTF-8 bytes; an array is stored as its element type
(u32), its element count (u64) and its elements. The padding after the last tensor may be missing.
Any bytes after the padding are an error. They are the only sign that the tensor table lacks a
tensor, in which case the offsets of all later tensors are wrong.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import re
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import GGUFError, ModelFileError, MoreNeeded, UnsupportedError
from engine.gguf.kinds import START_BYTES, what_it_is
from engine.gguf.mapping import map_file
from engine.gguf.types import I32, KNOWN_NAMES, TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)

MAX_HEADER_BYTES = 256 << 20
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63
MAX_STRING_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 20
MAX_ELEMENTS = 4 << 20  # per array; for strings, the total over all arrays
MAX_DIMS = 4
MAX_WEIGHTS = 1 << 40
ALIGNMENTS = tuple(1 << bits for bits in range(3, 13))  # 8 .. 4,096
DEFAULT_ALIGNMENT = 32

BATCH, BATCH_BYTES = 2048, 1 << 20  # the maximum number of strings and bytes to decode at once

# The smallest possible key (length, type, one byte) and tensor (length, dims, type, offset).
MIN_KEY_BYTES = 13
MIN_TENSOR_BYTES = 24

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
# `memoryview` formats by GGUF type id.
NUMBERS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
WHOLE, REAL = tuple("bBhHiIlLqQ"), ("f", "d")

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Data = bytes | bytearray | memoryview | mmap.mmap
# Arrays of numbers are memoryviews, with a format from NUMBERS.
Value = int | float | bool | str | list[str] | memoryview

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's type and location.

    shape: outermost dimension first. offset: in bytes from the start of the tensor's part file.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    size_bytes: int
    part: int = 0


@dataclass(frozen=True)
class Header:
    """The header of one file. size_bytes: the offset at which the last tensor ends."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data_start: int
    size_bytes: int


@dataclass(frozen=True)
class ModelFile:
    """A complete model in one or more files. size_bytes: the total size of the files."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    parts: tuple[Path, ...]
    size_bytes: int


def read_header(data: Data, file_size: int | None = None, part: int = 0) -> Header:
    """Read and validate a header.

    data: the whole file, or only its first bytes, in which case `file_size` must be the full size.
    Raises MoreNeeded if the header extends past `data`, UnsupportedError if a tensor's type is
    unsupported, or GGUFError if the header is invalid.
    """
    file_size = len(data) if file_size is None else file_size
    if file_size < len(data):
        raise GGUFError(f"received {len(data):,} bytes, but the file is only {file_size:,} bytes")
    if isinstance(data, memoryview):
        data = bytes(data[:MAX_HEADER_BYTES])
    cursor = _Cursor(data, file_size, MAX_ELEMENTS)
    version = _read_version(cursor)
    tensor_count, key_count = _read_counts(cursor)
    metadata = _read_metadata(cursor, key_count)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
        raise GGUFError(
            f"key 'general.alignment' must be a power of two from 8 to 4,096, got {alignment}"
        )
    tensors, data_start, size_bytes = _read_tensors(cursor, tensor_count, alignment, part)
    end = _align(size_bytes, alignment)
    if file_size > end:
        raise GGUFError(
            f"expected the file to end at byte {end:,}, after the last tensor, "
            f"but its size is {file_size:,} bytes"
        )
    return Header(version, metadata, tensors, data_start, size_bytes)


def open_model(path: Path) -> ModelFile:
    """Read a model's header. If the model is split, read and merge the headers of all parts.

    path: the only file, or part 1. Raises the same errors as `read_header`, with the file name in
    the message. Also raises GGUFError if a part is missing or belongs to another model, and OSError
    if `path` cannot be opened.
    """
    first, size_bytes = _read_file(path, 0)
    paths = _part_paths(path, first.metadata)
    headers = [first]
    for part, other in enumerate(paths[1:], 1):
        try:
            header, more_bytes = _read_file(other, part)
        except FileNotFoundError as error:
            raise GGUFError(f"part {part + 1} of {len(paths)} is missing: {other.name}") from error
        headers.append(header)
        size_bytes += more_bytes
    metadata, tensors = merge_parts(headers)
    return ModelFile(metadata, tensors, paths, size_bytes)


def numbers(value: object) -> memoryview | None:
    """Return a view of a numeric metadata array, or None if the value is anything else."""
    try:
        return memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def merge_parts(headers: list[Header]) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    """Merge the headers of a model's parts, in order. Return part 1's metadata and all tensors.

    Raises GGUFError, naming the part, if a part does not belong to the same model.
    """
    metadata = headers[0].metadata
    if len(headers) == _split_count(metadata) == 1:
        return metadata, headers[0].tensors
    tensors: dict[str, TensorInfo] = {}
    for part, header in enumerate(headers):
        _check_part(header, part, headers)
        for name, tensor in header.tensors.items():
            assert tensor.part == part
            if name in tensors:
                raise GGUFError(f"part {part + 1}: tensor {name!r} is also in an earlier part")
            tensors[name] = tensor
    expected = _split_number(metadata, "split.tensors.count", 0)
    if len(tensors) != expected:
        raise GGUFError(
            f"part 1: key 'split.tensors.count' is {expected:,}, "
            f"but the number of tensors in the parts is {len(tensors):,}"
        )
    return metadata, tensors


@dataclass(slots=True)
class _Cursor:
    """A read position in the header. where: the current item, for error messages."""

    data: bytes | bytearray | mmap.mmap
    file_size: int
    strings_left: int
    pos: int = 0
    where: str = "header"

    def error(self, what: str) -> GGUFError:
        return GGUFError(f"{self.where}, byte {self.pos:,}: {what}")

    def require(self, size_bytes: int) -> int:
        """Check that at least `size_bytes` more bytes exist, and return the offset after them."""
        end = self.pos + size_bytes
        if end > self.file_size:
            raise self.error(
                f"expected {size_bytes:,} more bytes, but the file ends at byte {self.file_size:,}"
            )
        if end > MAX_HEADER_BYTES:
            raise self.error(f"the header is larger than {MAX_HEADER_BYTES:,} bytes")
        if end > len(self.data):
            raise MoreNeeded(end)
        return end

    def u32(self) -> int:
        return self._integer(_U32)

    def u64(self) -> int:
        return self._integer(_U64)

    def _integer(self, layout: struct.Struct) -> int:
        start, self.pos = self.pos, self.require(layout.size)
        return int(layout.unpack_from(self.data, start)[0])

    def string(self, longest: int, shortest: int = 0) -> str:
        size_bytes = self.u64()
        if not shortest <= size_bytes <= longest:
            raise self.error(
                f"string must be from {shortest} to {longest:,} bytes long, got {size_bytes:,}"
            )
        end = self.require(size_bytes)
        try:
            text = self.data[self.pos : end].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"string is not UTF-8 ({error.reason})") from error
        self.pos = end
        return text


def _read_version(cursor: _Cursor) -> int:
    found = bytes(cursor.data[: len(MAGIC)])
    if not MAGIC.startswith(found):
        raise GGUFError(f"not a GGUF file, but {what_it_is(bytes(cursor.data[:START_BYTES]))}")
    cursor.pos = cursor.require(len(MAGIC))
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if version.to_bytes(4, "big") in (_U32.pack(known) for known in VERSIONS):
        raise cursor.error("big-endian files are not supported")
    raise cursor.error(f"GGUF version {version:,} is not supported; expected 2 or 3")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    tensor_count = cursor.u64()
    if tensor_count > MAX_TENSORS:
        raise cursor.error(f"tensor count must be at most {MAX_TENSORS:,}, got {tensor_count:,}")
    key_count = cursor.u64()
    if key_count > MAX_KEYS:
        raise cursor.error(f"key count must be at most {MAX_KEYS:,}, got {key_count:,}")
    cursor.require(key_count * MIN_KEY_BYTES + tensor_count * MIN_TENSOR_BYTES)
    return tensor_count, key_count


def _read_metadata(cursor: _Cursor, key_count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(key_count):
        cursor.where = f"key {index}"
        key = cursor.string(MAX_KEY_BYTES, shortest=1)
        cursor.where = f"key {key[:80]!r}"
        if key in metadata:
            raise cursor.error("duplicate name")
        type_id = cursor.u32()
        if key == "general.alignment" and type_id != UINT32:
            raise cursor.error("value must be a uint32")
        metadata[key] = _read_value(cursor, key, type_id)
    return metadata


def _read_value(cursor: _Cursor, key: str, type_id: int) -> Value:
    if type_id == STRING:
        is_template = key.startswith("tokenizer.chat_template")
        return cursor.string(MAX_TEMPLATE_BYTES if is_template else MAX_STRING_BYTES)
    if type_id == ARRAY:
        return _read_array(cursor)
    if type_id not in NUMBERS:
        raise cursor.error(f"unknown value type {type_id}")
    value: int | float | bool = _read_numbers(cursor, NUMBERS[type_id], 1)[0]
    return value


def _read_array(cursor: _Cursor) -> list[str] | memoryview:
    type_id = cursor.u32()
    if type_id == ARRAY:
        raise cursor.error("nested arrays are not supported")
    if type_id != STRING and type_id not in NUMBERS:
        raise cursor.error(f"unknown element type {type_id}")
    count = cursor.u64()
    if count > MAX_ELEMENTS:
        raise cursor.error(f"array must have at most {MAX_ELEMENTS:,} elements, got {count:,}")
    if type_id == STRING:
        return _read_strings(cursor, count)
    return _read_numbers(cursor, NUMBERS[type_id], count)


def _read_numbers(cursor: _Cursor, format: str, count: int) -> memoryview:
    end = cursor.require(count * struct.calcsize(format))
    # Copy the bytes, so that the array does not keep the file mapped.
    raw = bytes(cursor.data[cursor.pos : end])
    if format == "?" and count and max(raw) > 1:
        raise cursor.error(f"bool must be 0 or 1, got {max(raw)}")
    cursor.pos = end
    view: memoryview = memoryview(raw).cast(format)  # type: ignore[call-overload]
    return view


def _read_strings(cursor: _Cursor, count: int) -> list[str]:
    if count > cursor.strings_left:
        raise cursor.error(f"the header's arrays contain more than {MAX_ELEMENTS:,} strings")
    cursor.strings_left -= count
    cursor.require(count * _U64.size)
    # Most of a header is vocabulary. Inlining `cursor.string` here makes this three times as fast.
    strings: list[str] = []
    while len(strings) < count:
        wanted = min(BATCH, count - len(strings))
        pieces = _cut(cursor.data, cursor.pos, wanted)
        texts = _decoded(pieces)
        strings += texts
        cursor.pos += len(texts) * _U64.size + sum(map(len, pieces[: len(texts)]))
        if len(texts) < wanted:  # let `cursor.string` raise the error
            cursor.where = f"{cursor.where}[{len(strings)}]"
            cursor.string(MAX_STRING_BYTES)
            raise AssertionError("expected the next string to be invalid")
    return strings


def _cut(data: bytes | bytearray | mmap.mmap, pos: int, count: int) -> list[bytes | bytearray]:
    """Slice `count` strings starting at `pos`. Stop before the first one that is out of bounds."""
    limit = min(len(data), MAX_HEADER_BYTES)
    length_at = _U64.unpack_from
    pieces: list[bytes | bytearray] = []
    append = pieces.append
    with contextlib.suppress(struct.error):
        for _ in range(count):
            start = pos + 8
            pos = start + length_at(data, pos)[0]
            if pos > limit or pos - start > MAX_STRING_BYTES:
                break
            append(data[start:pos])
    return pieces


def _decoded(pieces: list[bytes | bytearray]) -> list[str]:
    """Decode strings. Stop before the first string that is not UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        if sum(map(len, pieces)) <= BATCH_BYTES:
            texts = b"\0".join(pieces).decode().split("\0")
            if len(texts) == len(pieces):  # no string contains a NUL
                return texts
    texts = []
    with contextlib.suppress(UnicodeDecodeError):
        for piece in pieces:
            texts.append(piece.decode())
    return texts


def _read_tensors(
    cursor: _Cursor, count: int, alignment: int, part: int
) -> tuple[dict[str, TensorInfo], int, int]:
    """Return the tensor table and the offsets where the data starts and the last tensor ends."""
    tensors: dict[str, TensorInfo] = {}
    offset = 0
    for index in range(count):
        cursor.where = f"tensor {index}"
        tensor = _read_tensor(cursor, offset, part)
        if tensor.name in tensors:
            raise cursor.error("duplicate name")
        tensors[tensor.name] = tensor
        offset = _align(offset + tensor.size_bytes, alignment)
    data_start, size_bytes = _align(cursor.pos, alignment), cursor.pos
    for name, tensor in tensors.items():
        size_bytes = data_start + tensor.offset + tensor.size_bytes
        tensors[name] = replace(tensor, offset=data_start + tensor.offset)
    if size_bytes > cursor.file_size:
        raise GGUFError(
            f"the file is cut short: {cursor.file_size:,} of {size_bytes:,} bytes are there"
        )
    return tensors, data_start, size_bytes


def _read_tensor(cursor: _Cursor, expected_offset: int, part: int) -> TensorInfo:
    """Read one row of the tensor table. The offset is relative to the start of the data."""
    name = cursor.string(MAX_NAME_BYTES, shortest=1)
    cursor.where = f"tensor {name!r}"
    dims = cursor.u32()
    if dims > MAX_DIMS:
        raise cursor.error(f"expected at most {MAX_DIMS} dimensions, got {dims:,}")
    shape = tuple(cursor.u64() for _ in range(dims))[::-1]
    weights = math.prod(shape)
    if max(weights, *shape, 0) > MAX_WEIGHTS:
        raise cursor.error(f"shape {shape} has more than 2^40 weights")
    type_id = cursor.u32()
    if type_id not in TYPES and type_id != I32.id:
        label = KNOWN_NAMES.get(type_id, str(type_id))
        raise UnsupportedError(f"tensor {name!r} has the unsupported type {label}")
    block = TYPES.get(type_id, I32)
    row = shape[-1] if shape else 1
    if row % block.weights:
        raise cursor.error(
            f"row length must be a multiple of the {block.name} block size ({block.weights}), "
            f"got {row:,}"
        )
    offset = cursor.u64()
    if offset != expected_offset:
        raise cursor.error(f"expected offset {expected_offset:,}, got {offset:,}")
    return TensorInfo(name, shape, block, offset, weights // block.weights * block.size_bytes, part)


def _align(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) & -alignment


def _read_file(path: Path, part: int) -> tuple[Header, int]:
    """Return one file's header and size. The file is mapped only while it is read."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open() would block on a pipe
        raise GGUFError(f"{path.name}: not a regular file")
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            if size_bytes == 0:  # nothing to map
                file.seek(0)
                raise GGUFError(f"not a GGUF file, but {what_it_is(file.read(START_BYTES))}")
            data = map_file(file, MAX_HEADER_BYTES)
            try:
                return read_header(data, size_bytes, part), size_bytes
            finally:
                if isinstance(data, mmap.mmap):
                    data.close()
    except ModelFileError as error:
        error.args = (f"{path.name}: {error}",)
        raise


def _part_paths(path: Path, metadata: dict[str, Value]) -> tuple[Path, ...]:
    """Return the paths of all the model's files, given part 1's path and metadata."""
    count = _split_count(metadata)
    if count == 1:
        return (path,)
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise GGUFError(
            f"{path.name}: key 'split.count' is {count}, "
            f"so the file name must end in -00001-of-{count:05}.gguf"
        )
    names = [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    if path.name != names[0]:
        raise GGUFError(f"{path.name}: not the first part; open {names[0]}")
    return tuple(path.with_name(name) for name in names)


def _check_part(header: Header, part: int, headers: list[Header]) -> None:
    """Raise GGUFError unless `header` is part `part` of the model that `headers[0]` describes."""
    first = headers[0].metadata
    expected = {
        "split.no": part,
        "split.count": len(headers),
        "split.tensors.count": _split_number(first, "split.tensors.count", 0),
    }
    for key, value in expected.items():
        found = _split_number(header.metadata, key, part)
        if found != value:
            raise GGUFError(f"part {part + 1}: key {key!r} is {found:,}, expected {value:,}")
    architecture = first.get("general.architecture")
    if header.metadata.get("general.architecture", architecture) != architecture:
        raise GGUFError(f"part {part + 1}: key 'general.architecture' differs from part 1")


def _split_count(metadata: dict[str, Value]) -> int:
    """Return the number of files, at least 1. In a merged model, `split.count` is 0."""
    return max(1, _split_number(metadata, "split.count", 0)) if "split.count" in metadata else 1


def _split_number(metadata: dict[str, Value], key: str, part: int) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise GGUFError(f"part {part + 1}: key {key!r} is missing or is not a count")
    return value
