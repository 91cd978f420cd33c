"""`conifer rm`: delete models or, with --all, every file that Conifer wrote and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate, open_store
from conifer_cli.commands.list import name_of
from conifer_cli.errors import Declined, Unreadable, UsageError, why
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, size

if TYPE_CHECKING:
    from catalog.store.store import Installed, Store

_HEX = "[0-9a-f]"
FETCHING = ".fetch-"  # name prefix of temporary folders for package downloads
# Files in Conifer's home folder, except package files. Temporary files are left behind if Conifer
# is killed; see docs/files.md. Only the first pattern matches folders.
OURS = (
    f"models/{FETCHING}*",
    *("history", "ledger.jsonl", "licences.json"),
    *("headers/models--*/**/*.header", "pulled/models--*/*.json"),
    *(f"prompts/{16 * _HEX}/{name}" for name in (f"{32 * _HEX}.prompt", ".*.prompt.*.part")),
    *(f"{folder}.*.{8 * _HEX}.tmp" for folder in ("headers/models--*/**/", "pulled/models--*/")),
    *(f".{name}.{8 * _HEX}.tmp" for name in ("history", "ledger.jsonl", "licences.json")),
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

    everything: delete every file that Conifer wrote.
    """
    if everything == bool(names):
        message = "rm takes either model names or --all"
        raise UsageError(message, "Run `conifer list` to see the names.")
    store = open_store()
    named = [model for name in names for model in _revisions(locate(name), store)]
    going = list({model.paths: model for model in named}.values())  # names can repeat a model
    rest: dict[Path, list[Path]] = {}
    if everything:
        going = store.ours()
        rest = _leftovers(store, going)
    if not going and not rest:
        console.log("conifer: nothing to remove")
        return errors.OK
    for model in going:
        console.log(f"{name_of(model)}, {size(model.size_bytes)}, {model.paths[0]}")
    for place, paths in rest.items():
        of = f" in {counted(len(paths), 'file')}" if place.is_dir() else ""
        console.log(f"{place}, {size(sum(map(_size, paths)))}{of}")
    if not yes:
        if not console.can_ask():
            reason = "removal requires confirmation, but there is no terminal"
            raise UsageError(reason, "Pass --yes to confirm.")
        if not console.confirm("Remove?"):
            raise Declined("nothing was removed")
    freed = sum(store.remove(model) for model in going)
    freed += sum(_delete(path) for paths in rest.values() for path in paths)
    if everything:
        _tidy(store)
    console.log(f"{size(freed)} freed")
    return errors.OK


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
    """Group Conifer's other files by top-level path in its home folder.

    Part files are listed one by one.
    """
    from catalog.download.part_file import unfinished

    found = {path: [path] for path in unfinished(store.hub_cache)}
    models = {path for model in going for path in model.paths}
    own = (path for glob in OURS for path in sorted(store.home.glob(glob)))
    for path in (*store.packages.paths(), *own):
        if path not in models and path.exists() and path.is_dir() == path.name.startswith(FETCHING):
            place = store.home / path.relative_to(store.home).parts[0]
            found.setdefault(place, []).append(path)
    return found


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _delete(path: Path) -> int:
    try:
        if not path.exists():
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
        folders += sorted(store.home.glob(glob), reverse=True)  # inner folders first
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()
