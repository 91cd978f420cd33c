"""Files of what a model's cache held: a conversation to go on with, or the start of a prompt.

One file: a line that says what it is and its format, a line of JSON (facts, and the shapes of the
arrays), the arrays' bytes, and the SHA-256 of all that. It is written aside and put in place whole,
for its owner alone to read. What is read is not trusted: every size is checked before anything is
allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from conifer_cli.errors import BadSaved, Unreadable, UsageError
from conifer_cli.terminal.console import OutputError

if TYPE_CHECKING:
    from conifer_cli.fit.plan import Judged
    from engine.nn.cache_state import Kept

FORMAT = 1
CONVERSATION, PROMPT = "conversation", "prompt"
MAX_LINE_BYTES = 64 << 20
DIGEST_BYTES = 32
TYPES = ("float16", "float32", "int8")
ROLES = ("system", "user", "assistant")
FIELDS = ("role", "content", "reasoning_content")
MAX_ARRAYS = 1 << 16
START_BYTES, SAMPLE_BYTES, SAMPLES = 16 << 20, 4096, 64  # of a model file, for its identity


def identity(judged: Judged) -> str:
    """Tell a model's files from others: their sizes, their starts, and samples of all the rest.

    Raises Unreadable.
    """
    digest = hashlib.sha256()
    for path in judged.paths:
        try:
            _take_samples(path, digest)
        except OSError as error:  # it may be removed while it runs
            raise Unreadable(f"cannot read {path}: {error.strerror}") from error
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
    """Raise UsageError where a conversation cannot be saved, or would take something else's place.

    One of ours may be written over.
    """
    if os.path.exists(path) and not is_one(path, CONVERSATION):
        raise UsageError(f"refusing to overwrite {path}: not a Conifer conversation")
    folder = path.parent
    if not os.path.isdir(folder):
        raise UsageError(f"the folder {str(folder)!r} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {str(folder)!r} may not be written to")


def write(path: Path, kind: str, facts: Mapping[str, Any], kept: Kept | None) -> None:
    """Write a file whole or not at all. Raises OutputError naming what the disk refused."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(aside, "xb", opener=_private) as file:
                _write(file, kind, facts, kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _write(file: BinaryIO, kind: str, facts: Mapping[str, Any], kept: Kept | None) -> None:
    arrays = kept.arrays if kept else []
    header = {
        **facts,
        "tokens": kept.tokens if kept else [],
        "marks": kept.marks if kept else [],
        "arrays": [[str(array.dtype), list(array.shape)] for array in arrays],
    }
    digest = hashlib.sha256()

    def put(data: bytes | memoryview) -> None:
        digest.update(data)
        file.write(data)

    put(f"conifer {kind} {FORMAT}\n".encode())
    put(json.dumps(header).encode() + b"\n")
    for array in arrays:
        put(array.tobytes())
    file.write(digest.digest())


def read(path: Path, kind: str) -> tuple[dict[str, Any], Kept]:
    """Read a file back: its facts, and what was kept.

    Raises UsageError where there is none, BadSaved naming what is wrong with it.
    """
    with _opened(path, kind) as file:
        return _read(path, file, kind)


def read_facts(path: Path, kind: str) -> dict[str, Any]:
    """Read the facts alone, unverified. Raises as `read`."""
    with _opened(path, kind) as file:
        return _header(path, file, kind, hashlib.sha256())


def is_one(path: Path, kind: str) -> bool:
    """Tell whether a file begins as ours do."""
    try:
        if not path.is_file():  # to open a pipe is to wait for whoever writes to it
            return False
        with path.open("rb") as file:
            return file.readline(80).startswith(f"conifer {kind} ".encode())
    except OSError:
        return False


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"no saved {kind} at {str(path)!r}") from error
    except OSError as error:
        raise BadSaved(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, file: BinaryIO, kind: str) -> tuple[dict[str, Any], Kept]:
    import numpy as np

    from engine.nn.cache_state import Kept

    digest = hashlib.sha256()
    header = _header(path, file, kind, digest)
    at = file.tell()
    # Mapped: beside the cache that it fills, a copy would take memory that no verdict counted.
    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if len(whole) - at - DIGEST_BYTES != sum(size for _, _, size in _arrays(header)):
        raise BadSaved(f"{path} is cut short, or longer than it says")
    arrays = []
    for name, shape, size_bytes in _arrays(header):
        data = whole[at : at + size_bytes]
        digest.update(data)
        arrays.append(np.frombuffer(data, dtype=name).reshape(shape))
        at += size_bytes
    if whole[at:] != digest.digest():
        raise BadSaved(f"{path} is damaged: its checksum is of other bytes")
    return header, Kept(header["tokens"], header["marks"], arrays)


def _header(path: Path, file: BinaryIO, kind: str, digest: Any) -> dict[str, Any]:
    first = file.readline(80)
    start, _, version = first.rstrip(b"\n").rpartition(b" ")
    if start != f"conifer {kind}".encode():
        raise BadSaved(f"{path} is no saved {kind}")
    if version != str(FORMAT).encode():
        raise BadSaved(f"{path} has a format of another version of Conifer; this one has {FORMAT}")
    line = file.readline(MAX_LINE_BYTES)
    digest.update(first + line)
    try:
        header = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not _sound(header):
        raise BadSaved(f"{path} is damaged: its second line is not what was written")
    return header


def _sound(header: dict[str, Any]) -> bool:
    """Check every type in a header."""

    def whole(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)

    def message(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.get("role") in ROLES
            and "content" in value
            and all(name in FIELDS and isinstance(text, str) for name, text in value.items())
        )

    arrays, messages = header.get("arrays"), header.get("messages", [])
    return (
        whole(header.get("tokens"))
        and isinstance(header.get("marks"), list)
        and all(map(whole, header["marks"]))
        and isinstance(arrays, list)
        and len(arrays) <= MAX_ARRAYS
        and all(
            isinstance(row, list) and len(row) == 2 and row[0] in TYPES and whole(row[1])
            for row in arrays
        )
        and all(len(row[1]) <= 8 for row in arrays)
        and isinstance(messages, list)
        and all(map(message, messages))
        and all(isinstance(header.get(name), str) for name in ("model", "identity", "form"))
    )


def _arrays(header: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield type, shape and size in bytes of every array."""
    widths = {"float16": 2, "float32": 4, "int8": 1}
    for name, shape in header["arrays"]:
        yield name, tuple(shape), math.prod(shape) * widths[name]
