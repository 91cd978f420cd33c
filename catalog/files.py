"""Atomic writes and validated JSON for small files, shared by the catalog and the CLI."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

MAX_JSON_BYTES = 2**20
TEMPORARY_NAME = ".{}.{}.tmp"  # the file name, then 8 hex digits

_T = TypeVar("_T")


def write_atomically(
    path: Path, data: bytes | str, *, mode: int = 0o666, sync: bool = False
) -> None:
    """Replace a file atomically, creating its folder if needed. Raises OSError.

    mode: the new file's permissions, before the umask. sync: fsync before replacing the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path, mode=mode, sync=sync) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_atomically(path: Path, *, mode: int = 0o666, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`; it replaces `path` if the block succeeds."""
    temporary = path.with_name(TEMPORARY_NAME.format(path.name, os.urandom(4).hex()))
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(
    path: Path, kind: type[_T], format: int | None = None, max_bytes: int = MAX_JSON_BYTES
) -> _T | None:
    """Read a JSON file with `parse_json`; None if it is missing, unreadable or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        return None
    return parse_json(data, kind, format) if len(data) <= max_bytes else None


def parse_json(text: bytes | str, kind: type[_T], format: int | None = None) -> _T | None:
    """Parse JSON into `kind`: a plain type, or a dataclass whose fields have plain types.

    Returns None if the text is not valid JSON, a key is missing, a value has the wrong type, or a
    dataclass raises ValueError in `__post_init__`. Ignores extra keys.
    format: the required value of the "format" key.
    """
    try:
        value = json.loads(text)
        if format is not None and (type(value) is not dict or value.get("format") != format):
            return None
        return typing.cast(_T, _converted(value, kind))
    except (ValueError, RecursionError):
        return None


def _converted(value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and type(value) is dict:
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        if not all(field.name in value for field in fields):
            raise ValueError("a key is missing")
        return kind(**{f.name: _converted(value[f.name], hints[f.name]) for f in fields})
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is types.UnionType:
        matching = [one for one in arguments if type(value) is one]
        return _converted(value, matching[0] if matching else arguments[0])
    if origin is tuple and type(value) is list and len(value) == len(arguments):
        return tuple(map(_converted, value, arguments))
    if type(value) is not origin:
        raise ValueError(f"{value!r:.40} is not of type {kind}")
    if arguments and origin is list:
        return [_converted(item, arguments[0]) for item in value]
    if arguments:
        return {key: _converted(item, arguments[1]) for key, item in value.items()}
    return value
