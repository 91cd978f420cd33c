"""`conifer list`: list the models on this machine, the catalog, or measured speeds."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.store.store import name_of
from conifer_cli import errors
from conifer_cli.fit import run_history
from conifer_cli.fit.alternatives import size_kind, supported
from conifer_cli.fit.headline import STYLES, WORDS
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, size
from conifer_cli.terminal.layout import FAINT, WARNING, Cell, Column, Grid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from catalog import Entry
    from catalog.download.unfinished import Unfinished
    from catalog.store.store import Installed
    from engine.fit.machine import Machine

# The columns of the three tables; see `Column` for the numbers.
INSTALLED = (
    Column("NAME"),
    Column("SIZE", True),
    Column("VERDICT", rank=2),
    Column("MODIFIED", rank=1),
    Column("WHERE", rank=3),
)
CATALOG = (
    Column("MODEL"),
    Column("TOTAL", True, rank=1),
    Column("ACTIVE", True, rank=2),
    Column("GB", True),
    Column("FITS"),
    Column("CONTEXT", True, rank=3),
    Column("KIND", rank=4),
    Column("LICENCE", rank=5),
    Column("SCORE", True),
)
NOTE = (
    "GB: the default file. FITS: on this machine when idle, with a context of 8,192 tokens. "
    "* on this machine."
)
SPEEDS = (
    Column("MODEL"),
    Column("KERNELS", rank=3),
    Column("KV", rank=4),
    Column("DECODE", True),
    Column("PREDICTED", True, rank=2),
    Column("PREFILL", True),
    Column("PEAK", True, rank=1),
    Column("PREDICTED", True, rank=2),
    Column("RUNS", True, rank=5),
    Column("LAST", rank=6),
)

# The benchmarks of `catalog.registry.BENCHMARKS`, by what `--sort` calls them.
_SCORES = {
    "mmlu-pro": "MMLU-Pro",
    "gpqa-diamond": "GPQA Diamond",
    "livecodebench-v6": "LiveCodeBench v6",
    "swe-bench-verified": "SWE-bench Verified",
}


def list_installed(as_json: bool) -> int:
    """Print the models on this machine, then the downloads that have not finished."""
    from catalog.download.unfinished import unfinished

    store, machine = open_store(), _idle_machine()
    installed, begun = store.installed(), unfinished(store)
    if as_json:
        documents = [_installed_document(model, machine) for model in installed]
        console.print_json([*documents, *map(_unfinished_document, begun)])
    elif not installed and not begun:
        console.log("No models yet. Run `conifer run` to download the starter model (98 MB).")
    else:
        rows: list[tuple[Cell, ...]] = [
            (
                *(name_of(model), size(model.size_bytes), _here(_verdict(model, machine))),
                *(_minute(_modified(model)), str(model.paths[0])),
            )
            for model in installed
        ]
        rows += [
            (name_of(one), amount(one), "", (WARNING, f"({_state(one)})"), str(one.path))
            for one in begun
        ]
        console.print_lines([Grid(INSTALLED, rows)])
    return errors.OK


def list_catalog(as_json: bool, sort: str | None = None) -> int:
    """Print every model in the catalog, and whether it fits.

    sort: total, active or context; or a benchmark, which leaves out models without a score on it.
    """
    from catalog import entries, status

    known = supported()
    pairs = [(entry, status(entry, known)) for entry in _sorted(entries().values(), sort)]
    if as_json:
        console.print_json([dataclasses.asdict(entry) | {"status": text} for entry, text in pairs])
        return errors.OK
    machine, scored = _idle_machine(), sort in _SCORES
    here = {model.model_id for model in open_store().installed()}
    rows: list[tuple[Cell, ...]] = []
    for entry, text in pairs:
        total = count(entry.total_parameters)
        active = count(entry.active_parameters) if entry.moe else "dense"
        facts, context = entry.file(), f"{entry.context:,}" if entry.context else "-"
        sized = f"{facts.size_bytes / 1e9:,.1f}" if facts and facts.size_bytes else "-"
        name = f"{entry.id} *" if entry.id in here else entry.id
        kind = size_kind(entry, None, machine) if machine else None
        fits = (STYLES[kind], WORDS[kind]) if entry.architecture in known else (FAINT, text)
        cells = (name, total, active, sized, fits, context, entry.kind, entry.licence)
        rows.append((*cells, *([f"{_sort_value(entry, sort):.1f}"] if scored else [])))
    console.print_lines([Grid(CATALOG if scored else CATALOG[:-1], rows), "", NOTE])
    return errors.OK


def _idle_machine() -> Machine | None:
    """Return this machine as if it were idle, or None without a backend."""
    from engine.errors import BackendError
    from engine.fit.machine import this_machine

    with contextlib.suppress(BackendError):
        return this_machine(idle=True)
    return None


def _sorted(entries: Iterable[Entry], sort: str | None) -> list[Entry]:
    if sort is None:
        return list(entries)
    kept = [entry for entry in entries if sort not in _SCORES or _sort_value(entry, sort)]
    return sorted(kept, key=lambda entry: _sort_value(entry, sort), reverse=True)


def _sort_value(entry: Entry, sort: str | None) -> float:
    if (benchmark := _SCORES.get(sort or "")) is not None:
        return entry.scores.get(benchmark, 0)
    fields = {"active": entry.active_parameters, "context": entry.context}
    return fields.get(sort or "", entry.total_parameters) or 0


def _verdict(model: Installed, machine: Machine | None) -> str | None:
    """Judge a model on a machine by the catalog's facts; None if it is not in the catalog."""
    from catalog import entries

    entry = entries().get(model.model_id or "")
    return size_kind(entry, model.quant, machine) if entry and machine else None


