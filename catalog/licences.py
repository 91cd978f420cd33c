"""Which licences are open, and to which others the user has agreed.

Agreements lie in `<home>/licences.json`, each with its date. What a licence says is not known here.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.files import read_json, write_atomically

FORMAT = 1
FILE = "licences.json"
# How the names of licences begin that restrict what the weights may be used for, or by whom.
NOT_OPEN = ("llama", "gemma", "lfm", "deepseek", "qwen", "tongyi")


@dataclass(frozen=True, slots=True)
class _Agreements:
    agreed: dict[str, str]


def is_open(licence: str) -> bool:
    """Say whether a licence asks for no agreement; one that is not stated or not known does not."""
    return not licence.lower().startswith(NOT_OPEN)


def stated(metadata: Mapping[str, Any]) -> str | None:
    """Return the licence that a GGUF header states; its own name where it is no common one."""
    common, own = metadata.get("general.license"), metadata.get("general.license.name")
    for name in (common if common != "other" else own, own, common):
        if isinstance(name, str) and name:
            return name
    return None


def agreed(home: Path) -> dict[str, str]:
    """Return the licences agreed to, each with the date; none where the file makes no sense."""
    found = read_json(home / FILE, _Agreements, FORMAT)
    return found.agreed if found else {}


def agree(home: Path, licence: str) -> None:
    """Record an agreement. Raises OSError as the disk does."""
    names = agreed(home) | {licence: datetime.date.today().isoformat()}
    text = json.dumps({"format": FORMAT, "agreed": names}, indent=1) + "\n"
    write_atomically(home / FILE, text)
