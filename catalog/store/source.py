"""What the sources of models have in common, and the limits of the disk."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from catalog.errors import NoSpace, StoreError
from catalog.resolve import Reference

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

SPARE_BYTES = 2**30  # left free on the disk
HASH_BYTES = 2**22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Source(Protocol):
    """The files on disk from one origin: the Hub, or the Python package index."""

    def locate(self, reference: Reference) -> Installed | None:
        """Return the model of a reference; None if it is incomplete or from another source."""

    def installed(self) -> Iterator[Installed]:
        """Yield all complete models."""

    def is_ours(self, installed: Installed) -> bool:
        """True if Conifer downloaded a model, rather than another tool."""

    def expected_hashes(
        self, installed: Installed, listed: Iterable[RemoteFile]
    ) -> list[str | None]:
        """Return the SHA-256 that each file must have, as hex; None if unknown.

        listed: the Hub's current listing, used where nothing on disk records a hash.
        """

    def remove(self, installed: Installed) -> int:
        """Delete a model's files and what only they need. Returns the bytes freed."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on disk with all its parts in order. `model_id` is its catalog id, if any.

    `repository` and `commit` are None for files from the package index.
    """

    model_id: str | None
    repository: str | None
    commit: str | None
    quant: str | None
    name: str
    paths: tuple[Path, ...]
    size_bytes: int
    source: Source = field(repr=False, compare=False)

    def expected_hashes(self, listed: Iterable[RemoteFile] = ()) -> list[str | None]:
        """Return the SHA-256 of each file as hex, None if unknown. See `Source`."""
        return self.source.expected_hashes(self, listed)


def require_space(folder: Path, need_bytes: int) -> None:
    """Raise NoSpace unless 1 GiB stays free on the disk. `folder` need not exist."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    short_bytes = need_bytes + SPARE_BYTES - shutil.disk_usage(existing).free
    if short_bytes > 0:
        raise NoSpace(
            f"not enough disk space at {folder}: {short_bytes:,} bytes short of leaving 1 GiB free"
        )


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Turn OSError into StoreError."""
    try:
        yield
    except BrokenPipeError:  # from a progress callback, not the disk
        raise
    except OSError as error:
        where = error.filename or folder
        if error.errno in _FULL:
            raise StoreError(f"{where}: the disk is full; the partial download is kept") from error
        raise StoreError(f"{where}: {error.strerror or error}") from error


def hash_file(path: Path, on_progress: Callable[[int], None]) -> str:
    """Return a file's SHA-256 as hex. on_progress receives the bytes read. Raises StoreError."""
    digest, done = hashlib.sha256(), 0
    with disk_failures(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(HASH_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    return digest.hexdigest()
