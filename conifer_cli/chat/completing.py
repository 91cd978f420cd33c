"""What may follow a command while it is typed: paths, models, words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Words = Callable[[str], list[str]]  # what is typed -> what its last word may become
MOST = 200  # names of a folder that are offered


def none(typed: str) -> list[str]:
    """Offer nothing."""
    return []


def of(*words: str) -> Words:
    """Offer some words."""
    return lambda typed: [word for word in words if word.startswith(typed.rpartition(" ")[2])]


def paths(typed: str) -> list[str]:
    """Offer the files and folders that begin like this."""
    folder, _, start = typed.rpartition("/")
    where = Path(os.path.expanduser(folder + "/" if "/" in typed else "."))
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(where))
    except OSError:
        return []
    hidden = start.startswith(".")
    found = [n for n in names if n.startswith(start) and n.startswith(".") == hidden]
    return [f"{folder}/{name}" if "/" in typed else name for name in found[:MOST]]


def models(typed: str) -> list[str]:
    """Offer the catalog's models, or files for what looks like a path."""
    from catalog import entries

    if "/" in typed or typed.startswith((".", "~")):
        return paths(typed)
    return [name for name in entries() if name.startswith(typed)]
