"""`conifer fit`: check whether one model, or every model in the catalog, fits a machine."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import connect, locate
from conifer_cli.fit import quant_matrix as matrix
from conifer_cli.fit import view
from conifer_cli.fit.alternatives import sizes_of, supported
from conifer_cli.fit.best import CatalogRow, judged, ranked, ways_out
from conifer_cli.fit.buy import Offer, offer_lines, offers, pc_lines, pc_target, raised_hint
from conifer_cli.fit.other_quants import quant_of_report
from conifer_cli.fit.predict import (
    Target,
    best_known_report,
    bytes_per_token,
    choose_target,
    prompt_speeds,
    slowest_type,
    speed,
)
from conifer_cli.fit.quant_matrix import QuantRow
from conifer_cli.fit.streaming import wording
from conifer_cli.fit.streaming.forecast import forecast_of, forecaster
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.fit.view import DecodeSpeed
from conifer_cli.options import open_store
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from catalog import Reference
    from engine.fit.speed import BytesPerToken, Rate

ORDER = ["fits", "tight", "streams", "too_large", None]


@dataclass(frozen=True)
class FitOptions:
    """Options for `conifer fit`."""

    request: FitRequest
    machine: str | None = None
    memory_bytes: int | None = None
    idle: bool = False
    as_json: bool = False
    ram_bytes: int | None = None
    bytes_per_s: float | None = None
    purpose: str | None = None
    buy: bool = False
    everything: bool = False

    def target(self, idle: bool) -> Target:
        """Return the machine to plan for: --ram is its memory, unless it is a card with its own.

        idle: assume that this machine runs nothing else.
        """
        return choose_target(
            self.machine,
            self.target_bytes,
            idle,
            self.request.kernels,
            None if self.has_card else self.bytes_per_s,
            self.request.budget_bytes,
        )

    @property
    def target_bytes(self) -> int | None:
        """The memory size that replaces the machine's own, if any."""
        has_ram = self.ram_bytes is not None and not self.has_card
        return self.ram_bytes if has_ram else self.memory_bytes

    @property
    def has_card(self) -> bool:
        """True if the machine is a card whose PC --ram describes."""
        from engine.fit.machine_specs import UnknownMachine, choose

        if self.machine is None or self.ram_bytes is None:
            return False
        with suppress(UnknownMachine):  # choose_target explains it
            spec = choose(self.machine).spec
            return spec.backend == "cuda" and not spec.unified
        return False


def fit_model(name: str, options: FitOptions) -> int:
    """Print the verdict on one model. Return 0 if it may run as asked, else 4."""
    request, model = options.request, locate(name)
    if options.purpose is not None:
        raise errors.UsageError("--for ranks all models: leave out MODEL")
    if options.buy:
        return _buy(name, model.reference, options)
    target = options.target(options.idle)
    hub = None if options.machine else connect
    report = best_known_report(name, model.reference, request, target.machine, open_store(), hub)
    found = _speed(report, target, request)
    forecast = forecaster(report, target, request, open_store(), True) if found.streaming else None
    sizes = {**sizes_of(report.entry), **(matrix.listed_sizes(report, hub) if hub else {})}
    rows = matrix.quant_matrix(report, target, request, sizes, forecast)
    hints = []
    if not request.accepts(report.verdict.kind):
        hints = [wording.offer(name, found.streaming)] if found.streaming else []
        hints += ways_out(report, target, open_store())
    smaller = matrix.smaller_row(rows, report)
    if report.remote and smaller:
        command = f"`conifer run {_name_of(report, smaller)}`"
        if not any(command in hint for hint in hints):
            hints.insert(0, f"A smaller quantisation fits: {command}")
    if (raise_limit := raised_hint(report, target, request)) is not None:
        hints.insert(0, raise_limit)
    pc: list[str] = []
    if options.has_card and options.ram_bytes is not None:
        pc = list(pc_lines(report, target, options.ram_bytes, options.bytes_per_s, request))
    if options.as_json:
        console.print_json(_document(report, target, found, rows, hints, request))
    else:
        lines = view.verdict_lines(report, target, found, rows, hints, request)
        console.print_lines([*lines, *([""] if pc else []), *pc])
    return errors.OK if request.accepts(report.verdict.kind) else errors.NO_ROOM


def _name_of(report: FitReport, quant: str) -> str:
    if report.entry is not None and report.entry.file(quant) is not None:
        return f"{report.entry.id}:{quant}"
    return f"hf:{report.remote[0].repository}:{quant}"


