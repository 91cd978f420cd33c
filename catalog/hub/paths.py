"""Folder names in the Hub's cache, and patterns for the Hub's identifiers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from catalog.errors import StoreError
from catalog.file_names import is_repository
from catalog.files import real

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{7,64}")


def folder_name(repository: str) -> str:
    """Return a repository's cache folder name. Raises StoreError for an invalid repository."""
    if not is_repository(repository):
        raise StoreError(f"{repository!r} is not a valid repository name")
    return f"models--{repository.replace('/', '--')}"


def repository_folder(parent: Path, repository: str) -> Path:
    """Return a repository's folder in `parent`, with its name as on disk.

    Like the Hub, this ignores case. Raises StoreError for an invalid repository.
    """
    name = folder_name(repository)
    try:
        names = os.listdir(parent)
    except OSError:
        names = []
    same = sorted(other for other in names if other.lower() == name.lower())
    return parent / (name if name in names or not same else same[0])


def repository_of(folder: str) -> str | None:
    """Return the repository that a cache folder belongs to; None for any other folder."""
    repository = folder.removeprefix("models--").replace("--", "/")
    return repository if is_repository(repository) else None


def blob_of(path: Path) -> Path:
    """Return the blob that a snapshot's link names; the path itself if it is not a link.

    Follows one link only: a blob may itself be a link to the store that repositories share.
    """
    try:
        blob = path.parent / os.readlink(path)
    except OSError:
        return path
    return real(blob.parent) / blob.name
