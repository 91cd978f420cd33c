"""`conifer rm`: take models away, or with --all everything that Conifer wrote.

Files that another tool fetched into the shared cache go only where they are named: without --all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conifer_cli import errors, terminal
from conifer_cli.errors import Declined, Unreadable, UsageError
from conifer_cli.layout import size
from conifer_cli.models import name_of
from conifer_cli.prepare import Target, locate, open_store

if TYPE_CHECKING:
    from catalog.receipts import Receipt
    from catalog.store import Installed, Store

# Everything that Conifer writes into its own folder; docs/files.md says what each is.
OURS = ("headers", "history", "ledger.jsonl", "licences.json", "models", "prompts", "pulled")


def remove_models(names: Sequence[str], everything: bool, yes: bool) -> int:
    """Show what goes, ask, and remove it. everything: what is ours, models or not."""
    if everything == bool(names):
        raise UsageError("rm takes the names of models, or --all", "`conifer list` shows them.")
    store = open_store()
    named = [installed_model(locate(name)) for name in names]
    going = list({model.paths: model for model in named}.values())  # one may have two names
    rest: list[Path] = []
    if everything:
        going, rest = _ours(store), _leftovers(store)
    if not going and not rest:
        terminal.say("conifer: nothing of ours is here")
        return errors.OK
    for model in going:
        terminal.say(f"{name_of(model)}, {size(model.size_bytes)}, {model.paths[0]}")
    for path in rest:
        terminal.say(f"{path}, {size(_size(path))}")
    if not yes:
        if not terminal.can_ask():
            raise UsageError("removing needs --yes, as nobody can be asked here")
        if not terminal.confirm("Remove?"):
            raise Declined("nothing was removed")
    freed = sum(_remove(store, model) for model in going) + sum(_delete(path) for path in rest)
    terminal.say(f"{size(freed)} freed")
    return errors.OK


def installed_model(target: Target) -> Installed:
    """Return the model of a name, as the store has it. Raises UsageError where it has not."""
    if target.reference.path is not None:
        raise UsageError(f"{target.name} is a file of yours, and none that was pulled")
    model = open_store().locate(target.reference)
    if model is None:
        raise UsageError(f"{target.name} is not on this machine", "`conifer list` shows what is.")
    return model


def _remove(store: Store, model: Installed) -> int:
    from catalog import receipts

    freed = store.remove(model)
    for receipt in _receipts_of(model, receipts.read(store.home)):
        receipts.forget(store.home, receipt)
    return freed


def _ours(store: Store) -> list[Installed]:
    """Return the models that we fetched: those of packages, and those with a record."""
    from catalog import receipts

    known = receipts.read(store.home)
    return [
        model
        for model in store.installed()
        if model.repository is None or any(_receipts_of(model, known))
    ]


def _receipts_of(model: Installed, known: Iterable[Receipt]) -> list[Receipt]:
    """Return the records of a model's files, in whatever snapshot they lie."""
    return [
        receipt
        for receipt in known
        if receipt.repository == model.repository
        and any(path.as_posix().endswith(f"/{receipt.name}") for path in model.paths)
    ]


def _leftovers(store: Store) -> list[Path]:
    """Return what else is ours: unfinished transfers, and the files of our own folder."""
    from catalog.partial import unfinished

    own = [store.home / name for name in OURS]
    return [*unfinished(store.hub_cache), *(path for path in own if path.exists())]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _delete(path: Path) -> int:
    try:
        if not path.exists():
            return 0  # it held nothing but what is gone already
        freed = _size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise Unreadable(f"{error.filename or path}: {error.strerror or error}") from error
    return freed
