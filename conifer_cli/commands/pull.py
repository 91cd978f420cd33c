"""`conifer pull`: bring a model here, after the same verdict that `run` and `fit` give.

In this order: resolve the name, read the header, judge the fit, look at the disk, ask a person,
transfer, verify, publish. Of a model that is here, a newer revision on the hub is reported, and
fetched only with --update; with --force its files are hashed, and those that are damaged fetched
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import (
    RequestedModel,
    connect,
    judge,
    licence_of,
    locate,
    open_store,
    ready,
)
from conifer_cli.fit.plan import FitReport, FitRequest
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile
    from catalog.store.source import Installed


def pull_model(name: str, request: FitRequest, update: bool = False, as_json: bool = False) -> int:
    """Fetch a model and print the path of its file, or of its first part.

    update: fetch the hub's newest revision although an older one is here.
    """
    target = locate(name)
    newer = _newer(target)
    if newer and update:
        report = _judge_newer(target, newer, request)
    else:
        report = _judge_hashed(target, request) if request.force else judge(target, request)
    was_here = bool(report.paths)
    report = ready(target, report, request)
    console.say(f"conifer: {report.name} is here, {size(report.size_bytes)}")
    if newer and not update:
        commit = newer[0].commit[:7]
        console.say(f"conifer: the hub has a newer revision of it, {commit}")
        console.say(f"`conifer pull {name} --update` fetches it.")
    if as_json:
        console.out_json(_document(target, report, was_here, newer if not update else ()))
    else:
        console.out([str(report.paths[0])])
    return errors.OK


def _newer(target: RequestedModel) -> Sequence[RemoteFile]:
    """Return the hub's files where they differ from those that are here; else nothing.

    A hub that does not answer is no failure: the model is here.
    """
    from catalog import CatalogError

    reference, store = target.reference, open_store()
    here = store.locate(reference)
    if here is None or here.repository is None or reference.revision is not None:
        return ()

    try:
        files = connect().find(reference)
    except CatalogError as error:
        console.say(f"conifer: whether there is a newer revision is not known: {error}")
        return ()
    hashes = [file.sha256 for file in files]
    same = files[0].commit == here.commit or hashes == here.expected_hashes()
    return () if same else files


def _judge_newer(
    target: RequestedModel, files: Sequence[RemoteFile], request: FitRequest
) -> FitReport:
    """Judge the hub's revision instead of the one that is here."""
    pinned = replace(target.reference, revision=files[0].commit)
    report = judge(replace(target, reference=pinned), request)
    return replace(report, remote=tuple(files), paths=())


def _judge_hashed(target: RequestedModel, request: FitRequest) -> FitReport:
    """Judge what is here once its hashes were compared; where one is wrong, the same revision anew.

    No header is read before: that may be what is damaged.
    """
    here = open_store().locate(target.reference)
    damaged = _damaged(target, here) if here else ()
    if not here or not damaged:
        return judge(target, request)
    pinned = replace(target.reference, revision=here.commit, file=here.name)
    report = judge(replace(target, reference=pinned), request, anew=True)
    return replace(report, damaged=damaged)


def _damaged(target: RequestedModel, here: Installed) -> tuple[Path, ...]:
    """Hash the files of a model, and return the damaged ones."""
    from catalog import CatalogError
    from conifer_cli.commands.verify import DAMAGED, UNKNOWN, hashed

    listed: Sequence[RemoteFile] = ()
    if here.repository is not None and None in here.expected_hashes():
        with suppress(CatalogError):  # then nobody says what they should be
            listed = connect().files(here.repository, target.reference.revision)
    found = list(hashed(here, listed))
    for file in found:
        if file.outcome == UNKNOWN:
            console.say(f"conifer: {file.path.name}: {UNKNOWN}; it stays as it is")
        if file.outcome == DAMAGED:
            console.say(f"conifer: {file.path}: SHA-256 is {file.got}, expected {file.want}")
    return tuple(file.path for file in found if file.outcome == DAMAGED)


def _document(
    target: RequestedModel, report: FitReport, was_here: bool, newer: Sequence[RemoteFile]
) -> dict[str, Any]:

    store = open_store()
    here = store.locate(target.reference)
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
