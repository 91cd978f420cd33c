"""Choose a model's files on the Hub and read their headers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conifer_cli.fit.naming import naming

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.hub.client import Hub, RemoteFile
    from catalog.hub.header_cache import HeaderCache
    from engine.gguf.reader import Header, TensorInfo

FIRST_READ = 4 << 20  # bytes; enough for the header if the vocabulary is small
MOST_FILES = 8  # headers to read in search of a model


@dataclass(frozen=True)
class HubModel:
    """A model's files on the Hub, and the header merged from all parts."""

    files: tuple[RemoteFile, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def is_model(self) -> bool:
        """True if the header is a text model's, not for example an adapter's."""
        from engine.gguf.kinds import not_a_model

        return not_a_model(self.metadata, self.tensors) is None


def find_model(hub: Hub, reference: Reference, headers: HeaderCache) -> HubModel:
    """Choose a model's files and read their headers.

    Skips files whose header shows that they are not models, unless the reference names a file.
    """
    from catalog.errors import ModelNotFound, SeveralModels

    first: HubModel | None = None
    for _ in range(MOST_FILES):
        try:
            found = _read(hub, tuple(hub.find(reference)), headers)
        except SeveralModels as error:
            listed = hub.files(reference.repository or "", reference.revision)
            candidates = [file for file in listed if file.name in error.names[:MOST_FILES]]
            others = [file for file in candidates if not _read(hub, (file,), headers).is_model]
            if not others:
                raise
            reference = reference.without(file.name for file in others)
            continue
        except ModelNotFound:
            if first is None:
                raise
            return first
        if reference.file is not None or found.is_model:
            return found
        first = first or found
        reference = reference.without(file.name for file in found.files)
    if first is None:
        raise ModelNotFound(f"no model found in {reference.repository}")
    return first


def _read(hub: Hub, files: tuple[RemoteFile, ...], headers: HeaderCache) -> HubModel:
    from engine.gguf.reader import merge_parts

    parts = []
    for part, file in enumerate(files):
        with naming(file.name):
            parts.append(_read_header(hub, file, part, headers))
    with naming(files[0].name):
        return HubModel(files, *merge_parts(parts))


def _read_header(hub: Hub, file: RemoteFile, part: int, headers: HeaderCache) -> Header:
    from engine.errors import GGUFError, MoreNeeded
    from engine.gguf.reader import read_header

    if (cached := headers.get(file)) is not None:
        with suppress(GGUFError):  # the cached copy is damaged
            return read_header(cached, file.size_bytes, part)
    size_bytes = FIRST_READ
    while True:
        data = hub.header(file, min(size_bytes, file.size_bytes))
        try:
            header = read_header(data, file.size_bytes, part)
        except MoreNeeded as more:
            size_bytes = max(2 * size_bytes, more.size_bytes)
        else:
            headers.put(file, data[: header.data_start])
            return header