def _here(kind: str | None) -> Cell:
    return (STYLES[kind], WORDS[kind]) if kind else "-"


def amount(one: Unfinished) -> str:
    """Return how much of an unfinished download is on disk: `555.0 MB of 1.2 GB`."""
    of = f" of {size(one.size_bytes)}" if one.size_bytes else ""
    return f"{size(one.present_bytes)}{of}"


def _state(one: Unfinished) -> str:
    return "downloading" if one.active else "unfinished"


def _modified(model: Installed) -> str:
    return _date(model.paths[0])


def _date(path: Path) -> str:
    try:
        seconds = path.stat().st_mtime
        return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    except (OSError, OverflowError, ValueError):  # deleted meanwhile, or a date beyond the calendar
        return "unknown"


def _minute(date: str) -> str:
    """Shorten an ISO 8601 date for a table: 2026-11-28 16:24."""
    return date[:16].replace("T", " ")


def _installed_document(model: Installed, machine: Machine | None) -> dict[str, Any]:
    return {
        "name": name_of(model),
        "state": "complete",
        "size_bytes": model.size_bytes,
        "present_bytes": model.size_bytes,
        "verdict": _verdict(model, machine),
        "modified": _modified(model),
        "paths": [str(path) for path in model.paths],
        "repository": model.repository,
        "commit": model.commit,
    }


def _unfinished_document(one: Unfinished) -> dict[str, Any]:
    return {
        "name": name_of(one),
        "state": _state(one),
        "size_bytes": one.size_bytes or None,
        "present_bytes": one.present_bytes,
        "modified": _date(one.path),
        "paths": [str(path) for path in (*one.partial, *one.whole)],
        "repository": one.repository,
        "commit": one.commit,
    }


def list_speeds(as_json: bool) -> int:
    """Print median and predicted speeds for every model that has run on this machine."""
    from engine.fit.machine import this_machine

    machine = this_machine()
    key = run_history.machine_key(machine)
    groups: dict[tuple[str, ...], list[run_history.Run]] = {}
    for run in run_history.runs():
        if run.machine == key:
            name = (run.model, run.file, str(run.size_bytes), run.kernels, run.kv_type)
            groups.setdefault(name, []).append(run)
    bandwidth = run_history.bandwidth_of(machine) if groups else None
    documents = [_speed_document(group, bandwidth) for group in groups.values()]
    documents.sort(key=lambda document: document["last"], reverse=True)
    if as_json:
        console.print_json(documents)
    elif not documents:
        console.log("No runs recorded yet. Run `conifer run` or `conifer bench` to record one.")
    else:
        rows = [_speed_row(document) for document in documents]
        note = "Speeds are medians of the most recent runs, in tokens/s. "
        note += "Peak memory approaches the prediction as more experts are used."
        console.print_lines([Grid(SPEEDS, rows), "", note])
    return errors.OK


def _speed_document(group: list[run_history.Run], bandwidth: Any) -> dict[str, Any]:
    last = group[-run_history.LAST :]
    decoded = [run for run in group if run.decode_per_s is not None][-run_history.LAST :]
    predicted = [run_history.by_priors(run, bandwidth) for run in decoded]
    most = max(last, key=lambda run: run.peak_bytes)
    names = ("model", "file", "size_bytes", "kernels", "kv_type")
    return {
        **{name: getattr(last[-1], name) for name in names},
        "decode_per_s": run_history.median(run.decode_per_s for run in decoded),
        "predicted_decode_per_s": statistics.median(predicted) if predicted else None,
        "depth": round(statistics.median(run.depth for run in decoded)) if decoded else None,
        "prefill_per_s": run_history.median(run.prefill_per_s for run in group),
        "peak_bytes": most.peak_bytes,
        "predicted_peak_bytes": most.predicted_bytes,
        "runs": len(group),
        "last": last[-1].date,
    }


def _speed_row(document: dict[str, Any]) -> tuple[str, ...]:
    rates = ("decode_per_s", "predicted_decode_per_s", "prefill_per_s")
    return (
        *(document[name] for name in ("model", "kernels", "kv_type")),
        *("-" if document[name] is None else f"{document[name]:,.1f}" for name in rates),
        size(document["peak_bytes"]),
        size(document["predicted_peak_bytes"]),
        str(document["runs"]),
        _minute(document["last"]),
    )