def _buy(name: str, reference: Reference, options: FitOptions) -> int:
    """Print the machines that a model fits. It is judged offline, by the best data available."""
    any_machine = choose_target("m3-ultra-512gb", None, True, "auto").machine
    report = best_known_report(name, reference, options.request, any_machine, open_store(), None)
    found = offers(report, options.request)
    if options.as_json:
        console.print_json([_offer(offer) for offer in found])
    else:
        quant = quant_of_report(report)
        console.print_lines(
            [f"{name}, {quant}: the machines that it fits", "", *offer_lines(found)]
        )
    return errors.OK if found else errors.NO_ROOM


def _offer(offer: Offer) -> dict[str, Any]:
    machine = offer.target.machine
    speed_at_start = _rate(offer.rate)
    memory_bytes, backend = machine.memory_bytes, machine.backend
    return {
        "machine": offer.name,
        "backend": backend,
        "memory_bytes": memory_bytes,
        "context": offer.verdict.context,
        "speed": speed_at_start,
    }


def fit_all(options: FitOptions) -> int:
    """Print the best models for a machine; or, in a pipe, every model in the catalog.

    This machine is judged as if it were idle. With a purpose, print the models that fit and serve
    it, the best first.
    """
    if options.buy:
        raise errors.UsageError("--buy needs a MODEL")
    request, target = options.request, options.target(idle=True)
    targets = [target]
    if options.has_card and options.ram_bytes is not None:
        targets.append(pc_target(options.ram_bytes, options.bytes_per_s, request))
    documents = []
    free = _available(options)
    here = {model.model_id for model in open_store().installed() if model.model_id}
    everything = options.everything or not console.is_terminal(sys.stdout)
    for each in targets:
        rows = judged(each, request, open_store())
        rows.sort(key=_order)
        best = ranked(rows, options.purpose or "chat")
        rows = best if options.purpose is not None else rows
        if not options.as_json:
            purpose = options.purpose or "chat"
            console.print_lines(view.catalog(rows, best, each, here, purpose, everything, free))
        documents.append(_all_document(rows, each, best))
    if options.as_json:
        console.print_json({**documents[0], **({"cpu": documents[1]} if documents[1:] else {})})
    return errors.OK


def _available(options: FitOptions) -> int | None:
    """Return the bytes that are available on this machine now, unless it plans for another."""
    from engine.fit.machine import this_machine

    if options.idle or options.machine is not None or options.target_bytes is not None:
        return None
    return this_machine().budget_bytes


def _order(row: CatalogRow) -> tuple[int, bool, int]:
    """Sort by verdict, then mixtures of experts first, then from largest to smallest."""
    return ORDER.index(row.kind), not row.entry.moe, -(row.entry.total_parameters or 0)


def _all_document(rows: list[CatalogRow], target: Target, best: list[CatalogRow]) -> dict[str, Any]:
    return {
        "estimated": any(row.report is None or row.report.verdict.estimated for row in rows),
        "machine": _machine(target),
        "best": best[0].entry.id if best else None,
        "models": [_row_document(row) for row in rows],
    }


def _speed(report: FitReport, target: Target, request: FitRequest) -> DecodeSpeed:
    context = report.verdict.context
    moved, later = (bytes_per_token(report, target, request, depth) for depth in (0, context))
    if report.verdict.kind == "too_large":  # swapping makes any rate meaningless
        return DecodeSpeed(moved, None, None)
    if report.verdict.kind == "streams":
        found = forecast_of(report, target, request, open_store(), probe=True)
        return DecodeSpeed(moved, found.rate if found else None, None, streaming=found)
    slow = slowest_type(report, target, moved)
    start, end = (speed(report, target, each) for each in (moved, later))
    return DecodeSpeed(moved, start, end, slow, prompt_speeds(report, target, request))


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
        "prompts": [
            {
                "tokens": tokens,
                "seconds": float(f"{tokens / rate.per_s:.3g}"),
                **(_rate(rate) or {}),
            }
            for tokens, rate in found.prompts
        ],
        "slow_type": _slow(found),
        "streaming": found.streaming
        and wording.document(found.streaming, report.name, _rate(found.streaming.rate)),
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
        "ways_out": [] if request.accepts(verdict.kind) else hints,
        "machine": _machine(target),
    }
