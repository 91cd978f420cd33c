"""Whether the bytes on the disk are still those that were promised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.facts import entries
from catalog.store import manifest
from catalog.store.cache import Installed, Store
from catalog.store.disk import disk_failures

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

CHUNK_BYTES = 2**22
_SHA256 = re.compile(r"[0-9a-f]{64}")


def promised(
    installed: Installed, store: Store, listed: Iterable[RemoteFile] = ()
) -> list[str | None]:
    """Return the SHA-256 that each file of a model must have, as hex; None where nobody said.

    The pinned one of a package's file, that of the hub for what we fetched, else the name of the
    blob, which is its hash where the hub keeps the file in its large storage. listed: what the hub
    says now, which counts where nothing here does.
    """
    if installed.repository is None:
        packages = (entry.package for entry in entries().values())
        return [p.sha256 for p in packages if p and p.file_name == installed.name]
    said = {(file.repository, file.commit, file.name): file.sha256 for file in listed}
    for receipt in manifest.read(store.home):
        said[receipt.repository, receipt.commit, receipt.name] = receipt.sha256
    found = []
    for path in installed.paths:
        blob = path.resolve().name
        name = _name_in_snapshot(path, installed)
        known = said.get((installed.repository, installed.commit or "", name))
        found.append(blob if _SHA256.fullmatch(blob) else known)
    return found


def hash_file(path: Path, tell: Callable[[int], None]) -> str:
    """Return a file's SHA-256 as hex. tell: how many bytes of it were read. Raises StoreError."""
    digest, done = hashlib.sha256(), 0
    with disk_failures(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tell(done)
    return digest.hexdigest()


def _name_in_snapshot(path: Path, installed: Installed) -> str:
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index(installed.commit or "")
    return "/".join(parts[at + 1 :])
