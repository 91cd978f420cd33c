"""`conifer list`: the models on this machine, and those that could be."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import open_store
from conifer_cli.fit.alternatives import supported
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, size, table

if TYPE_CHECKING:
    from catalog import Entry
    from catalog.store.source import Installed


def list_installed(as_json: bool) -> int:
    """Print the models on this machine."""
    installed = open_store().installed()
    if as_json:
        console.out_json([_installed_document(model) for model in installed])
    elif not installed:
        console.say("No model is here yet. `conifer run` fetches the starter, 98 MB.")
    else:
        rows = [
            (name_of(model), size(model.size_bytes), _modified(model)[:16], str(model.paths[0]))
            for model in installed
        ]
        console.out(table([("NAME", "SIZE", "MODIFIED", "WHERE"), *rows], right=(1,)))
    return errors.OK


def list_catalog(as_json: bool) -> int:
    """Print every model that Conifer knows, and what has been proved of it."""
    from catalog import entries, status

    known = supported()
    pairs = [(entry, status(entry, known)) for entry in entries().values()]
    if as_json:
        console.out_json([entry_document(entry) | {"status": text} for entry, text in pairs])
        return errors.OK
    heading = ("MODEL", "TOTAL", "ACTIVE", "KIND", "CONTEXT", "LICENCE", "STATUS")
    rows = [
        (
            entry.id,
            count(entry.total_parameters),
            count(entry.active_parameters) if entry.moe else "dense",
            entry.kind,
            f"{entry.context:,}" if entry.context else "-",
            entry.licence,
            text,
        )
        for entry, text in pairs
    ]
    console.out(table([heading, *rows], right=(1, 2, 4)))
    return errors.OK


def name_of(model: Installed) -> str:
    """Write the name by which `run` and `rm` find this very file."""
    if model.model_id is not None:
        return f"{model.model_id}:{model.quant}" if model.quant else model.model_id
    return f"hf:{model.repository}/{model.name}"


def _modified(model: Installed) -> str:
    seconds = model.paths[0].stat().st_mtime
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _installed_document(model: Installed) -> dict[str, Any]:
    return {
        "name": name_of(model),
        "size_bytes": model.size_bytes,
        "modified": _modified(model),
        "paths": [str(path) for path in model.paths],
        "repository": model.repository,
        "commit": model.commit,
    }


def entry_document(entry: Entry) -> dict[str, Any]:
    """Put together what the catalog says of a model, as data."""
    import dataclasses

    return dataclasses.asdict(entry)
