"""`conifer rm`: delete models or, with --all, every file that Conifer wrote and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.files import files_below, is_locked
from catalog.store.store import name_of
from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate
from conifer_cli.commands.list import amount
from conifer_cli.errors import Declined, Unreadable, UsageError, why
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, size

if TYPE_CHECKING:
    from catalog.download.unfinished import Unfinished
    from catalog.store.store import Installed, Store

_HEX = "[0-9a-f]"
FETCHING = ".fetch-"  # name prefix of temporary folders for package downloads
_SINGLE = (
    "conversations.db",
    "gpu.json",
    "history",
    "ledger.jsonl",
    "licences.json",
    "renamed.json",
)
# Files in Conifer's home folder, except package files. Temporary files are left behind if Conifer
# is killed; see docs/files.md. Only the first pattern matches folders.
OURS = (
    f"models/{FETCHING}*",
    *_SINGLE,
    *("headers/models--*/**/*.header", "pulled/models--*/*.json"),
    *(f"prompts/{16 * _HEX}/{name}" for name in (f"{32 * _HEX}.prompt", ".*.prompt.*.part")),
    *(f"{folder}.*.{8 * _HEX}.tmp" for folder in ("headers/models--*/**/", "pulled/models--*/")),
    *(f".{name}.{8 * _HEX}.tmp" for name in _SINGLE),
    f"prompts/{16 * _HEX}/.*.prompt.{8 * _HEX}.tmp",
)
# Folders that contain these files, inner folders first.
FOLDERS = (
    "headers/models--*/**",
    f"prompts/{16 * _HEX}",
    "pulled/models--*",
    *("headers", "models", "prompts", "pulled"),
)


def remove_models(names: Sequence[str], everything: bool, yes: bool) -> int:
    """List files, ask for confirmation and delete them.

    everything: delete every file that Conifer wrote, except those of downloads in progress.
    """
    from catalog.download import unfinished

    if everything == bool(names):
        message = "rm takes either model names or --all"
        raise UsageError(message, "Run `conifer list` to see the names.")
    store = open_store()
    begun = unfinished.unfinished(store)
    going, partial = _named(names, store, begun)
    rest: dict[Path, list[Path]] = {}
    if everything:
        going = store.ours()
        partial = [one for one in begun if not one.active]
        rest = _leftovers(store, going)
        for one in begun:
            if one.active:
                console.note(f"{name_of(one)} is being downloaded; keeping its files")
    if not going and not partial and not rest:
        console.note("nothing to remove")
        return errors.OK
    for model in going:
        console.log(f"{name_of(model)}, {size(model.size_bytes)}, {model.paths[0]}")
    for one in partial:
        console.log(f"{name_of(one)}, {amount(one)} (unfinished), {one.path}")
    for place, paths in rest.items():
        of = f" in {counted(len(paths), 'file')}" if place.is_dir() else ""
        console.log(f"{place}, {size(sum(map(_size, paths)))}{of}")
    if not yes:
        if not console.can_ask():
            reason = "removal requires confirmation, but there is no terminal"
            raise UsageError(reason, "Pass --yes to confirm.")
        if not console.confirm("Remove?", default=False):
            raise Declined("nothing was removed")
    freed = sum(store.remove(model) for model in going)
    freed += sum(unfinished.remove(store, one) for one in partial)
    freed += sum(_delete(path) for paths in rest.values() for path in paths)
    if everything:
        _tidy(store)
    console.log(f"{size(freed)} freed")
    return errors.OK


def _named(
    names: Sequence[str], store: Store, begun: Sequence[Unfinished]
) -> tuple[list[Installed], list[Unfinished]]:
    """Return the models and the unfinished downloads with these names, each once."""
    from catalog.download import unfinished

    going: dict[tuple[Path, ...], Installed] = {}
    partial: dict[Path, Unfinished] = {}
    for name in names:
        named = locate(name)
        matching = unfinished.select(store, named.reference, begun)
        for one in matching:
            if one.active:
                reason = f"{name} is being downloaded by another process"
                raise UsageError(reason, "Stop that process first.")
        if not matching or store.locate(named.reference):
            going |= {model.paths: model for model in _revisions(named, store)}
        partial |= {one.path: one for one in matching}
    return list(going.values()), list(partial.values())


def installed_model(named: RequestedModel) -> Installed:
    """Return the downloaded model. Raises UsageError if it is not on disk."""
    if named.reference.path is not None:
        raise UsageError(f"{named.name} is your own file, not a downloaded model")
    model = open_store().locate(named.reference)
    if model is None:
        raise UsageError(
            f"{named.name} is not on this machine", "Run `conifer list` to see downloaded models."
        )
    return model


def _revisions(named: RequestedModel, store: Store) -> list[Installed]:
    model = installed_model(named)
    if named.reference.revision is not None:
        return [model]
    same = (model.repository, model.name)
    return [other for other in store.installed() if (other.repository, other.name) == same]


def _leftovers(store: Store, going: Iterable[Installed]) -> dict[Path, list[Path]]:
    """Group Conifer's other files by top-level path in its home folder."""
    found: dict[Path, list[Path]] = {}
    kept = {path for model in going for path in model.paths} | _records_in_use(store)
    own = (path for glob in OURS for path in _glob(store.home, glob))
    for path in (*store.packages.paths(), *own):
        is_folder = os.path.isdir(path)
        if path in kept or not os.path.lexists(path):
            continue
        if is_folder == path.name.startswith(FETCHING) and not (is_folder and is_locked(path)):
            place = store.home / path.relative_to(store.home).parts[0]
            found.setdefault(place, []).append(path)
    return found


def _records_in_use(store: Store) -> set[Path]:
    """Return the records of files in other caches, and of models that are being downloaded."""
    from catalog.download.unfinished import active_files
    from catalog.store import manifest

    here, active = manifest.cache_name(store.hub_cache), active_files(store)
    known = manifest.read(store.home)
    busy = {(e.repository, e.commit) for e in known if (e.repository.lower(), e.sha256) in active}
    return {
        manifest.path_of(store.home, entry)
        for entry in known
        if entry.caches != [here] or (entry.repository, entry.commit) in busy
    }


def _glob(home: Path, pattern: str) -> list[Path]:
    try:
        return sorted(home.glob(pattern))
    except (OSError, RecursionError):
        return []


def _size(path: Path) -> int:
    if os.path.isdir(path) and not os.path.islink(path):
        return sum(map(_size, files_below(path)))
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _delete(path: Path) -> int:
    try:
        if not os.path.lexists(path):
            return 0  # deleted with a model
        freed = _size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise Unreadable(f"{error.filename or path}: {why(error)}") from error
    return freed


def _tidy(store: Store) -> None:
    folders = [path.parent for path in store.packages.paths()]
    for glob in FOLDERS:
        folders += reversed(_glob(store.home, glob))  # inner folders first
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()
