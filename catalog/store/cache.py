"""What is on disk: where a model's files belong, which are there, and taking them away.

Hub files lie in huggingface_hub's own cache layout, so that other tools find ours and we find
theirs: `models--org--repo/{blobs,refs,snapshots/<commit>/<name>}`. The starter lies under
`<home>/models/<id>/`. Looking never writes and never opens a socket. Neither this file nor its
callers below the program know environment variables: both folders are given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.entry import PackageSource
from catalog.errors import ModelNotFound, StoreError
from catalog.facts import entries
from catalog.names import file_sets, is_repository, is_safe, select
from catalog.resolve import Reference

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on disk: all its parts, in order. `model_id` is its id in the catalog, if it has one.

    `repository` and `commit` are None for a file from the package index.
    """

    model_id: str | None
    repository: str | None
    commit: str | None
    quant: str | None
    name: str
    paths: tuple[Path, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Store:
    """The two folders that models lie in."""

    home: Path
    hub_cache: Path

    def find(self, reference: Reference) -> list[Path] | None:
        """Return the files a reference means, all parts in order, or None if they aren't here."""
        if reference.path is not None:
            return [reference.path]
        installed = self.locate(reference)
        return list(installed.paths) if installed else None

    def locate(self, reference: Reference) -> Installed | None:
        """Return the installed model that a catalog or hub reference means, if it is whole."""
        if reference.package is not None:
            return self._package(reference.package)
        if reference.repository is None:
            return None
        folder = self.repository_folder(reference.repository)
        facts = reference.facts
        for snapshot in _snapshots(folder, reference.revision):
            try:
                chosen = select(
                    _names(snapshot),
                    reference.repository,
                    quant=reference.wanted_quant,
                    file=reference.file,
                    known=facts.names if facts else (),
                )
            except ModelNotFound:
                continue
            return _installed(reference.repository, snapshot, chosen.names, chosen.label)
        return None

    def installed(self) -> list[Installed]:
        """List every whole model on disk, the catalog's package files first."""
        packages = (entry.package for entry in entries().values())
        found = [self._package(package) for package in packages if package is not None]
        for folder in sorted(self.hub_cache.glob("models--*--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/")
            if not is_repository(repository):
                continue
            for snapshot in _snapshots(folder, None):
                for files in file_sets(_names(snapshot)):
                    if not files.missing:
                        found.append(_installed(repository, snapshot, files.names, files.label))
        return [installed for installed in found if installed is not None]

    def remove(self, installed: Installed) -> int:
        """Delete a model's files and whatever only they needed. Returns the bytes freed."""
        try:
            if installed.repository is None:
                freed = sum(_unlink(path) for path in installed.paths)
                _remove_empty(installed.paths[0].parent)
            else:
                folder = self.repository_folder(installed.repository)
                freed = sum(_remove_pointer(path, folder) for path in installed.paths)
                _prune(folder)
        except OSError as error:
            raise StoreError(f"cannot remove {installed.name}: {error}") from error
        return freed

    def discard(self, path: Path) -> None:
        """Delete a file whose bytes are wrong, and the blob it leads to, whatever else does too."""
        blob = path.resolve()
        try:
            path.unlink(missing_ok=True)
            if blob.parent.name == "blobs" and blob.is_relative_to(self.hub_cache.resolve()):
                blob.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error

    def package_path(self, package: PackageSource) -> Path:
        """Return where the file of a package belongs."""
        return self.home / "models" / package.model_id / package.file_name

    def repository_folder(self, repository: str) -> Path:
        """Return a repository's folder in the cache. Raises StoreError for a hostile name."""
        if not is_repository(repository):
            raise StoreError(f"{repository!r} is not the name of a repository")
        return self.hub_cache / f"models--{repository.replace('/', '--')}"

    def blob_path(self, file: RemoteFile) -> Path:
        """Return where the bytes of a remote file belong."""
        if not file.sha256 or not _SHA256.fullmatch(file.sha256):
            raise StoreError(f"{file.name}: the hub names no SHA-256 for it")
        return self._inside(self.repository_folder(file.repository) / "blobs" / file.sha256)

    def pointer_path(self, file: RemoteFile) -> Path:
        """Return the path under which a remote file is opened."""
        if not is_safe(file.name) or not _COMMIT.fullmatch(file.commit):
            raise StoreError(f"{file.name!r} may not become a path")
        folder = self.repository_folder(file.repository) / "snapshots" / file.commit
        return self._inside(folder / file.name)

    def ref_path(self, file: RemoteFile) -> Path:
        """Return the path that holds the commit of a branch or tag."""
        if not is_safe(file.revision):
            raise StoreError(f"{file.revision!r} may not become a path")
        return self._inside(self.repository_folder(file.repository) / "refs" / file.revision)

    def _inside(self, path: Path) -> Path:
        """Refuse a path that a link already on disk would lead out of the cache."""
        if not path.parent.resolve().is_relative_to(self.hub_cache.resolve()):
            raise StoreError(f"{path.parent} leads out of {self.hub_cache}")
        return path

    def _package(self, package: PackageSource) -> Installed | None:
        path = self.package_path(package)
        if _size(path) != package.size_bytes:
            return None
        return Installed(
            model_id=package.model_id,
            repository=None,
            commit=None,
            quant=package.quant,
            name=package.file_name,
            paths=(path,),
            size_bytes=package.size_bytes,
        )


def _snapshots(folder: Path, revision: str | None) -> Iterator[Path]:
    """Yield the snapshots that a revision may mean: its own; for None main's, then the newest."""
    commit = _ref(folder, revision or "main")
    if revision is not None:
        if commit is None and _COMMIT.fullmatch(revision):
            commit = revision
        if commit is not None and (folder / "snapshots" / commit).is_dir():
            yield folder / "snapshots" / commit
        return
    try:
        found = [s for s in (folder / "snapshots").iterdir() if s.is_dir()]
        found.sort(key=lambda s: (s.name == commit, s.stat().st_mtime, s.name), reverse=True)
    except OSError:
        return
    yield from (s for s in found if _COMMIT.fullmatch(s.name))


def _ref(folder: Path, revision: str) -> str | None:
    if not is_safe(revision):
        return None
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _names(snapshot: Path) -> list[str]:
    """Return the names of the GGUF files of a snapshot whose bytes are there."""
    found = []
    for folder, _, files in os.walk(snapshot):
        for file in files:
            path = Path(folder, file)
            if file.lower().endswith(".gguf") and path.is_file():
                found.append(path.relative_to(snapshot).as_posix())
    return found


def _installed(
    repository: str, snapshot: Path, names: tuple[str, ...], quant: str | None
) -> Installed:
    paths = tuple(snapshot / name for name in names)
    sizes = sum(_size(path) or 0 for path in paths)
    model_id = _model_id(repository, quant)
    return Installed(model_id, repository, snapshot.name, quant, names[0], paths, sizes)


def _model_id(repository: str, quant: str | None) -> str | None:
    """Return the id of the catalog entry that this quantisation of a repository belongs to."""
    for entry in entries().values():
        facts = next((f for f in entry.files if f.quant == quant), None)
        if (facts.repository if facts else entry.repository) == repository:
            return entry.id
    return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _unlink(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size


def _remove_pointer(path: Path, folder: Path) -> int:
    """Unlink a snapshot's file, and its blob once no other snapshot points there."""
    if not path.is_symlink():
        return _unlink(path)
    blob = path.resolve()
    path.unlink()
    others = (p for p in (folder / "snapshots").rglob("*") if p.is_symlink())
    ours = blob.parent == (folder / "blobs").resolve()
    return _unlink(blob) if ours and all(p.resolve() != blob for p in others) else 0


def _prune(folder: Path) -> None:
    """Remove a repository's empty folders, and refs to snapshots that are gone."""
    for snapshot in (folder / "snapshots").iterdir():
        _remove_empty(snapshot)
    for ref in (folder / "refs").rglob("*"):
        if ref.is_file() and not (folder / "snapshots" / (_ref_text(ref))).is_dir():
            ref.unlink()
    _remove_empty(folder)


def _ref_text(ref: Path) -> str:
    return ref.read_text(encoding="ascii", errors="replace").strip() or "none"


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those in it, as far as they hold no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        if not any(Path(path).iterdir()):
            Path(path).rmdir()
