"""Find unfinished downloads by their partial files in the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from catalog.download import part_file
from catalog.errors import ModelNotFound
from catalog.file_names import parts, quant_of
from catalog.files import files_below, is_locked, subfolders
from catalog.hub.paths import repository_of
from catalog.resolve import Reference
from catalog.store import manifest, renames
from catalog.store.disk import disk_failures
from catalog.store.manifest import ManifestEntry
from catalog.store.store import Store, model_id_of


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A model whose download has not finished.

    name: the model's first file in the repository. Without a record, name, commit and quant are
    None. size_bytes: the size of the recorded files. partial, whole: the incomplete and the
    complete files. active: True if a process is downloading the model.
    """

    model_id: str | None
    repository: str
    commit: str | None
    quant: str | None
    name: str | None
    size_bytes: int
    present_bytes: int
    partial: tuple[Path, ...]
    whole: tuple[Path, ...]
    active: bool

    @property
    def path(self) -> Path:
        return (*self.partial, *self.whole)[0]


def unfinished(store: Store) -> list[Unfinished]:
    """List all unfinished downloads in the Hub's cache."""
    partial: dict[tuple[str, str], list[Path]] = {}
    for repository, sha256, path in _partial_files(store.hub_cache):
        partial.setdefault((repository.lower(), sha256), []).append(path)
    models: dict[tuple[str, ...], list[ManifestEntry]] = {}
    for entry in manifest.read(store.home):
        key = (entry.repository, entry.commit, *parts(entry.name))
        models.setdefault(key, []).append(entry)
    found = [_recorded(store, entries, partial) for entries in models.values()]
    found += map(_unrecorded, partial.values())
    return sorted(filter(None, found), key=lambda one: (one.repository, one.name or ""))


def remove(store: Store, one: Unfinished) -> int:
    """Delete a download's files and records. Returns the bytes freed. Raises StoreError."""
    folder = store.hub.repository_folder(one.repository)
    freed = sum(map(part_file.allocated_bytes, one.partial))
    names = parts(one.name) if one.name else ()
    with disk_failures(folder):
        for path in one.partial:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
        freed += store.hub.remove_links(folder, one.whole)
        for entry in manifest.read(store.home):
            at = (entry.repository, entry.commit)
            if at == (one.repository, one.commit) and entry.name in names:
                manifest.remove(store.home, entry, manifest.cache_name(store.hub_cache))
    return freed


def select(store: Store, reference: Reference, among: Iterable[Unfinished]) -> list[Unfinished]:
    """Return the unfinished downloads that match a reference."""
    asked = {name.lower() for name in store.hub.spellings(reference.repository or "")}
    here = [
        one
        for one in among
        if one.repository.lower() in asked and reference.revision in (None, one.commit)
    ]
    names = [name for one in here if one.name for name in parts(one.name)]
    chosen: tuple[str | None, ...] = ()
    with suppress(ModelNotFound):
        chosen = reference.select(names).names
    if reference.kind == "hub" and reference.file is None and reference.quant is None:
        chosen += (None,)  # the download's file is not on record
    return [one for one in here if one.name in chosen]


def active_files(store: Store) -> set[tuple[str, str]]:
    """Return (repository, SHA-256) of the files that processes are downloading now.

    The repositories are in lower case.
    """
    active = {
        (repository.lower(), sha256)
        for repository, sha256, path in _partial_files(store.hub_cache)
        if not part_file.is_abandoned(path)
    }
    for path in files_below(store.hub_cache / ".locks", 1):
        repository = repository_of(path.parent.name)
        if repository is not None and path.suffix == ".lock" and is_locked(path):
            active.add((repository.lower(), path.stem))
    return active


def _partial_files(hub_cache: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (repository, SHA-256, path) of each partial file."""
    for folder in subfolders(hub_cache):
        if (repository := repository_of(folder.name)) is not None:
            for path in part_file.below(folder / "blobs"):
                yield repository, path.name.partition(".")[0], path


def _recorded(
    store: Store, entries: list[ManifestEntry], partial: dict[tuple[str, str], list[Path]]
) -> Unfinished | None:
    """Describe a model; None if its download has ended or left nothing.

    Removes the model's files from `partial`.
    """
    first = entries[0]
    snapshot = store.hub.repository_folder(first.repository) / "snapshots" / first.commit
    names = parts(first.name)
    whole = [path for name in names if (path := snapshot / name).is_file()]
    sizes = {entry.name: entry.size_bytes for entry in entries}
    present_bytes = sum(sizes.get(path.relative_to(snapshot).as_posix(), 0) for path in whole)
    mine: list[Path] = []
    for entry in entries:
        paths = partial.pop((entry.repository.lower(), entry.sha256), [])
        present_bytes += max(map(part_file.allocated_bytes, paths), default=0)
        mine += paths
    if not mine and len(whole) in (0, len(names)):
        return None
    return Unfinished(
        model_id=model_id_of(first.repository, quant_of(names[0]), renames.read(store.home)),
        repository=first.repository,
        commit=first.commit,
        quant=quant_of(names[0]),
        name=names[0],
        size_bytes=sum(sizes.values()),
        present_bytes=present_bytes,
        partial=tuple(mine),
        whole=tuple(whole),
        active=not all(map(part_file.is_abandoned, mine)),
    )


def _unrecorded(paths: list[Path]) -> Unfinished:
    repository = repository_of(paths[0].parents[1].name) or ""
    size_bytes = max(map(part_file.whole_bytes, paths))
    present_bytes = max(map(part_file.allocated_bytes, paths))
    active = not all(map(part_file.is_abandoned, paths))
    facts = (size_bytes, present_bytes, tuple(paths), (), active)
    return Unfinished(None, repository, None, None, None, *facts)
