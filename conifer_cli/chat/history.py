"""What was typed in conversations before, in a file of the user's own: one JSON string a line.

The first line says the format. A file that cannot be read or written, or is of another format, is
left as it is: then there is no history, and that is no reason not to talk.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

FORMAT = {"format": 1}
KEPT = 1000  # messages
LONGEST = 100_000  # characters of a message that is kept


def read(path: Path) -> list[str]:
    """Give back what was typed, the oldest first; shorten a file that has grown too long."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    if not lines or _parsed(lines[0]) != FORMAT:
        return []
    found = [text for line in lines[1:] if isinstance(text := _parsed(line), str)]
    if len(found) > 2 * KEPT:
        _rewrite(path, found[-KEPT:])
    return found[-KEPT:]


def add(path: Path, text: str) -> None:
    """Add what was typed. Nobody else may read the file."""
    if len(text) > LONGEST:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path, "")
        with path.open("r+", encoding="utf-8", errors="replace") as file:
            if _parsed(file.readline()) == FORMAT:
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(text) + "\n")


def _rewrite(path: Path, texts: list[str]) -> None:
    with contextlib.suppress(OSError):
        new = path.with_name(f"{path.name}.{os.getpid()}")
        _create(new, "".join(json.dumps(text) + "\n" for text in texts))
        new.replace(path)


def _create(path: Path, lines: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(json.dumps(FORMAT) + "\n" + lines)


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None
