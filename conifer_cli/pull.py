"""`conifer pull`: bring a model here, after the same verdict that `run` and `fit` give.

In this order: resolve the name, read the header, judge the fit, look at the disk, ask a person,
transfer, verify, publish. Of a model that is here, a newer revision on the hub is reported, and
fetched only with --update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conifer_cli import errors, terminal
from conifer_cli.layout import size
from conifer_cli.prepare import (
    Target,
    connect,
    judge,
    licence_of,
    locate,
    open_store,
    ready,
)
from conifer_cli.verdict import Judged, Wishes

if TYPE_CHECKING:
    from catalog.hub import RemoteFile


def pull_model(name: str, wishes: Wishes, update: bool = False, as_json: bool = False) -> int:
    """Fetch a model and print the path of its file, or of its first part.

    update: fetch the hub's newest revision although an older one is here.
    """
    target = locate(name)
    newer = _newer(target)
    judged = _judge_newer(target, newer, wishes) if newer and update else judge(target, wishes)
    was_here = bool(judged.paths)
    judged = ready(target, judged, wishes)
    terminal.say(f"conifer: {judged.name} is here, {size(judged.size_bytes)}")
    if newer and not update:
        commit = newer[0].commit[:7]
        terminal.say(f"conifer: the hub has a newer revision of it, {commit}")
        terminal.say(f"`conifer pull {name} --update` fetches it.")
    if as_json:
        terminal.out_json(_document(target, judged, was_here, newer if not update else ()))
    else:
        terminal.out([str(judged.paths[0])])
    return errors.OK


def _newer(target: Target) -> Sequence[RemoteFile]:
    """Return the hub's files where they differ from those that are here; else nothing.

    A hub that does not answer is no failure: the model is here.
    """
    from catalog import CatalogError

    reference, store = target.reference, open_store()
    here = store.locate(reference)
    if here is None or here.repository is None or reference.revision is not None:
        return ()
    from catalog.verify import promised

    try:
        files = connect().find(reference)
    except CatalogError as error:
        terminal.say(f"conifer: whether there is a newer revision is not known: {error}")
        return ()
    hashes = [file.sha256 for file in files]
    same = files[0].commit == here.commit or hashes == promised(here, store)
    return () if same else files


def _judge_newer(target: Target, files: Sequence[RemoteFile], wishes: Wishes) -> Judged:
    """Judge the hub's revision instead of the one that is here."""
    pinned = replace(target.reference, revision=files[0].commit)
    judged = judge(replace(target, reference=pinned), wishes)
    return replace(judged, remote=tuple(files), paths=())


def _document(
    target: Target, judged: Judged, was_here: bool, newer: Sequence[RemoteFile]
) -> dict[str, Any]:
    from catalog.verify import promised

    store = open_store()
    here = store.locate(target.reference)
    hashes = promised(here, store) if here else [None] * len(judged.paths)
    return {
        "name": judged.name,
        "model": judged.entry.id if judged.entry else None,
        "repository": here.repository if here else None,
        "commit": here.commit if here else None,
        "licence": licence_of(judged),
        "size_bytes": judged.size_bytes,
        "was_here": was_here,
        "newer_commit": newer[0].commit if newer else None,
        "verdict": judged.verdict.kind,
        "files": [
            {"path": str(path), "size_bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(judged.paths, hashes, strict=True)
        ],
    }
