"""Parse `hf:` names and links to the Hub, in every form that its pages use."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, unquote

from catalog.errors import BadName
from catalog.file_names import is_repository, is_safe, normal_quant

_HUB_NAME = re.compile(r"hf:(?://)?(.*)", re.IGNORECASE | re.DOTALL)
_LINK = re.compile(
    r"(?:https?://(?:[^/?#@]*@)?)?(?:www\.)?(?:huggingface\.co|hf\.co)(?::\d+)?"
    r"(?:/+([^?#]*))?(?:\?([^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_ANY_LINK = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.IGNORECASE | re.DOTALL)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

# Pages that show a file, a folder or a whole repository at a revision.
_FILE_VIEWS = ("blob", "resolve", "raw", "blame", "commits", "edit", "delete")
_VIEWS = (*_FILE_VIEWS, "tree", "commit")
# Pages about a repository that name no revision.
_TABS = ("discussions", "settings", "activity", "community")
# First path segments that are not an organisation, and the pages that they lead to.
_NO_MODEL = {
    "datasets": "a dataset",
    "spaces": "a Space",
    "collections": "a collection",
    "buckets": "a bucket",
    "papers": "a paper",
    "models": "a list of models",
    "docs": "documentation",
    "blog": "a blog post",
    "posts": "a post",
}


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository on the Hub, or a part of it. `folder` has no slash at its end."""

    repository: str
    file: str | None = None
    folder: str | None = None
    quant: str | None = None
    revision: str | None = None


def parse(text: str, endpoint: str | None = None) -> HubName | None:
    """Parse an `hf:` name or a link. None for any other text.

    endpoint: the URL of the Hub in use, if it is a mirror. Raises BadName for a link that leads
    to no GGUF model.
    """
    text = text.strip().removeprefix("<").removesuffix(">")
    if found := _HUB_NAME.fullmatch(text):
        return _parsed(text, found[1], "")
    if found := _LINK.fullmatch(text):
        return _parsed(text, found[1] or "", found[2] or "")
    if not _ANY_LINK.fullmatch(text):
        return None
    if endpoint and text.lower().startswith(f"{endpoint.lower().rstrip('/')}/"):
        rest, _, query = text[len(endpoint.rstrip("/")) :].partition("#")[0].partition("?")
        return _parsed(text, rest, query)
    hint = "paste a link to the model's page there, or download the file and pass its path"
    raise BadName(text, f"the link is not to the Hugging Face Hub; {hint}")


def _parsed(text: str, path: str, query: str) -> HubName:
    segments = _without_api([unquote(segment) for segment in path.split("/") if segment])
    if segments and (kind := _NO_MODEL.get(segments[0].lower())):
        raise BadName(text, f"the link is to {kind}, not to a model's repository")
    if len(segments) < 2:
        raise BadName(text, "the name has no repository; write hf:organisation/repository")
    name = _page(segments) if segments[2:3] and segments[2] in _VIEWS else _plain(segments)
    if shown := parse_qs(query).get("show_file_info"):  # the file viewer, over any page
        name = replace(name, file=shown[0], folder=None)
    return _checked(text, name)


def _page(segments: list[str]) -> HubName:
    """Parse `org/repo/VIEW/REVISION/path`."""
    *rest, last = segments[3:] or [""]
    last, _, quant = last.partition(":")
    revision, inside = _revision_and_path([*rest, last])
    repository, view = "/".join(segments[:2]), segments[2]
    file = inside if view in _FILE_VIEWS else None
    folder = inside if view == "tree" else None
    return HubName(repository, file, folder, quant or None, revision)


def _plain(segments: list[str]) -> HubName:
    """Parse `org/repo[/file][:QUANT][@revision]` and `org/repo@revision/file`."""
    name, _, later = "/".join(segments).partition("@")
    name, _, quant = name.partition(":")
    later, _, quant_later = later.partition(":")
    if later.lower().endswith(".gguf"):
        revision, file = _revision_and_path(later.split("/"))
    else:
        revision, file = later or None, None
    repository, rest = "/".join(name.split("/")[:2]), name.split("/")[2:]
    if rest and rest[0] not in _TABS:
        file = "/".join(rest)
    quant = quant or quant_later
    return HubName(repository.removesuffix(".git"), file, None, quant or None, revision)


def _without_api(segments: list[str]) -> list[str]:
    """Drop the prefixes that the Hub's API and huggingface_hub's file system add."""
    if segments[:2] == ["api", "models"]:
        segments = [segment for segment in segments[2:] if segment != "revision"]
    if segments[:1] == ["models"] and len(segments) > 2:
        segments = segments[1:]
    return segments


def _revision_and_path(segments: list[str]) -> tuple[str | None, str | None]:
    """Split `REVISION/path`. Only refs/KIND/NAME contains slashes that are not percent-encoded."""
    length = 3 if segments[0] == "refs" else 1
    return "/".join(segments[:length]) or None, "/".join(segments[length:]) or None


def _checked(text: str, name: HubName) -> HubName:
    if not is_repository(name.repository):
        raise BadName(text, f"{name.repository!r} is not a valid repository name")
    if name.file is not None:
        if not is_safe(name.file):
            raise BadName(text, f"{name.file!r} is not a valid file name")
        if not name.file.lower().endswith(".gguf"):
            raise BadName(text, f"{name.file} is not a GGUF file")
    if name.folder is not None and not is_safe(name.folder):
        raise BadName(text, f"{name.folder!r} is not a valid folder name")
    quant = normal_quant(name.quant) if name.quant else None
    if name.quant and quant is None:
        raise BadName(text, f"{name.quant!r} is not a valid quantisation")
    revision = name.revision
    if revision is not None and not (_REVISION.fullmatch(revision) and is_safe(revision)):
        raise BadName(text, f"{revision!r} is not a valid revision")
    return HubName(name.repository, name.file, name.folder, quant, revision)
