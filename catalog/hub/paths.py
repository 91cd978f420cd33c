"""Names in the Hub's cache layout, and the identifiers that the Hub uses."""

from __future__ import annotations

import re

from catalog.errors import StoreError
from catalog.file_names import is_repository

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{7,64}")
FOLDERS = "models--*--*"  # a glob for the folders of all repositories


def folder_name(repository: str) -> str:
    """Return the cache folder of `org/repo`. Raises StoreError if the name is malformed."""
    if not is_repository(repository):
        raise StoreError(f"{repository!r} is not a repository name")
    return f"models--{repository.replace('/', '--')}"


def repository_of(folder: str) -> str | None:
    """Return the repository of a cache folder; None for another kind of folder."""
    repository = folder.removeprefix("models--").replace("--", "/")
    return repository if is_repository(repository) else None
