"""Files used in a conversation: text files to send, and the Markdown export."""

from __future__ import annotations

import os
from pathlib import Path

from catalog.files import open_regular
from conifer_cli.errors import UsageError, why
from conifer_cli.session.session import Messages
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

MAX_FILE_BYTES = 20 * 10**6


def split_path(text: str) -> tuple[Path, str]:
    """Split a line into a path, which may be quoted, and the text after it."""
    if not text:
        raise UsageError("expected a file name")
    if text[0] in "\"'" and (end := text.find(text[0], 1)) > 0:
        return _path(text[1:end]), text[end + 1 :].strip()
    whole = _path(text)
    if os.path.exists(whole):  # Path.exists raises if the text is too long for a file name
        return whole, ""
    name, _, rest = text.partition(" ")
    return _path(name), rest.strip()


def whole_path(text: str) -> Path:
    """Parse a line that contains only a path, which may be quoted."""
    path, rest = split_path(text)
    return _path(text) if rest else path


def _path(name: str) -> Path:
    if "\0" in name:
        raise UsageError("a file name cannot contain a NUL character")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"cannot expand the home folder in {name!r}") from error


def read_text(path: Path) -> str:
    """Read a text file. Replaces bytes that are not valid UTF-8 and prints a warning."""
    try:
        with open_regular(path) as file:  # a pipe could block
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} exceeds the {size(MAX_FILE_BYTES)} limit")
    return console.decoded(data, path.name)


def markdown(messages: Messages, model: str) -> str:
    """Return a conversation as Markdown. model: its name or path."""
    names = {"system": "System", "user": "You", "assistant": Path(model).name}
    parts = [f"## {names[m['role']]}\n\n{m['content'].strip()}\n" for m in messages]
    return "\n".join(parts) + "\n"
