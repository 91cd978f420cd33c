"""Build the table of verdicts and speeds for each quantisation and context.

The row for the report's own file is exact if its header was read. All other rows are scaled from it
by file size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conifer_cli.fit.other_quants import experts_of, other_needs, quant_of_report
from conifer_cli.fit.predict import Target, bytes_per_token, speed
from conifer_cli.fit.verdict import FitReport, FitRequest

if TYPE_CHECKING:
    from catalog.hub.client import Hub
    from engine.fit.speed import BytesPerToken, Rate
    from engine.fit.streaming import Forecast, Plan

CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)  # tokens; the table's columns


@dataclass(frozen=True)
class QuantRow:
    """One quantisation: its file size, and a verdict and a rate for each context.

    known: True for the report's own file, False if the row was scaled from it.
    """

    quant: str
    size_bytes: int
    known: bool
    steps: tuple[tuple[int, str, Rate | None], ...]  # (context, verdict, rate)


def quant_matrix(
    report: FitReport,
    target: Target,
    request: FitRequest,
    sizes: Mapping[str, int],
    forecast: Callable[[Plan, BytesPerToken | None, bool], Forecast | None] | None = None,
) -> list[QuantRow]:
    """Judge every quantisation at every context. sizes: file size for each quantisation.

    forecast: of those whose experts stay on the disk; None if none do.
    """
    from engine.fit.memory import kind_of, stream_plan
    from engine.kernels.sizes import main_type

    experts = experts_of(report, target.machine, request) if forecast else None

    quant = quant_of_report(report)
    moved = {
        context: bytes_per_token(report, target, request, context) for context in _contexts(report)
    }
    rows = []
    files = {**sizes, quant: report.size_bytes}
    for name, size_bytes in sorted(files.items(), key=lambda pair: pair[1]):
        need, share = other_needs(report, target.machine, request, name, size_bytes)
        steps = []
        for context, traffic in moved.items():
            kind = kind_of(need(context), target.machine)
            rate, other = None, None
            if traffic is not None:
                other = traffic.scaled(share, None if name == quant else main_type(name))
            if kind != "too_large":
                rate = speed(report, target, other, sibling=name != quant)
            elif experts and forecast:
                plan = stream_plan(need(context), experts.scaled(share), target.machine, context)
                found = forecast(plan, other, name != quant) if plan else None
                kind, rate = ("streams", found.rate) if found else (kind, None)
            steps.append((context, kind, rate))
        rows.append(QuantRow(name, size_bytes, name == quant, tuple(steps)))
    return rows


def listed_sizes(report: FitReport, connect: Callable[[], Hub]) -> dict[str, int]:
    """Return the size of each supported quantisation in the report's Hub repository."""
    from catalog import CatalogError
    from catalog.file_names import file_sets
    from engine.kernels.sizes import supports

    if not report.remote:
        return {}
    first = report.remote[0]
    try:
        files = connect().files(first.repository, first.commit)
    except CatalogError:
        return {}
    sizes = {file.name: file.size_bytes for file in files}
    return {
        found.quant: sum(sizes[name] for name in found.names)
        for found in file_sets(sizes)
        if found.quant and not found.missing and supports(found.quant)
    }


def smaller_row(rows: list[QuantRow], report: FitReport) -> str | None:
    """Return the largest quantisation below the report's that fits with a useful context."""
    fitting = [
        row.quant
        for row in rows
        if row.size_bytes < report.size_bytes
        and any(kind == "fits" and context >= CONTEXTS[0] for context, kind, _ in row.steps)
    ]
    return fitting[-1] if fitting else None


def _contexts(report: FitReport) -> list[int]:
    """Return the columns: common contexts, the model's maximum and the report's context."""
    model, entry, longest = report.config or report.estimate, report.entry, CONTEXTS[-1]
    limits = (model and model.context, entry and entry.context)
    most = min(limit or longest for limit in (*limits, longest))
    usual = [context for context in CONTEXTS if context < most]
    return sorted({*usual, most, report.verdict.context})
