"""What Conifer itself fetched: a small record of each file, so that it knows its own from others'.

One file of JSON for each, `<home>/pulled/models--org--repo/<sha256>.json`, written before the first
byte. A file of the cache without one was fetched by another tool, and is left to it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.files import read_json, write_atomically
from catalog.names import is_repository, is_safe

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

FORMAT = 1
FOLDER = "pulled"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A file that was fetched: under which name, of which commit, with which SHA-256."""

    repository: str
    name: str
    commit: str
    sha256: str
    size_bytes: int
    since: str

    def __post_init__(self) -> None:
        if not (
            is_repository(self.repository) and is_safe(self.name) and _SHA256.fullmatch(self.sha256)
        ):
            raise ValueError(f"{self.name!r}: a record of no file of the hub")


def write(home: Path, files: Sequence[RemoteFile]) -> None:
    """Record that files are ours. Raises OSError as the disk does."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for file in files:
        receipt = Receipt(
            file.repository, file.name, file.commit, file.sha256 or "", file.size_bytes, since
        )
        text = json.dumps({"format": FORMAT, **asdict(receipt)}, indent=1) + "\n"
        write_atomically(_path(home, receipt), text)


def read(home: Path) -> list[Receipt]:
    """Return every record, oldest first; one that makes no sense is passed over."""
    paths = (home / FOLDER).glob("models--*/*.json")
    found = [receipt for path in paths if (receipt := read_json(path, Receipt, FORMAT))]
    return sorted(found, key=lambda receipt: (receipt.since, receipt.name))


def forget(home: Path, receipt: Receipt) -> None:
    """Delete a record, and its folder once it is empty."""
    path = _path(home, receipt)
    path.unlink(missing_ok=True)
    with suppress(OSError):  # others are left in it
        path.parent.rmdir()


def _path(home: Path, receipt: Receipt) -> Path:
    folder = f"models--{receipt.repository.replace('/', '--')}"
    return home / FOLDER / folder / f"{receipt.sha256}.json"
