"""Copy text to the clipboard with a desktop program or the terminal's OSC 52 sequence."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

from conifer_cli.terminal import console

TIMEOUT_S = 10.0
PROGRAMS = (  # (environment variable that must be set, or None for macOS; command)
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)


def copy(text: str) -> str:
    """Copy text to the clipboard. Return the name of the program or method used."""
    data = text.encode(errors="replace")
    for variable, command in PROGRAMS:
        usable = sys.platform == "darwin" if variable is None else variable in os.environ
        if usable and shutil.which(command[0]) and _pipe(command, data):
            return command[0]
    console.write_stdout(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    return "OSC 52, if the terminal supports it"


def _pipe(command: tuple[str, ...], data: bytes) -> bool:
    try:
        done = subprocess.run(
            command, input=data, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
