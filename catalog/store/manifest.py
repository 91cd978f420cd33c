"""The manifest: one record for each file that Conifer downloads from the Hub.

Each record is a JSON file, `<home>/pulled/models--org--repo/<sha256>.json`, written before the
download starts. Cached files without a record belong to other tools.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.file_names import is_repository, is_safe
from catalog.files import files_below, read_json, real, write_atomically
from catalog.hub.paths import COMMIT, SHA256, blob_of, folder_name

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

FORMAT = 1
FOLDER = "pulled"


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """The record of one downloaded file: its name, commit and SHA-256.

    caches: the caches that it was downloaded to, from `cache_name`; empty in older records.
    """

    repository: str
    name: str
    commit: str
    sha256: str
    size_bytes: int
    since: str
    caches: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sound = is_repository(self.repository) and is_safe(self.name)
        hexadecimal = SHA256.fullmatch(self.sha256) and COMMIT.fullmatch(self.commit)
        if not sound or not hexadecimal or self.size_bytes < 0:
            raise ValueError(f"invalid manifest entry for {self.name!r}")

    def matches(self, path: Path) -> bool:
        """True if a path links to a blob with this SHA-256, or ends in this commit and name."""
        at_commit = f"/{self.commit}/{self.name}"
        return blob_of(path).name == self.sha256 or path.as_posix().endswith(at_commit)


def cache_name(hub_cache: Path) -> str:
    """Return the name of a cache in records: its path, without links."""
    return os.fsencode(real(hub_cache)).decode(errors="backslashreplace")


def write(home: Path, hub_cache: Path, files: Sequence[RemoteFile]) -> None:
    """Record that Conifer is downloading these files to a cache. Raises OSError."""
    known = {(entry.repository, entry.sha256): entry.caches for entry in read(home)}
    cache = cache_name(hub_cache)
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for file in files:
        if file.sha256 is None:  # such a file is never downloaded
            continue
        caches = sorted({*known.get((file.repository, file.sha256), ()), cache})
        facts = (file.repository, file.name, file.commit, file.sha256, file.size_bytes)
        _write(home, ManifestEntry(*facts, since, caches))


def read(home: Path) -> list[ManifestEntry]:
    """Return all valid records, oldest first."""
    paths = (path for path in files_below(home / FOLDER, 1) if path.suffix == ".json")
    found = [entry for path in paths if (entry := read_json(path, ManifestEntry, FORMAT))]
    return sorted(found, key=lambda entry: (entry.since, entry.name))


def remove(home: Path, entry: ManifestEntry, cache: str) -> None:
    """Delete the record of a file that has left a cache, unless another cache has the file.

    Deletes the folder too if it is left empty. Raises OSError.
    """
    others = [other for other in entry.caches if other != cache]
    if others and cache in entry.caches:  # otherwise the cache was moved or copied here
        return _write(home, replace(entry, caches=others))
    path = path_of(home, entry)
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty
        path.parent.rmdir()


def _write(home: Path, entry: ManifestEntry) -> None:
    text = json.dumps({"format": FORMAT, **asdict(entry)}, indent=1) + "\n"
    write_atomically(path_of(home, entry), text)


def path_of(home: Path, entry: ManifestEntry) -> Path:
    """Return the path of a record."""
    return home / FOLDER / folder_name(entry.repository) / f"{entry.sha256}.json"
