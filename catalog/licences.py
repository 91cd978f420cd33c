"""Open licences, and the licences that the user has accepted (`<home>/licences.json`)."""

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
# Licences with these prefixes restrict who may use the weights, or for what purpose.
NOT_OPEN = ("llama", "gemma", "lfm", "deepseek", "qwen", "tongyi", "k-exaone", "minimax")


@dataclass(frozen=True, slots=True)
class _Agreements:
    agreed: dict[str, Any]


def is_open(licence: str) -> bool:
    """True if a licence does not require acceptance. Also true if it is unstated or unknown."""
    return not licence.lower().startswith(NOT_OPEN)


def stated(metadata: Mapping[str, Any]) -> str | None:
    """Return the licence in a GGUF header: a standard identifier, a custom name, or None."""
    common, own = metadata.get("general.license"), metadata.get("general.license.name")
    for name in (common if common != "other" else own, own, common):
        if isinstance(name, str) and name:
            return name
    return None


def agreed(home: Path) -> dict[str, str]:
    """Return the accepted licences with their dates. Empty if the file is missing or damaged."""
    found = read_json(home / FILE, _Agreements, FORMAT)
    return {name: str(date) for name, date in found.agreed.items()} if found else {}


def agree(home: Path, licence: str) -> None:
    """Record today's acceptance of a licence. Raises OSError if writing fails."""
    names = agreed(home) | {licence: datetime.date.today().isoformat()}
    text = json.dumps({"format": FORMAT, "agreed": names}, indent=1) + "\n"
    write_atomically(home / FILE, text)
