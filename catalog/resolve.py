"""What a person typed -> which model, which file of it, and where.

In this order: a pasted link or `hf:` name; a path, if it contains a separator, starts with `.` or
`~`, or ends in `.gguf`; else an id of the catalog, with `:QUANT` or `@QUANT`. Only a path is looked
up on the disk; nothing here knows the store or the network.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from catalog.entry import Entry, FileFacts, PackageSource
from catalog.errors import ModelNotFound, UnknownModel
from catalog.facts import entries
from catalog.names import is_repository, is_safe, normal_quant

_HUB_NAME = re.compile(r"hf:(?://)?(.*)", re.IGNORECASE | re.DOTALL)
_LINK = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]*)(?:[?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
MIN_SHARED = 3  # characters of an id that must be typed for it to be meant
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A resolved name. `kind` is "path", "catalog" or "hub"; what was not typed is None.

    `repository` of a catalog reference is where the wanted quantisation lies.
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
        """The quantisation asked for, else the entry's default; None: whatever is preferred."""
        return self.quant or (self.entry.default_quant if self.entry else None)

    @property
    def facts(self) -> FileFacts | None:
        """What the catalog knows of the wanted quantisation."""
        return self.entry.facts(self.quant) if self.entry else None

    @property
    def package(self) -> PackageSource | None:
        """The wheel that holds the wanted file, if it comes from the package index."""
        package = self.entry.package if self.entry else None
        return package if package and package.quant == self.wanted_quant else None


def resolve(text: str) -> Reference:
    """Say what `text` means. Raises ModelNotFound for a missing path, UnknownModel for a name."""
    if found := _LINK.fullmatch(text):
        return _link(found[1], text)
    if found := _HUB_NAME.fullmatch(text):
        return _hub_name(found[1], text)
    if "/" in text or os.sep in text or text.startswith((".", "~")) or _ends_as_gguf(text):
        return _path(text)
    return _catalog_name(text)


def _ends_as_gguf(text: str) -> bool:
    return text.lower().endswith(".gguf")


def _path(text: str) -> Reference:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return Reference("path", path=path)
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, no such user
        raise ModelNotFound(f"{text!r} cannot be a path: {error}") from error
    raise ModelNotFound(f"{text!r} is a folder" if is_folder else f"no file at {text!r}")


def _catalog_name(text: str) -> Reference:
    name, separator, asked = re.fullmatch(r"([^:@]*)([:@]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    by_id = entries()
    entry = by_id.get(name.lower())
    quant = normal_quant(asked)
    if entry is None or (separator and quant is None):
        raise UnknownModel(text, _closest(name.lower()))
    facts = entry.facts(quant)
    repository = facts.repository if facts else entry.repository
    return Reference("catalog", entry=entry, repository=repository, quant=quant)


def _closest(name: str) -> str | None:
    """Return the first id that begins with the name, else holds it, else resembles it."""
    bare = _bare(name)
    if len(bare) >= MIN_SHARED:
        starting = [id for id in entries() if _bare(id).startswith(bare)]
        holding = [id for id in entries() if bare in _bare(id)]
        if starting or holding:
            return (starting or holding)[0]
    near = difflib.get_close_matches(name, entries(), n=1, cutoff=0.5)
    return near[0] if near else None


def _bare(name: str) -> str:
    """Leave out what people write differently: "llama-3.1" and "llama3.1" are the same."""
    return re.sub(r"[\W_]", "", name)


def _hub_name(rest: str, text: str) -> Reference:
    """Read `org/repo[/file][:QUANT][@revision]`."""
    rest, _, revision = rest.partition("@")
    rest, _, asked = rest.partition(":")
    return _hub(text, rest.split("/"), asked or None, revision or None)


def _link(rest: str, text: str) -> Reference:
    """Read a page's address: `org/repo`, `org/repo/tree/REV`, `org/repo/blob|resolve/REV/file`."""
    segments = [unquote(segment) for segment in rest.rstrip("/").split("/")]
    last, _, asked = segments[-1].partition(":")
    segments[-1] = last
    revision = None
    if len(segments) > 3 and segments[2] in ("blob", "resolve", "tree"):
        view, revision = segments[2], segments[3]
        file = segments[4:] if view != "tree" else []
        segments = [*segments[:2], *file]
    return _hub(text, segments, asked or None, revision)


def _hub(text: str, segments: list[str], asked: str | None, revision: str | None) -> Reference:
    repository, file = "/".join(segments[:2]), "/".join(segments[2:]) or None
    quant = normal_quant(asked) if asked else None
    sound = (
        is_repository(repository)
        and (file is None or (is_safe(file) and _ends_as_gguf(file)))
        and (asked is None or quant is not None)
        and (revision is None or (_REVISION.fullmatch(revision) and is_safe(revision)))
    )
    if not sound:
        raise UnknownModel(text)
    return Reference("hub", repository=repository, file=file, quant=quant, revision=revision)
