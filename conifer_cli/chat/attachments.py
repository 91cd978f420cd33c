"""Files used in a conversation: text files to send, and the Markdown export."""

from __future__ import annotations

import os
from pathlib import Path

from conifer_cli.errors import UsageError
from conifer_cli.session.files import expanded, matching
from conifer_cli.session.files import read_text as read_text
from conifer_cli.session.session import Messages


def split_path(text: str) -> tuple[Path, str]:
    """Split a line into a path, which may be quoted, and the text after it."""
    if not text:
        raise UsageError("expected a file name")
    if text[0] in "\"'" and (end := text.find(text[0], 1)) > 0:
        return expanded(text[1:end]), text[end + 1 :].strip()
    whole = expanded(text)
    if os.path.exists(whole):  # Path.exists raises if the text is too long for a file name
        return whole, ""
    name, _, rest = text.partition(" ")
    return expanded(name), rest.strip()


def split_paths(text: str) -> tuple[list[Path], str]:
    """Split a line into the files at its start, which patterns may name, and the text after."""
    first, rest = split_path(text)
    found = matching(str(first))
    while rest:
        path, more = split_path(rest)
        if not os.path.isfile(path) and not ("*" in str(path) and matching(str(path))):
            break
        found += matching(str(path))
        rest = more
    return found, rest


def whole_path(text: str) -> Path:
    """Parse a line that contains only a path, which may be quoted."""
    path, rest = split_path(text)
    return expanded(text) if rest else path


def markdown(messages: Messages, model: str) -> str:
    """Return a conversation as Markdown. model: its name or path."""
    names = {"system": "System", "user": "You", "assistant": Path(model).name}
    parts = [f"## {names[m['role']]}\n\n{m['content'].strip()}\n" for m in messages]
    return "\n".join(parts) + "\n"
