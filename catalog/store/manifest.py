"""The manifest: one record for each file that Conifer downloads from the Hub.

Each record is a JSON file, `<home>/pulled/models--org--repo/<sha256>.json`, written before the
download starts. Cached files without a record belong to other tools.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.file_names import is_repository, is_safe
from catalog.files import read_json, write_atomically
from catalog.hub.paths import SHA256, folder_name

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

FORMAT = 1
FOLDER = "pulled"


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """The record of one downloaded file: its name, commit and SHA-256."""

    repository: str
    name: str
    commit: str
    sha256: str
    size_bytes: int
    since: str

    def __post_init__(self) -> None:
        sound = is_repository(self.repository) and is_safe(self.name)
        if not sound or not SHA256.fullmatch(self.sha256):
            raise ValueError(f"invalid manifest entry for {self.name!r}")

    def matches(self, path: Path) -> bool:
        """True if a path resolves to a blob with this SHA-256, or ends in this commit and name."""
        at_commit = f"/{self.commit}/{self.name}"
        return path.resolve().name == self.sha256 or path.as_posix().endswith(at_commit)


def write(home: Path, files: Sequence[RemoteFile]) -> None:
    """Record that Conifer is downloading these files. Raises OSError."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for file in files:
        if file.sha256 is None:  # such a file is never downloaded
            continue
        entry = ManifestEntry(
            file.repository, file.name, file.commit, file.sha256, file.size_bytes, since
        )
        text = json.dumps({"format": FORMAT, **asdict(entry)}, indent=1) + "\n"
        write_atomically(_path(home, entry), text)


def read(home: Path) -> list[ManifestEntry]:
    """Return all valid records, oldest first."""
    paths = (home / FOLDER).glob("models--*/*.json")
    found = [entry for path in paths if (entry := read_json(path, ManifestEntry, FORMAT))]
    return sorted(found, key=lambda entry: (entry.since, entry.name))


def remove(home: Path, entry: ManifestEntry) -> None:
    """Delete a record, and the folder if it is left empty."""
    path = _path(home, entry)
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty
        path.parent.rmdir()


def _path(home: Path, entry: ManifestEntry) -> Path:
    return home / FOLDER / folder_name(entry.repository) / f"{entry.sha256}.json"
