"""Files that store a model's cache: saved conversations and stored prompts.

A file consists of a line with its kind and format version, a JSON line (`SavedHeader`), the arrays'
bytes and the SHA-256 of everything before it. Files are untrusted, so sizes are checked before
anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar

from catalog.files import open_atomically, parse_json
from conifer_cli.errors import BadSaved, OutputError, Unreadable, UsageError, why
from conifer_cli.session import output_file

if TYPE_CHECKING:
    from conifer_cli.fit.verdict import FitReport
    from engine.nn.cache.state import CacheState

FORMAT = 1
MAX_LINE_BYTES = 64 << 20
DIGEST_BYTES = 32
ITEM_BYTES = {"float16": 2, "float32": 4, "int8": 1}
ROLES = ("system", "user", "assistant")
FIELDS = ("role", "content", "reasoning_content")
MAX_ARRAYS, MAX_DIMS = 1 << 16, 8
MAX_VALUES = 1 << 40  # in an array, even if one of its dimensions is 0
START_BYTES, SAMPLE_BYTES, SAMPLES = 16 << 20, 4096, 64  # read from a model file to identify it


@dataclass(frozen=True)
class SavedHeader:
    """The JSON header of a stored prompt.

    form: the cache format. marks: each layer's stored positions. arrays: [type, shape] pairs.
    """

    kind: ClassVar[str] = "prompt"
    model: str
    identity: str
    form: str
    tokens: list[Any]
    marks: list[Any]
    arrays: list[Any]

    def __post_init__(self) -> None:
        sound = (
            _whole_numbers(self.tokens)
            and all(_whole_numbers(row, len(self.tokens) + 1) for row in self.marks)
            and len(self.arrays) <= MAX_ARRAYS
            and all(
                isinstance(row, list)
                and len(row) == 2
                and row[0] in tuple(ITEM_BYTES)
                and _whole_numbers(row[1])
                and len(row[1]) <= MAX_DIMS
                and math.prod(max(size, 1) for size in row[1]) <= MAX_VALUES
                for row in self.arrays
            )
        )
        if not sound:
            raise ValueError("a value has an invalid type")

    def layout(self) -> Iterator[tuple[str, list[int], int]]:
        """Yield each array's type, shape and size in bytes."""
        for name, shape in self.arrays:
            yield name, shape, math.prod(shape) * ITEM_BYTES[name]


@dataclass(frozen=True)
class ConversationHeader(SavedHeader):
    """The JSON header of a saved conversation."""

    kind: ClassVar[str] = "conversation"
    messages: list[dict[str, str]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for message in self.messages:
            if message.get("role") not in ROLES or "content" not in message:
                raise ValueError("each message must have a valid role and content")
            if not set(message) <= set(FIELDS):
                raise ValueError("a message has an unknown field")


H = TypeVar("H", bound=SavedHeader)


def _whole_numbers(value: Any, most: int = MAX_VALUES) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= most for n in value)


def identity(report: FitReport) -> str:
    """Return a digest that identifies a model's files. Raises Unreadable.

    The digest covers each file's size, its first START_BYTES and samples of the rest.
    """
    digest = hashlib.sha256()
    for path in report.paths:
        try:
            _take_samples(path, digest)
        except OSError as error:  # the file may be removed while the model runs
            raise Unreadable(f"cannot read {path}: {why(error)}") from error
    return digest.hexdigest()


def _take_samples(path: Path, digest: Any) -> None:
    size_bytes = path.stat().st_size
    digest.update(f"{size_bytes};".encode())
    with path.open("rb") as file:
        digest.update(file.read(START_BYTES))
        for sample in range(SAMPLES):
            file.seek((size_bytes - SAMPLE_BYTES) * sample // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))


def require_writable(path: Path) -> None:
    """Raise UsageError unless `path` is writable and is either new or a saved conversation."""
    if os.path.exists(path) and not _is_conversation(path):
        raise UsageError(f"refusing to overwrite {path}: not a Conifer conversation")
    output_file.require_folder(path)


def _is_conversation(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.readline(80).startswith(f"conifer {ConversationHeader.kind} ".encode())
    except OSError:
        return False


def write(path: Path, kind: str, facts: Mapping[str, Any], kept: CacheState | None) -> None:
    """Write a file atomically. facts: header fields that `kept` lacks. Raises OutputError."""
    arrays = kept.arrays if kept else []
    header = {
        **facts,
        "tokens": kept.tokens if kept else [],
        "marks": kept.positions if kept else [],
        "arrays": [[str(array.dtype), list(array.shape)] for array in arrays],
    }
    digest = hashlib.sha256()
    try:
        with open_atomically(path, mode=0o600, sync=True) as file:
            lines = f"conifer {kind} {FORMAT}\n{json.dumps(header)}\n".encode()
            for data in chain([lines], (array.tobytes() for array in arrays)):
                digest.update(data)
                file.write(data)
            file.write(digest.digest())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {why(error)}") from error


def read(path: Path, kind: type[H]) -> tuple[H, CacheState]:
    """Read a file. Raises UsageError if it is missing, or BadSaved if it is not valid."""
    import numpy as np

    from engine.gguf.mapping import map_file
    from engine.nn.cache.state import CacheState

    digest = hashlib.sha256()
    with _opened(path, kind) as file:
        header = _header(path, file, kind, digest)
        at = file.tell()
        # Map the file: a copy would need memory that the verdict does not include.
        data = memoryview(map_file(file))
        if len(data) - at - DIGEST_BYTES != sum(size_bytes for _, _, size_bytes in header.layout()):
            raise BadSaved(f"{path} is damaged: its size does not match its header")
    arrays = []
    for name, shape, size_bytes in header.layout():
        part = data[at : at + size_bytes]
        digest.update(part)
        arrays.append(np.frombuffer(part, dtype=name).reshape(shape))
        at += size_bytes
    if data[at:] != digest.digest():
        raise BadSaved(f"{path} is damaged: its checksum does not match")
    return header, CacheState(header.tokens, header.marks, arrays)


def read_header(path: Path, kind: type[H]) -> H:
    """Read only the header and skip the checksum. Raises the same exceptions as `read`."""
    with _opened(path, kind) as file:
        return _header(path, file, kind, hashlib.sha256())


@contextmanager
def _opened(path: Path, kind: type[SavedHeader]) -> Iterator[BinaryIO]:
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise BadSaved(f"{path} is a pipe, a socket or a device, not a saved {kind.kind}")
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"no saved {kind.kind} at {str(path)!r}") from error
    except OSError as error:
        raise BadSaved(f"cannot read {path}: {why(error)}") from error


def _header(path: Path, file: BinaryIO, kind: type[H], digest: Any) -> H:
    first = file.readline(80)
    start, _, version = first.rstrip(b"\n").rpartition(b" ")
    if start != f"conifer {kind.kind}".encode():
        raise BadSaved(f"{path} is not a saved {kind.kind}")
    if version != str(FORMAT).encode():
        raise BadSaved(
            f"{path} was written by another version of Conifer (expected format {FORMAT})"
        )
    line = file.readline(MAX_LINE_BYTES)
    digest.update(first + line)
    header = parse_json(line, kind) if line.endswith(b"\n") else None
    if header is None:
        raise BadSaved(f"{path} is damaged: its header is invalid")
    return header
