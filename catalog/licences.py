"""Which licences are open, and to which others the user has agreed.

Agreements lie in `<home>/licences.json`, each with its date. What a licence says is not known here.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
FILE = "licences.json"
# How the names of licences begin that restrict what the weights may be used for, or by whom.
NOT_OPEN = ("llama", "gemma", "lfm", "deepseek", "qwen", "tongyi")


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
    try:
        found = json.loads((home / FILE).read_bytes())
        if found["format"] != FORMAT:
            return {}
        return {str(name): str(date) for name, date in found["agreed"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def agree(home: Path, licence: str) -> None:
    """Record an agreement. Raises OSError as the disk does."""
    names = agreed(home) | {licence: datetime.date.today().isoformat()}
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{FILE}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps({"format": FORMAT, "agreed": names}, indent=1) + "\n")
    os.replace(temporary, home / FILE)
