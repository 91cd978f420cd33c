"""A cache of GGUF headers from the Hub: the first few megabytes of each file, without weights.

Each header is stored in `<home>/headers/models--org--repo/<name>.header`: a line of JSON with the
ETag and file size, then the header bytes. Headers are fetched again if the ETag has changed. A
stale header is still used offline. Losing a cached header only costs bandwidth.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import ModelNotFound, StoreError
from catalog.file_names import is_safe
from catalog.files import files_below, open_regular, parse_json, write_atomically
from catalog.hub.paths import repository_folder
from catalog.resolve import Reference

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

SUFFIX = ".header"
MAX_LINE_BYTES = 4096
MAX_BYTES = 256 << 20  # the largest header that the reader accepts


@dataclass(frozen=True, slots=True)
class _Version:
    etag: str
    size_bytes: int

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            raise ValueError("a size is negative")


@dataclass(frozen=True, slots=True)
class CachedHeader:
    """The header of one part of a model. `size_bytes` is the size of the whole file."""

    name: str
    etag: str
    size_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HeaderCache:
    """The GGUF headers stored in Conifer's home folder."""

    home: Path

    def get(self, file: RemoteFile) -> bytes | None:
        """Return a file's cached header, or None. The ETag and size must match."""
        cached = self._read(file.repository, file.name)
        version = (file.etag, file.size_bytes)
        return cached.data if cached and (cached.etag, cached.size_bytes) == version else None

    def put(self, file: RemoteFile, data: bytes) -> None:
        """Store a file's header. Write errors are ignored."""
        line = json.dumps({"etag": file.etag, "size_bytes": file.size_bytes})
        with suppress(OSError, StoreError):
            path = self._path(file.repository, file.name)
            write_atomically(path, line.encode() + b"\n" + data, mode=0o600)

    def remove(self, file: RemoteFile) -> None:
        """Delete a file's cached header, for example because the file failed verification."""
        with suppress(OSError, StoreError):
            self._path(file.repository, file.name).unlink()

    def find(self, reference: Reference) -> list[CachedHeader] | None:
        """Return the most recently cached headers for all parts of a model, or None."""
        repository = reference.repository
        if repository is None or reference.revision is not None:
            return None
        try:
            chosen = reference.select(self._names(repository))
        except ModelNotFound:
            return None
        parts = [self._read(repository, name) for name in chosen.names]
        found = [part for part in parts if part is not None]
        return found if len(found) == len(parts) else None

    def quantisations(self, reference: Reference) -> list[tuple[str, str]]:
        """Return the (repository, quantisation) pairs of a model that have cached headers."""
        if reference.revision is not None:
            return []
        return [
            (repository, found.quant)
            for repository in reference.repositories
            for found in reference.choices(self._names(repository))
            if found.quant
        ]

    def _names(self, repository: str) -> list[str]:
        try:
            folder = self._folder(repository)
        except StoreError:
            return []
        paths = (path for path in files_below(folder) if path.name.endswith(SUFFIX))
        return [path.relative_to(folder).as_posix().removesuffix(SUFFIX) for path in paths]

    def _read(self, repository: str, name: str) -> CachedHeader | None:
        try:
            with open_regular(self._path(repository, name)) as file:
                version = parse_json(file.readline(MAX_LINE_BYTES), _Version)
                data = file.read(MAX_BYTES + 1) if version else b""
        except (OSError, StoreError):
            return None
        if version is None or len(data) > MAX_BYTES:
            return None
        return CachedHeader(name, version.etag, version.size_bytes, data)

    def _folder(self, repository: str) -> Path:
        return repository_folder(self.home / "headers", repository)

    def _path(self, repository: str, name: str) -> Path:
        if not is_safe(name):
            raise StoreError(f"{name!r} is not a safe path")
        return self._folder(repository) / f"{name}{SUFFIX}"
