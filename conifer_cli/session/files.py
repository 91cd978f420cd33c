"""Text files that go with a prompt: patterns, `@FILE` in a prompt, and what is not text."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from catalog.files import open_regular
from conifer_cli.errors import UsageError, why
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

MAX_FILE_BYTES = 20 * 10**6
MAX_FILES = 1000
START_BYTES = 8192  # a text file has no zero byte in them
TEXT_ONLY = "Conifer reads text only; it sees no images and hears no audio."
STDIN = "-"
# What a file is, by how it begins.
KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "an image, audio or video file"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"\x7fELF", "a program"),
    (b"GGUF", "a model"),
    (b"SQLite format 3", "a database"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio file"),
)
_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # of UTF-16 and UTF-32
_AT = re.compile(r"(?<!\S)@(\"[^\"\n]+\"|'[^'\n]+'|\S+)")


def read_text(path: Path) -> str:
    """Read a text file. Replaces bytes that are not valid UTF-8 and prints a warning.

    Raises UsageError if the file cannot be read, is too large or is not text.
    """
    try:
        with open_regular(path) as file:  # a pipe could block
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} exceeds the {size(MAX_FILE_BYTES)} limit")
    kind = next((kind for start, kind in KINDS if data.startswith(start)), None)
    if kind is None and b"\0" in data[:START_BYTES] and not data.startswith(_MARKS):
        kind = "a binary file"
    if kind is not None:
        raise UsageError(f"{path} is {kind}", TEXT_ONLY)
    return console.decoded(data, path.name)


def matching(pattern: str) -> list[Path]:
    """Return the files that a path or a pattern such as `src/**/*.py` names, sorted.

    Raises UsageError if there is none.
    """
    path = expanded(pattern)
    if os.path.exists(path) or not glob.has_magic(pattern):
        return [path]
    found = sorted(
        Path(name) for name in glob.iglob(str(path), recursive=True) if os.path.isfile(name)
    )
    if not found:
        raise UsageError(f"no file matches {pattern!r}")
    return found


def expanded(name: str) -> Path:
    """Return the path with the home folder in place of `~`. Raises UsageError."""
    if "\0" in name:
        raise UsageError("a file name cannot contain a NUL character")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"cannot expand the home folder in {name!r}") from error


def texts(patterns: Iterable[str]) -> list[str]:
    """Read the files that the patterns name, each once and after its name. Raises UsageError."""
    paths = dict.fromkeys(path for each in patterns if each != STDIN for path in matching(each))
    if len(paths) > MAX_FILES:
        raise UsageError(f"{len(paths):,} files match, but the limit is {MAX_FILES:,}")
    return [introduced(str(path), read_text(path)) for path in paths]


def introduced(name: str, text: str) -> str:
    """Return a file's text after its name."""
    return f"{name}:\n{text.rstrip()}"


def split_mentions(prompt: str) -> tuple[str, list[str]]:
    """Return a prompt without the at signs of `@FILE`, and the files that they name.

    A prompt that is only `@FILE` is replaced by the file's text. Names of no file stay as typed.
    """
    whole = _AT.fullmatch(prompt.strip())
    if whole and os.path.isfile(expanded(_bare(whole[1]))):
        return read_text(expanded(_bare(whole[1]))), []
    names: list[str] = []

    def mentioned(found: re.Match[str]) -> str:
        name = _bare(found[1])
        end = ""
        if not os.path.isfile(expanded(name)) and name[-1:] in ".,:;?!)":  # of the sentence
            name, end = name[:-1], name[-1]
        if not name or not os.path.isfile(expanded(name)):
            return found[0]
        names.append(name)
        return name + end

    return _AT.sub(mentioned, prompt), names


def _bare(name: str) -> str:
    return name[1:-1] if name[:1] in "\"'" else name
