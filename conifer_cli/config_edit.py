"""Change one value in the config file, and leave every other line as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from catalog.files import read_file, write_atomically
from conifer_cli.config_file import MAX_BYTES, TABLE, parsed, place
from conifer_cli.errors import UsageError, why
from conifer_cli.terminal import console

TomlValue = str | int | float | bool | list[str]


def change(table: str, key: str, value: TomlValue | None) -> Path:
    """Set a key, or remove it if `value` is None. table: empty for a top-level key.

    Return the file's path. Raises UsageError if the file cannot be read, parsed or written.
    """
    path = place()
    try:
        text = console.decoded(read_file(path, MAX_BYTES), str(path), strict=True)
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    parsed(path, text)
    changed = "".join(f"{line}\n" for line in _changed(text.splitlines(), table, key, value))
    found = parsed(path, changed)
    if (found.get(table, {}) if table else found).get(key) != value:
        raise UsageError(f"{path}: cannot change {key}", "Edit it with `conifer config edit`.")
    try:
        write_atomically(Path(path), changed, mode=0o600)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {why(error)}") from error
    return path


def literal(value: TomlValue) -> str:
    """Return a value as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _changed(lines: list[str], table: str, key: str, value: TomlValue | None) -> list[str]:
    heads = [(at, found[1]) for at, line in enumerate(lines) if (found := TABLE.match(line))]
    start, end = 0, heads[0][0] if heads else len(lines)
    if table:
        named = [number for number, (_, name) in enumerate(heads) if name == table]
        if not named:
            gap = [""] if lines and lines[-1].strip() else []
            return lines if value is None else [*lines, *gap, f"[{table}]", _line(key, value)]
        start = heads[named[0]][0] + 1
        end = heads[named[0] + 1][0] if named[0] + 1 < len(heads) else len(lines)
    own = re.compile(rf"\s*(['\"]?){re.escape(key)}\1\s*=")
    kept = [line for line in lines[start:end] if not own.match(line)]
    while kept and not kept[-1].strip():
        kept.pop()
    if value is not None:
        kept.append(_line(key, value))
    return [*lines[:start], *kept, *([""] if kept and end < len(lines) else []), *lines[end:]]


def _line(key: str, value: TomlValue) -> str:
    bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else literal(key)
    return f"{bare} = {literal(value)}"
