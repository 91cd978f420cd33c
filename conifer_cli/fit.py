"""`conifer fit`: the verdict on one model, by its header, or on all, by the catalog's sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conifer_cli import errors, terminal
from conifer_cli.layout import count, memory, size, table
from conifer_cli.prepare import judge, locate
from conifer_cli.suggest import size_kind, supported, ways_out
from conifer_cli.verdict import Judged, Wishes

if TYPE_CHECKING:
    from catalog import Entry
    from engine.machine import Machine

WORDS = {"fits": "fits", "tight": "tight", "too_large": "too large", None: "can't tell"}
ORDER = list(WORDS)


def fit_model(name: str, wishes: Wishes, as_json: bool) -> int:
    """Print the verdict on one model. Exit code 0: fits or tight; 4: too large."""
    judged = judge(locate(name), wishes)
    if as_json:
        terminal.out_json(_document(judged))
    else:
        terminal.out(_report(judged, wishes))
    return errors.NO_ROOM if judged.verdict.kind == "too_large" else errors.OK


def fit_all(as_json: bool) -> int:
    """Print every model of the catalog, judged by size: what fits first, the largest first."""
    from catalog import entries
    from engine.machine import this_machine

    machine = this_machine()
    judged = [(entry, size_kind(entry, None, machine)) for entry in entries().values()]
    judged.sort(key=lambda pair: (ORDER.index(pair[1]), -(pair[0].total_parameters or 0)))
    if as_json:
        models = [_row_document(entry, kind) for entry, kind in judged]
        terminal.out_json({"estimated": True, "machine": _machine(machine), "models": models})
        return errors.OK
    heading = ("MODEL", "TOTAL", "ACTIVE", "QUANT", "SIZE", "VERDICT (estimated)", "")
    rows = [_row(entry, kind) for entry, kind in judged]
    terminal.out([_budget(machine), "", *table([heading, *rows], right=(1, 2, 4)), "", _CAVEAT])
    return errors.OK


_CAVEAT = (
    "Estimated from file sizes, what loading adds to them, and some 8,000 tokens of context; "
    "`conifer fit MODEL` reads the file's header."
)


def _report(judged: Judged, wishes: Wishes) -> list[str]:
    """Lay out one verdict for a person."""
    verdict, need = judged.verdict, judged.verdict.need
    at = f"{verdict.context:,} tokens, {wishes.kv_type}"
    unknown = "not counted: only the file's size is known"
    parts = [
        ("weights", need.weights_bytes, f"the file is {size(judged.size_bytes)}"),
        ("KV cache", need.kv_bytes, unknown if verdict.estimated else at),
        ("buffers", need.buffers_bytes, unknown if verdict.estimated else ""),
        ("program", need.program_bytes, ""),
        ("total", need.total_bytes, ""),
        ("reserve", verdict.reserve_bytes, "to stay free"),
        ("budget", verdict.budget_bytes, f"{verdict.machine.limited_by}, {verdict.machine.name}"),
    ]
    rows = [(label, f"{n / 10**9:.2f}", f"{n / 2**30:.2f}", note) for label, n, note in parts]
    lines = [_title(judged), "", *table([("", "GB", "GiB", ""), *rows], right=(1, 2)), ""]
    lines.append(f"verdict: {WORDS[verdict.kind]}" + (" (estimated)" if verdict.estimated else ""))
    if not verdict.estimated:
        lines.append(f"context: {verdict.context:,}; the largest that fits: {_largest(judged)}")
    if need.weights_bytes > 1.25 * verdict.file_bytes:
        lines.append(_REPACKED.format(need.weights_bytes / verdict.file_bytes))
    if verdict.kind == "too_large":
        lines += ["", *ways_out(judged.name, judged.entry, verdict, judged.q8_fits)]
    return lines


_REPACKED = (
    "Repacked for this machine the weights take {:.2f} x the file; "
    "Q4_1, Q4_K, Q5_1, Q5_K and Q8_0 files grow least."
)


def _title(judged: Judged) -> str:
    entry, config = judged.entry, judged.config
    if entry is not None:
        sizes = _sizes(entry.total_parameters, entry.active_parameters, entry.moe)
        return f"{judged.name}: {entry.name}, {sizes}"
    if config is None or judged.parameters is None:
        return judged.name
    sizes = _sizes(*judged.parameters, config.experts is not None)
    return f"{judged.name}: {config.name}, {config.architecture}, {sizes}"


def _sizes(total: int | None, active: int | None, moe: bool) -> str:
    """Say how many parameters there are, and how many work for one token."""
    text = f"{count(total)} parameters"
    return f"{text}, {count(active)} active for each token" if moe else text


def _largest(judged: Judged) -> str:
    largest = judged.verdict.largest_context
    return f"{largest:,}" if largest else "none"


def _budget(machine: Machine) -> str:
    return f"{machine.name}: {memory(machine.budget_bytes)} of {machine.limited_by}"


def _row(entry: Entry, kind: str | None) -> tuple[str, ...]:
    facts = entry.facts()
    size_bytes = facts.size_bytes if facts else None
    return (
        entry.id,
        count(entry.total_parameters),
        count(entry.active_parameters) if entry.moe else "dense",
        entry.default_quant,
        size(size_bytes) if size_bytes is not None else "-",
        WORDS[kind],
        "" if entry.architecture in supported() else "architecture not yet supported",
    )


def _row_document(entry: Entry, kind: str | None) -> dict[str, Any]:
    facts = entry.facts()
    return {
        "id": entry.id,
        "total_parameters": entry.total_parameters,
        "active_parameters": entry.active_parameters,
        "quant": entry.default_quant,
        "size_bytes": facts.size_bytes if facts else None,
        "verdict": kind,
        "supported": entry.architecture in supported(),
    }


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "backend": machine.backend,
        "budget_bytes": machine.budget_bytes,
        "limited_by": machine.limited_by,
    }


def _document(judged: Judged) -> dict[str, Any]:
    verdict, need = judged.verdict, judged.verdict.need
    return {
        "model": judged.name,
        "verdict": verdict.kind,
        "estimated": verdict.estimated,
        "size_bytes": judged.size_bytes,
        "need_bytes": {
            "weights": need.weights_bytes,
            "kv": need.kv_bytes,
            "buffers": need.buffers_bytes,
            "program": need.program_bytes,
            "total": need.total_bytes,
        },
        "reserve_bytes": verdict.reserve_bytes,
        "context": verdict.context,
        "largest_context": verdict.largest_context,
        "machine": _machine(verdict.machine),
    }
