"""Conifer's own files: atomic writes, bounded reads, validated JSON and moves.

A file may have been replaced by anything: a pipe, a device, a link, a gigabyte of zeros. Readers
open without waiting, accept only regular files and stop at a limit. Writers follow no links. A file
system may refuse to sync, link, lock, rename or set modes; these operations are skipped if they are
not essential.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import stat
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

MAX_JSON_BYTES = 2**20
MAX_DEPTH = 32  # of folders to search
MAX_INTEGER = 2**64 - 1
TEMPORARY_NAME = ".{}.{}.tmp"  # the file name, then 8 hex digits

# Errors from file systems and sandboxes for operations that they do not support.
REFUSED = frozenset(
    getattr(errno, name)
    for name in (
        *("EPERM", "EACCES", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EXDEV", "ENOLCK"),
        *("ENOTTY", "EBUSY", "ETXTBSY", "EMLINK", "EAFNOSUPPORT", "ENODEV", "ENXIO"),
    )
)
_SAFE = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # opening never blocks

_T = TypeVar("_T")


@contextmanager
def optional(operation: str, refused: set[str]) -> Iterator[None]:
    """Run an operation that a file system may refuse; if it does, add its name to `refused`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        refused.add(operation)


def write_atomically(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Replace a file atomically, creating its folder if needed. Raises OSError.

    mode: the new file's permissions, before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path, mode=mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_atomically(path: Path, *, mode: int = 0o666, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`; it replaces `path` if the block succeeds.

    mode: as for `write_atomically`. sync: fsync before replacing the old file.
    """
    temporary = path.with_name(TEMPORARY_NAME.format(path.name, os.urandom(4).hex()))
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if sync:
                file.flush()
                with optional("fsync", set()):
                    os.fsync(file.fileno())
        move(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def move(source: Path, target: Path, refused: set[str] | None = None) -> None:
    """Rename a file over `target`, or link or copy it if that is refused. Raises OSError."""
    with optional("rename", set() if refused is None else refused):
        return os.replace(source, target)
    link_or_copy(source, target)
    with suppress(OSError):
        source.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file as `target`, or copy it if that fails. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes over `target`, in order, so that only a complete copy has full size."""
    with open_regular(source) as old:
        mode = stat.S_IMODE(os.fstat(old.fileno()).st_mode)
        handle = open_own(target, os.O_WRONLY, mode | stat.S_IWUSR)
        try:
            with open(handle, "wb") as new:
                new.truncate()
                shutil.copyfileobj(old, new, 2**20)
                new.flush()
                with optional("fsync", set()):
                    os.fsync(new.fileno())
        except OSError:
            with suppress(OSError):
                target.unlink()
            raise


def open_own(path: Path, flags: int, mode: int = 0o644) -> int:
    """Open a file that only Conifer writes, creating it if it is missing. Returns a descriptor.

    A link, a pipe or another user's file with this name is never opened for writing: it is removed
    and a new file is created. Raises OSError.
    """
    for _ in range(2):
        with suppress(FileExistsError):
            return os.open(path, flags | _SAFE | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, mode)
        if is_own(path):
            handle = os.open(path, flags | _SAFE | os.O_NOFOLLOW)
            if is_own(path, os.fstat(handle)):
                return handle
            os.close(handle)
        os.unlink(path)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def is_own(path: Path, status: os.stat_result | None = None) -> bool:
    """True if a path is a regular file with one name, owned by this user or its folder's owner."""
    try:
        status = status or os.lstat(path)
        owners = (os.geteuid(), os.stat(path.parent).st_uid)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and status.st_uid in owners


def lock(handle: int) -> None:
    """Lock an open file until it is closed. Raises OSError if it is locked, or cannot be."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """True if a process holds a lock on a file or folder. False where locks are not supported."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | _SAFE | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


@contextmanager
def open_regular(path: Path, kind: str = "rb", mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a regular file. Raises OSError, at once, if it is anything else.

    kind: "rb", "r+b", or "ab", which creates the file with the permissions `mode`.
    """
    flags = {"rb": os.O_RDONLY, "r+b": os.O_RDWR, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}
    handle = os.open(path, flags[kind] | _SAFE, mode)
    with typing.cast(BinaryIO, open(handle, kind, buffering=0 if kind == "ab" else -1)) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole regular file. Raises OSError, including if it exceeds `max_bytes`."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    return data


def files_below(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Yield the files and links in a folder and its subfolders. Skips what cannot be read.

    Links to folders are not followed.
    """
    left = [(folder, depth)]
    while left:
        place, deeper = left.pop()
        with suppress(OSError), os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not _is_folder(entry):
                    yield place / entry.name
                elif deeper:
                    left.append((place / entry.name, deeper - 1))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name. Empty if it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if os.path.isdir(entry))
    return []


def real(path: Path) -> Path:
    """Return the path that links lead to. Unlike `Path.resolve`, does not fail on a loop."""
    return Path(os.path.realpath(path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False)
    return False


def read_json(
    path: Path, kind: type[_T], format: int | None = None, max_bytes: int = MAX_JSON_BYTES
) -> _T | None:
    """Read a JSON file with `parse_json`; None if it is missing, unreadable or too large."""
    try:
        data = read_file(path, max_bytes)
    except OSError:
        return None
    return parse_json(data, kind, format)


def parse_json(text: bytes | str, kind: type[_T], format: int | None = None) -> _T | None:
    """Parse JSON into `kind`: a plain type, or a dataclass whose fields have plain types.

    Returns None if the text is not valid JSON, holds a number that is not finite, a key is missing
    (unless its field has a default), a value has the wrong type, or a dataclass raises ValueError
    in `__post_init__`. Ignores extra keys.
    format: the required value of the "format" key.
    """
    try:
        if isinstance(text, str):
            text = text.removeprefix("\ufeff")
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if format is not None and (
            type(value) is not dict
            or type(value.get("format")) is not int
            or value["format"] != format
        ):
            return None
        return typing.cast(_T, _converted(value, kind))
    except (ValueError, OverflowError, RecursionError):
        return None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is not a finite number")
    return value


def _converted(value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and type(value) is dict:
        return _record(value, kind)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is types.UnionType:
        matching = [one for one in arguments if type(value) is one]
        return _converted(value, matching[0] if matching else arguments[0])
    if origin is tuple and type(value) is list and len(value) == len(arguments):
        return tuple(map(_converted, value, arguments))
    if type(value) is not origin:
        raise ValueError(f"{value!r:.40} is not of type {kind}")
    if type(value) is str:
        value.encode()  # raises ValueError for half of a surrogate pair
    if type(value) is int and abs(value) > MAX_INTEGER:
        raise ValueError("an integer is too large")
    if arguments and origin is list:
        return [_converted(item, arguments[0]) for item in value]
    if arguments:
        return {key: _converted(item, arguments[1]) for key, item in value.items()}
    return value


def _record(value: dict[str, Any], kind: type) -> Any:
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _converted(value[field.name], hints[field.name])
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{field.name} is missing")
    return kind(**found)
