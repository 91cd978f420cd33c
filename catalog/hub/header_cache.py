"""Headers of remote files, kept: the first megabytes by which a model is judged, without weights.

Each lies under `<home>/headers/models--org--repo/<name>.header`: a line of JSON with the file's
ETag and size, then the bytes. One whose ETag the hub no longer names is fetched anew; where the hub
cannot be reached, what was kept last still says what the file was. Losing any of it costs bandwidth
only, so that a folder that cannot be written is no failure. What the bytes mean is not known here.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import ModelNotFound
from catalog.files import parse_json, write_atomically
from catalog.names import is_repository, is_safe, select
from catalog.resolve import Reference

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

SUFFIX = ".header"
MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Version:
    etag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The header of one file, or of one part. `size_bytes` is of the whole file."""

    name: str
    etag: str
    size_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Headers:
    """The folder that headers are kept in."""

    home: Path

    def of(self, file: RemoteFile) -> bytes | None:
        """Return the header of this very version of a file, if it is kept."""
        kept = self._read(file.repository, file.name)
        same = kept and kept.etag == file.etag and kept.size_bytes == file.size_bytes
        return kept.data if kept and same else None

    def keep(self, file: RemoteFile, data: bytes) -> None:
        """Keep the first bytes of a file, as far as the disk lets us."""
        path = self._path(file.repository, file.name)
        if path is None:
            return
        line = json.dumps({"etag": file.etag, "size_bytes": file.size_bytes})
        with contextlib.suppress(OSError):
            write_atomically(path, line.encode() + b"\n" + data, mode=0o600)

    def forget(self, file: RemoteFile) -> None:
        """Drop the header of a file: bytes that came with it were wrong."""
        if (path := self._path(file.repository, file.name)) is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    def find(self, reference: Reference) -> list[Kept] | None:
        """Return the headers of all parts that a reference means, as they were last seen."""
        repository = reference.repository
        if repository is None or reference.revision is not None:
            return None
        folder, facts = self._folder(repository), reference.facts
        if folder is None:
            return None
        names = [
            path.relative_to(folder).as_posix().removesuffix(SUFFIX)
            for path in folder.rglob(f"*{SUFFIX}")
        ]
        try:
            chosen = select(
                names,
                repository,
                quant=reference.wanted_quant,
                file=reference.file,
                known=facts.names if facts else (),
            )
        except ModelNotFound:
            return None
        parts = [self._read(repository, name) for name in chosen.names]
        found = [part for part in parts if part is not None]
        return found if len(found) == len(parts) else None

    def _read(self, repository: str, name: str) -> Kept | None:
        path = self._path(repository, name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                version = parse_json(file.readline(MAX_LINE_BYTES), _Version)
                return (
                    Kept(name, version.etag, version.size_bytes, file.read()) if version else None
                )
        except OSError:
            return None

    def _folder(self, repository: str) -> Path | None:
        if not is_repository(repository):
            return None
        return self.home / "headers" / f"models--{repository.replace('/', '--')}"

    def _path(self, repository: str, name: str) -> Path | None:
        folder = self._folder(repository)
        return folder / f"{name}{SUFFIX}" if folder is not None and is_safe(name) else None
