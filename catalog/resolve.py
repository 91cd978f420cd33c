"""Resolve a model name from the command line to a model, file and repository.

A link to the Hub or an `hf:` name is recognised first (see `links`). A name is a path if it
contains a separator, starts with `.` or `~`, or ends in `.gguf`. Any other name is a catalog id
with an optional `:QUANT` or `@QUANT`. Only paths are looked up on disk, and nothing uses the
network.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from catalog import links
from catalog.errors import ModelNotFound, UnknownModel, why
from catalog.file_names import DEFAULT_QUANT, FileSet, choices, normal_quant, select
from catalog.registry import CatalogFile, Entry, Package, entries

MIN_SHARED = 3  # the minimum length for a partial match with an id


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
    folder: str | None = None
    quant: str | None = None
    revision: str | None = None
    excluded: frozenset[str] = frozenset()

    @property
    def wanted_quant(self) -> str | None:
        """The requested quantisation, or the entry's default, or None."""
        return self.quant or (self.entry.default_quant if self.entry else None)

    @property
    def preferred_quant(self) -> str:
        """The quantisation to use if it fits."""
        return self.wanted_quant or DEFAULT_QUANT

    @property
    def catalog_file(self) -> CatalogFile | None:
        return self.entry.file(self.quant) if self.entry else None

    @property
    def package(self) -> Package | None:
        """The PyPI package that contains the requested file, or None."""
        package = self.entry.package if self.entry else None
        return package if package and package.quant == self.wanted_quant else None

    @property
    def is_open(self) -> bool:
        """True if the name leaves the quantisation open, so that Conifer chooses one that fits."""
        named = self.path or self.quant or self.file or self.package
        return named is None

    @property
    def repositories(self) -> tuple[str, ...]:
        """The repositories with files of this model, that of the default quantisation first."""
        files = self.entry.files if self.entry else ()
        found = (self.repository, *(file.repository for file in files))
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def of(self, repository: str | None, quant: str | None) -> Reference:
        """Return a copy of this reference that selects one quantisation in one repository."""
        return replace(self, repository=repository, quant=quant)

    def choices(self, names: Iterable[str]) -> tuple[FileSet, ...]:
        """Return this model's quantisations among file names, in order of preference."""
        left = (name for name in names if name not in self.excluded)
        return choices(left, self.folder, self.preferred_quant)

    def without(self, names: Iterable[str]) -> Reference:
        """Return a copy of this reference that never selects these files."""
        return replace(self, excluded=self.excluded.union(names))

    def select(self, names: Iterable[str]) -> FileSet:
        """Select this model's files from the repository's file names. Raises ModelNotFound."""
        return select(
            (name for name in names if name not in self.excluded),
            self.repository or "",
            quant=self.wanted_quant,
            file=self.file,
            folder=self.folder,
            known=self.catalog_file.names if self.catalog_file else (),
        )


def resolve(text: str, endpoint: str | None = None) -> Reference:
    """Resolve a name. `endpoint` is the Hub's URL, whose links are recognised too.

    Raises ModelNotFound if a path does not exist, or UnknownModel if a name is unknown.
    """
    if found := links.parse(text, endpoint):
        return Reference("hub", **asdict(found))
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
        raise ModelNotFound(f"{text!r} is not a valid path: {why(error)}") from error
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
