"""Resolve a model name from the command line to a model, file and repository.

A link to the Hub or an `hf:` name is recognised first. A name is a path if it contains a separator,
starts with `.` or `~`, or ends in `.gguf`. Any other name is a catalog id with an optional `:QUANT`
or `@QUANT`. Only paths are looked up on disk, and nothing uses the network.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from catalog.errors import ModelNotFound, UnknownModel
from catalog.file_names import FileSet, is_repository, is_safe, normal_quant, select
from catalog.registry import CatalogFile, Entry, Package, entries

_HUB_NAME = re.compile(r"hf:(?://)?(.*)", re.IGNORECASE | re.DOTALL)
_LINK = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]*)(?:[?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
MIN_SHARED = 3  # the minimum length for a partial match with an id
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A resolved name. `kind` is "path", "catalog" or "hub"; unspecified fields are None.

    For a catalog reference, `repository` contains the requested quantisation.
    """

    kind: str
    entry: Entry | None = None
    path: Path | None = None
    repository: str | None = None
    file: str | None = None
    quant: str | None = None
    revision: str | None = None

    @property
    def wanted_quant(self) -> str | None:
        """The requested quantisation, or the entry's default, or None."""
        return self.quant or (self.entry.default_quant if self.entry else None)

    @property
    def catalog_file(self) -> CatalogFile | None:
        return self.entry.file(self.quant) if self.entry else None

    @property
    def package(self) -> Package | None:
        """The PyPI package that contains the requested file, or None."""
        package = self.entry.package if self.entry else None
        return package if package and package.quant == self.wanted_quant else None

    def select(self, names: Iterable[str]) -> FileSet:
        """Select this model's files from the repository's file names. Raises ModelNotFound."""
        return select(
            names,
            self.repository or "",
            quant=self.wanted_quant,
            file=self.file,
            known=self.catalog_file.names if self.catalog_file else (),
        )


def resolve(text: str) -> Reference:
    """Resolve a name.

    Raises ModelNotFound if a path does not exist, or UnknownModel if a name is unknown.
    """
    if found := _LINK.fullmatch(text):
        return _link(found[1], text)
    if found := _HUB_NAME.fullmatch(text):
        return _hub_name(found[1], text)
    if "/" in text or text.startswith((".", "~")) or text.lower().endswith(".gguf"):
        return _path(text)
    return _catalog_name(text)


def _path(text: str) -> Reference:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return Reference("path", path=path)
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, unknown user
        raise ModelNotFound(f"{text!r} is not a valid path: {error}") from error
    if is_folder:
        raise ModelNotFound(f"{text!r} is a folder, not a file")
    if exists:
        raise ModelNotFound(f"{text!r} is a pipe, a socket or a device, not a file")
    raise ModelNotFound(f"no such file: {text!r}")


def _catalog_name(text: str) -> Reference:
    name, *asked = re.split("[:@]", text, maxsplit=1)
    entry = entries().get(name.lower())
    quant = normal_quant(asked[0]) if asked else None
    if entry is None or (asked and quant is None):
        raise UnknownModel(text, _closest(name.lower()))
    repository = (entry.file(quant) or entry).repository
    return Reference("catalog", entry=entry, repository=repository, quant=quant)


def _closest(name: str) -> str | None:
    bare, found = _bare(name), list[str]()
    if len(bare) >= MIN_SHARED:
        found += [id for id in entries() if _bare(id).startswith(bare)]
        found += [id for id in entries() if bare in _bare(id)]
    found += difflib.get_close_matches(name, entries(), n=1, cutoff=0.5)
    return found[0] if found else None


def _bare(name: str) -> str:
    """Drop punctuation, so that "llama-3.1" and "llama3.1" compare equal."""
    return re.sub(r"[\W_]", "", name)


def _hub_name(rest: str, text: str) -> Reference:
    """Parse `org/repo[/file][:QUANT][@revision]`."""
    rest, _, revision = rest.partition("@")
    rest, _, asked = rest.partition(":")
    return _hub(text, rest.split("/"), asked or None, revision or None)


def _link(rest: str, text: str) -> Reference:
    """Parse a URL path: `org/repo`, `org/repo/tree/REV`, `org/repo/blob|resolve/REV/file`."""
    segments = [unquote(segment) for segment in rest.rstrip("/").split("/")]
    segments[-1], _, asked = segments[-1].partition(":")
    revision = None
    if len(segments) > 3 and segments[2] in ("blob", "resolve", "tree"):
        _, _, view, revision, *file = segments
        segments = segments[:2] + (file if view != "tree" else [])
    return _hub(text, segments, asked or None, revision)


def _hub(text: str, segments: list[str], asked: str | None, revision: str | None) -> Reference:
    repository, file = "/".join(segments[:2]), "/".join(segments[2:]) or None
    quant = normal_quant(asked) if asked else None
    sound = (
        is_repository(repository)
        and (file is None or (is_safe(file) and file.lower().endswith(".gguf")))
        and (asked is None or quant is not None)
        and (revision is None or (_REVISION.fullmatch(revision) and is_safe(revision)))
    )
    if not sound:
        raise UnknownModel(text)
    return Reference("hub", repository=repository, file=file, quant=quant, revision=revision)
