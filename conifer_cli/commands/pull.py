"""`conifer pull`: download a model if it fits this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import (
    RequestedModel,
    announcement,
    connect,
    ensure,
    judge,
    licence_of,
    locate,
    streaming_of,
)
from conifer_cli.commands.verify import DAMAGED, UNKNOWN, hashed
from conifer_cli.fit.headline import headline
from conifer_cli.fit.streaming import wording
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size
from conifer_cli.terminal.layout import Line

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile
    from catalog.store.store import Installed


def pull_models(
    names: Sequence[str], request: FitRequest, update: bool, dry_run: bool, as_json: bool
) -> int:
    """Download models one after another. Return the exit code of the first failure.

    dry_run: say what would be downloaded, and download nothing.
    """
    codes = []
    for name in names:
        try:
            codes.append(
                _describe(name, request) if dry_run else pull_model(name, request, update, as_json)
            )
        except errors.known_exceptions() as error:
            if len(names) == 1:
                raise
            codes.append(console.report(error))
    return next(filter(None, codes), errors.OK)


def _describe(name: str, request: FitRequest) -> int:
    """Print the verdict on a model, and what `pull` would download."""
    model = locate(name)
    report = judge(model, request)
    found = streaming_of(report, request)
    rate = found.rate if found else None
    lines: list[Line] = [[("", f"{report.name}: "), *headline(report, rate)]]
    lines += wording.lines(found) if found else []
    if report.paths:
        lines.append(f"nothing to download: {report.paths[0]} is on this machine")
    else:
        lines.append(f"would download {announcement(model, report, open_store())}")
    console.print_lines(lines)
    return errors.OK if request.accepts(report.verdict.kind) else errors.NO_ROOM


def pull_model(name: str, request: FitRequest, update: bool = False, as_json: bool = False) -> int:
    """Download a model and print the path of its file or first part.

    If the model is on disk, report any newer revision on the Hub; with `update`, download that
    revision. With `request.force`, hash the files on disk and download damaged ones again.
    """
    model = locate(name)
    newer = _newer(model)
    if newer and update:
        pinned = replace(model.reference, revision=newer[0].commit)
        report = judge(replace(model, reference=pinned), request)
        report = replace(report, remote=tuple(newer), paths=())
    else:
        report = _judge_hashed(model, request) if request.force else judge(model, request)
    was_here = bool(report.paths)
    report = ensure(model, report, request)
    how = "is on this machine" if was_here else "is downloaded, verified (SHA-256)"
    console.note(f"{report.name} {how}, {size(report.size_bytes)}")
    if console.can_ask():
        run = wording.command(name) if report.streaming else f"`conifer run {name}`"
        console.note(f"run it with {run}")
    if newer and not update:
        console.note(f"the Hub has a newer revision: {newer[0].commit[:7]}")
        console.log(f"Run `conifer pull {name} --update` to download it.")
    if as_json:
        console.print_json(_document(model, report, was_here, newer if not update else ()))
    else:
        console.print_lines([str(report.paths[0])])
    return errors.OK


def _newer(model: RequestedModel) -> Sequence[RemoteFile]:
    """Return the Hub's files if they differ from the local ones. Log Hub failures."""
    from catalog import CatalogError

    reference = model.reference
    here = open_store().locate(reference)
    if here is None or here.commit is None or reference.revision is not None:
        return ()
    try:
        files = connect().find(replace(reference, quant=reference.quant or here.quant))
    except CatalogError as error:
        console.note(f"cannot check for a newer revision: {error}")
        return ()
    hashes = [file.sha256 for file in files]
    same = files[0].commit == here.commit or hashes == here.expected_hashes()
    return () if same else files


def _judge_hashed(model: RequestedModel, request: FitRequest) -> FitReport:
    """Hash the local files. Judge them if all are intact, otherwise judge the Hub's files."""
    here = open_store().locate(model.reference)
    if here is None or not (damaged := _damaged(model, here)):
        return judge(model, request)
    pinned = replace(model.reference, revision=here.commit, file=here.name)
    report = judge(replace(model, reference=pinned), request, ignore_disk=True)
    return replace(report, damaged=damaged)


def _damaged(model: RequestedModel, here: Installed) -> tuple[Path, ...]:
    from catalog import CatalogError

    listed: Sequence[RemoteFile] = ()
    if here.repository is not None and None in here.expected_hashes():
        with suppress(CatalogError):  # offline, the hash stays unknown
            listed = connect().files(here.repository, model.reference.revision)
    found = list(hashed(here, listed))
    for file in found:
        if file.outcome == UNKNOWN:
            console.note(f"{file.path.name}: {UNKNOWN}; keeping the file")
        if file.outcome == DAMAGED:
            console.problem(file.problem)
    return tuple(file.path for file in found if file.outcome == DAMAGED)


def _document(
    model: RequestedModel, report: FitReport, was_here: bool, newer: Sequence[RemoteFile]
) -> dict[str, Any]:
    here = open_store().locate(report.reference or model.reference)
    hashes = here.expected_hashes() if here else [None] * len(report.paths)
    return {
        "name": report.name,
        "model": report.entry.id if report.entry else None,
        "repository": here.repository if here else None,
        "commit": here.commit if here else None,
        "licence": licence_of(report),
        "size_bytes": report.size_bytes,
        "was_here": was_here,
        "newer_commit": newer[0].commit if newer else None,
        "verdict": report.verdict.kind,
        "files": [
            {"path": str(path), "size_bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(report.paths, hashes, strict=True)
        ],
    }
