"""What goes between a conversation and files: texts that are read, Markdown, the clipboard."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conifer_cli.errors import UsageError
from conifer_cli.session.session import Messages
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

LONGEST_BYTES = 20 * 10**6  # of a file that is read
COPY_S = 10.0  # after which a program that takes to the clipboard is given up
CLIPBOARDS = (  # (what has to be set, the program)
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)


def path_and_words(text: str) -> tuple[Path, str]:
    """Cut a line into a path, which may be quoted, and what follows it."""
    if not text:
        raise UsageError("a file has to be named")
    if text[0] in "\"'" and (end := text.find(text[0], 1)) > 0:
        return _path(text[1:end]), text[end + 1 :].strip()
    whole = _path(text)
    if os.path.exists(whole):  # Path.exists raises for a text that is too long to be a name
        return whole, ""
    name, _, words = text.partition(" ")
    return _path(name), words.strip()


def only_path(text: str) -> Path:
    """Read a line that is a path, which may be quoted."""
    path, more = path_and_words(text)
    return _path(text) if more else path


def _path(name: str) -> Path:
    if "\0" in name:
        raise UsageError("a name of a file has no NUL in it")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{name!r} names no home folder") from error


def read_text(path: Path) -> str:
    """Read a text file. Bytes that are not UTF-8 are replaced, which is said."""
    try:
        if path.stat().st_size > LONGEST_BYTES:
            raise UsageError(f"{path} is longer than the {size(LONGEST_BYTES)} that are read")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}") from error
    text = data.decode("utf-8", errors="replace")
    if "\ufffd" in text and "\ufffd".encode() not in data:
        console.log(f"conifer: {path.name} is not all UTF-8; the other bytes were replaced")
    return text.removeprefix("\ufeff")


def export(name: str, messages: Messages, model: str) -> Path:
    """Write the conversation as Markdown, to a new file."""
    path = only_path(name)
    if os.path.exists(path):
        raise UsageError(f"{path} is there already")
    names = {"system": "System", "user": "You", "assistant": Path(model).name}
    parts = [f"## {names[m['role']]}\n\n{m['content'].strip()}\n" for m in messages]
    _write(path, "\n".join(parts))
    return path


def copy(text: str) -> str:
    """Put text on the clipboard; say by what. Where no program does it, the terminal is asked."""
    data = text.encode(errors="replace")
    for variable, words in CLIPBOARDS:
        wanted = sys.platform == "darwin" if variable is None else variable in os.environ
        if wanted and shutil.which(words[0]) and _takes(words, data):
            return words[0]
    console.write_stdout(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    return "the terminal, if it allows that"


def _takes(words: tuple[str, ...], data: bytes) -> bool:
    """Hand text to a program, and tell whether it took it."""
    try:
        done = subprocess.run(
            words, input=data, stderr=subprocess.DEVNULL, timeout=COPY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    data = (text + "\n").encode(errors="replace")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
