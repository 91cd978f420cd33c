"""Write files that the user names: ask before replacing one, and leave none half written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from catalog.files import open_atomically
from conifer_cli.errors import OutputError, UsageError, why
from conifer_cli.terminal import console


def require_folder(path: Path) -> None:
    """Raise UsageError unless the folder of `path` exists and may be written to."""
    folder = path.parent
    if not os.path.isdir(folder):
        raise UsageError(f"the folder {str(folder)!r} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write to the folder {str(folder)!r}")


def require_new(path: Path, yes: bool) -> None:
    """Raise UsageError unless `path` can be written, and is new or the user agrees to replace it.

    yes: the user has agreed already. A pipe or device has nothing to lose.
    """
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder")
    if _is_special(path):
        return
    require_folder(path)
    if yes or not os.path.lexists(path):
        return
    if not console.can_ask():
        raise UsageError(f"{path} already exists", "Choose another name, or pass --yes.")
    if not console.confirm(f"{path} already exists. Replace it?", default=False):
        raise UsageError(f"{path} was not replaced")


def write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a complete file or nothing. Write directly to a pipe or device.

    Raises OutputError, or UsageError if the folder no longer exists.
    """
    require_folder(path)
    try:
        if _is_special(path):
            path.write_bytes(data)
            return
        with open_atomically(Path(os.path.realpath(path)), mode=mode) as file:
            file.write(data)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {why(error)}") from error


def _is_special(path: Path) -> bool:
    """True for a pipe or a device, including through a link such as /dev/stdout."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path)
    except (OSError, ValueError):
        return False
