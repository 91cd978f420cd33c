"""`conifer fit`: check whether one model, or every model in the catalog, fits a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import connect, locate, open_store
from conifer_cli.fit import quant_matrix as matrix
from conifer_cli.fit import view
from conifer_cli.fit.alternatives import fitting_quants, sizes_of, supported, ways_out
from conifer_cli.fit.other_quants import quant_of_report
from conifer_cli.fit.predict import (
    Target,
    best_known_report,
    bytes_per_token,
    choose_target,
    slowest_type,
    speed,
)
from conifer_cli.fit.quant_matrix import QuantRow
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.fit.view import CatalogRow, DecodeSpeed
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from catalog import Entry
    from engine.fit.machine import Machine
    from engine.fit.speed import BytesPerToken, Rate

MIN_SIZE_RATIO = 1.25  # a quantisation must be this much larger to replace the default
ORDER = ["fits", "tight", "too_large", None]


@dataclass(frozen=True)
class FitOptions:
    """Options for `conifer fit`."""

    request: FitRequest
    machine: str | None = None
    memory_bytes: int | None = None
    idle: bool = False
    as_json: bool = False


def fit_model(name: str, options: FitOptions) -> int:
    """Print the verdict on one model. Return 0 if it fits or is tight, 4 if it is too large."""
    request, model = options.request, locate(name)
    target = choose_target(options.machine, options.memory_bytes, options.idle, request.kernels)
    hub = None if options.machine else connect
    report = best_known_report(name, model.reference, request, target.machine, open_store(), hub)
    found = _speed(report, target, request)
    sizes = {**sizes_of(report.entry), **(matrix.listed_sizes(report, hub) if hub else {})}
    rows = matrix.quant_matrix(report, target, request, sizes)
    hints = list(ways_out(name, report.entry, report.verdict, report.q8_fits))
    smaller = matrix.smaller_row(rows, report)
    if report.remote and smaller:
        command = f"`conifer run {_name_of(report, smaller)}`"
        if not any(command in hint for hint in hints):
            hints.insert(0, f"A smaller quantisation fits: {command}")
    if options.as_json:
        console.print_json(_document(report, target, found, rows, hints, request))
    else:
        console.print_lines(view.verdict_lines(report, target, found, rows, hints, request))
    return errors.NO_ROOM if report.verdict.kind == "too_large" else errors.OK


def _name_of(report: FitReport, quant: str) -> str:
    if report.entry is not None and report.entry.file(quant) is not None:
        return f"{report.entry.id}:{quant}"
    return f"hf:{report.remote[0].repository}:{quant}"


def fit_all(options: FitOptions) -> int:
    """Print every model in the catalog, sorted by verdict, then from largest to smallest."""
    from catalog import entries

    request = options.request
    target = choose_target(options.machine, options.memory_bytes, options.idle, request.kernels)
    rows = [_row(entry, target, request) for entry in entries().values()]
    rows.sort(key=lambda row: (ORDER.index(row.kind), -(row.entry.total_parameters or 0)))
    if options.as_json:
        models = [_row_document(row) for row in rows]
        estimated = any(row.report is None or row.report.verdict.estimated for row in rows)
        machine = _machine(target)
        console.print_json({"estimated": estimated, "machine": machine, "models": models})
    else:
        console.print_lines(view.catalog(rows, target))
    return errors.OK


def _speed(report: FitReport, target: Target, request: FitRequest) -> DecodeSpeed:
    context = report.verdict.context
    moved, later = (bytes_per_token(report, target, request, depth) for depth in (0, context))
    if report.verdict.kind == "too_large":  # swapping makes any rate meaningless
        return DecodeSpeed(moved, None, None)
    slow = slowest_type(report, target, moved)
    return DecodeSpeed(moved, speed(report, target, moved), speed(report, target, later), slow)


def _row(entry: Entry, target: Target, request: FitRequest) -> CatalogRow:
    from catalog import resolve
    from engine.errors import ModelFileError

    quant = _best_quant(entry, target.machine)
    if request.context is not None and entry.context is not None:
        request = replace(request, context=min(request.context, entry.context))
    if entry.architecture not in supported():
        return CatalogRow(entry, quant, None, None)
    name = entry.id if quant == entry.default_quant else f"{entry.id}:{quant}"
    try:
        report = best_known_report(name, resolve(name), request, target.machine, open_store(), None)
    except (errors.UsageError, errors.Unreadable, ModelFileError):
        return CatalogRow(entry, quant, None, None)
    return CatalogRow(entry, quant, report, _speed(report, target, request).start)


def _best_quant(entry: Entry, machine: Machine) -> str:
    """Return the largest quantisation that fits, or the default if that is nearly as large."""
    fitting = fitting_quants(entry, machine)
    default = sizes_of(entry).get(entry.default_quant, 0)
    if not fitting or (default in fitting and max(fitting) < MIN_SIZE_RATIO * default):
        return entry.default_quant
    return fitting[max(fitting)]


def _row_document(row: CatalogRow) -> dict[str, Any]:
    verdict = row.report.verdict if row.report else None
    facts = row.entry.file(row.quant)
    return {
        "id": row.entry.id,
        "total_parameters": row.entry.total_parameters,
        "active_parameters": row.entry.active_parameters,
        "moe": row.entry.moe,
        "quant": row.quant,
        "size_bytes": facts.size_bytes if facts else None,
        "verdict": row.kind,
        "estimated": verdict.estimated if verdict else True,
        "need_bytes": verdict.need.total_bytes if verdict else None,
        "context": verdict.context if verdict else None,
        "largest_context": verdict.largest_context if verdict else None,
        "speed": _rate(row.rate),
        "supported": row.entry.architecture in supported(),
    }


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    rounded = {name: float(f"{getattr(rate, name):.3g}") for name in ("per_s", "low", "high")}
    return {**rounded, "source": rate.source}


def _moved(moved: BytesPerToken) -> dict[str, int]:
    return {
        name: size_bytes for name, size_bytes in asdict(moved).items() if name.endswith("_bytes")
    }


def _slow(found: DecodeSpeed) -> dict[str, Any] | None:
    if found.slow is None:
        return None
    return {"type": found.slow[0], "rate_of_q4_k": float(f"{found.slow[1]:.2g}")}


def _machine(target: Target) -> dict[str, Any]:
    machine, bandwidth = target.machine, target.bandwidth
    return {
        "name": machine.name,
        "backend": machine.backend,
        "kernels": target.kernels,
        "memory_bytes": machine.memory_bytes,
        "budget_bytes": machine.budget_bytes,
        "limited_by": machine.limited_by,
        "bandwidth": {"bytes_per_s": round(bandwidth.bytes_per_s), "source": bandwidth.source},
    }


def _document(
    report: FitReport,
    target: Target,
    found: DecodeSpeed,
    rows: list[QuantRow],
    hints: list[str],
    request: FitRequest,
) -> dict[str, Any]:
    from engine.kernels.sizes import bytes_by_type

    verdict, need = report.verdict, report.verdict.need
    return {
        "model": report.name,
        "verdict": verdict.kind,
        "estimated": verdict.estimated,
        "judged_by": report.source,
        "quant": quant_of_report(report),
        "default_quant": report.default_quant or quant_of_report(report),
        "size_bytes": report.size_bytes,
        "type_bytes": bytes_by_type(report.tensors) if report.tensors else None,
        "need_bytes": {
            part: getattr(need, f"{part}_bytes")
            for part in ("weights", "kv", "buffers", "program", "total")
        },
        "reserve_bytes": verdict.reserve_bytes,
        "kv_type": request.kv_type,
        "context": verdict.context,
        "largest_context": verdict.largest_context,
        "moved_bytes_per_token": _moved(found.moved) if found.moved else None,
        "speed": {"at_start": _rate(found.start), "at_context": _rate(found.end)},
        "slow_type": _slow(found),
        "ladder": [
            {
                "quant": row.quant,
                "size_bytes": row.size_bytes,
                "exact": row.known and not verdict.estimated,
                "contexts": [
                    {"context": context, "verdict": kind, "speed": _rate(rate)}
                    for context, kind, rate in row.steps
                ],
            }
            for row in rows
        ],
        "ways_out": hints if verdict.kind == "too_large" else [],
        "machine": _machine(target),
    }
