"""`conifer list --speeds`: what was measured on this machine, beside what was predicted."""

from __future__ import annotations

import statistics
from typing import Any

from conifer_cli import errors
from conifer_cli.fit import history
from conifer_cli.fit.history import Run, by_priors, median
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size, table

HEADING = (
    *("MODEL", "KERNELS", "KV", "DECODE", "PREDICTED", "PREFILL", "PEAK", "PREDICTED"),
    *("RUNS", "LAST"),
)


def list_speeds(as_json: bool) -> int:
    """Print every model that ran here: medians of its last runs, and what they were predicted."""
    from engine.fit.machine import this_machine

    machine = this_machine()
    key = history.machine_key(machine)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in history.runs():
        if run.machine == key:
            name = (run.model, run.file, str(run.size_bytes), run.kernels, run.kv_type)
            groups.setdefault(name, []).append(run)
    bandwidth = history.bandwidth_of(machine) if groups else None
    documents = [_document(group, bandwidth) for group in groups.values()]
    documents.sort(key=lambda document: document["last"], reverse=True)
    if as_json:
        console.out_json(documents)
    elif not documents:
        console.say("No model ran here yet. `conifer run` and `conifer bench` keep what they see.")
    else:
        rows = [_row(document) for document in documents]
        note = "Tokens/s, medians of the last runs. The peak grows up to the prediction as experts"
        note += " are used that were not before."
        console.out([*table([HEADING, *rows], right=range(3, 9)), "", note])
    return errors.OK


def _document(group: list[Run], bandwidth: Any) -> dict[str, Any]:
    last = group[-history.LAST :]
    decoded = [run for run in group if run.decode_per_s is not None][-history.LAST :]
    predicted = [by_priors(run, bandwidth) for run in decoded]
    most = max(last, key=lambda run: run.peak_bytes)
    return {
        "model": last[-1].model,
        "file": last[-1].file,
        "size_bytes": last[-1].size_bytes,
        "kernels": last[-1].kernels,
        "kv_type": last[-1].kv_type,
        "decode_per_s": median(run.decode_per_s for run in decoded),
        "predicted_decode_per_s": statistics.median(predicted) if predicted else None,
        "depth": round(statistics.median(run.depth for run in decoded)) if decoded else None,
        "prefill_per_s": median(run.prefill_per_s for run in group),
        "peak_bytes": most.peak_bytes,
        "predicted_peak_bytes": most.predicted_bytes,
        "runs": len(group),
        "last": last[-1].date,
    }


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    rates = ("decode_per_s", "predicted_decode_per_s", "prefill_per_s")
    decode, predicted, prefill = (_number(document[name]) for name in rates)
    return (
        document["model"],
        document["kernels"],
        document["kv_type"],
        decode,
        predicted,
        prefill,
        size(document["peak_bytes"]),
        size(document["predicted_peak_bytes"]),
        str(document["runs"]),
        document["last"][:16].replace("T", " "),
    )


def _number(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4g}"
