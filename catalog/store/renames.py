"""Repositories that have been renamed on the Hub (`<home>/renamed.json`).

Models are stored under the Hub's current name for their repository. This file maps old names to
current ones, so that names in the catalog or on the command line also work offline.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from catalog.file_names import is_repository
from catalog.files import read_json, write_atomically

FORMAT = 1
FILE = "renamed.json"


@dataclass(frozen=True, slots=True)
class _Renames:
    """The Hub's current names by old name, in lower case."""

    names: dict[str, str]

    def __post_init__(self) -> None:
        if not all(is_repository(name) for pair in self.names.items() for name in pair):
            raise ValueError("invalid repository name")


def read(home: Path) -> dict[str, str]:
    """Return the Hub's name for each old name in lower case. Empty if the file is damaged."""
    found = read_json(home / FILE, _Renames, FORMAT)
    return found.names if found else {}


def record(home: Path, old: str, new: str) -> None:
    """Record that a repository has a new name. Raises OSError if writing fails."""
    known = read(home)
    if old.lower() != new.lower() and known.get(old.lower()) != new:
        names = {**known, old.lower(): new}
        names.pop(new.lower(), None)
        text = json.dumps({"format": FORMAT, "names": names}, indent=1) + "\n"
        write_atomically(home / FILE, text)
