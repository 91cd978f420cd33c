"""Quantisations against contexts: which of them fit, and how fast each decodes where it ends.

The file that was judged is exact where its header was read; the others follow in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conifer_cli.fit.plan import FitReport, FitRequest
from conifer_cli.fit.predict import Target, moves, speed

if TYPE_CHECKING:
    from catalog import Entry
    from catalog.hub.client import Hub
    from engine.fit.memory import Need
    from engine.fit.speed import Rate

RUNGS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)  # contexts of the ladder


@dataclass(frozen=True)
class Rung:
    """One quantisation of the ladder: its size, and for each context a verdict and a rate.

    known: this is the one whose header was read; the others are judged in proportion.
    """

    quant: str
    size_bytes: int
    known: bool
    steps: tuple[tuple[int, str, Rate | None], ...]  # context, kind, rate at its end


def ladder(
    report: FitReport, target: Target, request: FitRequest, sizes: Mapping[str, int]
) -> list[Rung]:
    """Judge quantisations by contexts. sizes: of the files that there are, by quantisation.

    That which was judged itself is exact; another one's weights are taken in proportion to it.
    """
    from engine.fit.memory import kind_of

    quant = judged_quant(report)
    moved = {context: moves(report, target, request, context) for context in _contexts(report)}
    rungs = []
    files = {**sizes, quant: report.size_bytes}
    for name, size_bytes in sorted(files.items(), key=lambda pair: pair[1]):
        need, share = _other(report, target, request, name, size_bytes)
        steps = []
        of_it = report if share == 1 else replace(report, paths=())
        for context, traffic in moved.items():
            kind = kind_of(need(context), target.machine)
            rate = None
            if kind != "too_large" and traffic is not None:
                rate = speed(of_it, target, traffic.scaled(share))
            steps.append((context, kind, rate))
        rungs.append(Rung(name, size_bytes, name == quant, tuple(steps)))
    return rungs


def judged_quant(report: FitReport) -> str:
    """Name the quantisation of what was judged."""
    from catalog.names import quant_of

    if report.estimate is not None:
        return report.estimate.quant
    first = report.paths[0].name if report.paths else report.remote[0].name if report.remote else ""
    return quant_of(first) or "this file"


def sizes_of(entry: Entry | None) -> dict[str, int]:
    """Say which quantisations the catalog knows, and their sizes."""
    files = entry.files if entry else ()
    return {facts.quant: facts.size_bytes for facts in files if facts.size_bytes is not None}


def listed_sizes(report: FitReport, connect: Callable[[], Hub]) -> dict[str, int]:
    """Say which quantisations that can be run lie beside the judged file on the hub, and their
    sizes; none where it was not judged there."""
    from catalog import CatalogError
    from catalog.names import file_sets
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


def smaller_rung(rungs: list[Rung], report: FitReport) -> str | None:
    """Name the largest quantisation below the judged one that fits, with a context of some use."""
    fitting = [
        rung.quant
        for rung in rungs
        if rung.size_bytes < report.size_bytes
        and any(kind == "fits" and context >= RUNGS[0] for context, kind, _ in rung.steps)
    ]
    return fitting[-1] if fitting else None


def _other(
    report: FitReport, target: Target, request: FitRequest, quant: str, size_bytes: int
) -> tuple[Callable[[int], Need], float]:
    """Give the need of a quantisation as a function of the context, and its share of the bytes."""
    from engine.fit.estimate import estimate_needs
    from engine.fit.memory import needs
    from engine.kernels.sizes import loaded_size_ratio

    backend, kernels, mine = target.machine.backend, target.kernels, judged_quant(report)
    if report.config is None or report.tensors is None:
        assert report.estimate is not None
        estimate = replace(report.estimate, quant=quant, size_bytes=size_bytes)
        need = estimate_needs(estimate, backend, request.kv_type, kernels)
        held = need(1).weights_bytes
    else:
        held = report.verdict.need.weights_bytes
        if quant != mine:
            grown = loaded_size_ratio(quant, backend, kernels) / loaded_size_ratio(
                mine, backend, kernels
            )
            held = int(held * size_bytes / report.size_bytes * grown)
        need = needs(report.config, report.tensors, backend, request.kv_type, kernels, held)
    return need, held / report.verdict.need.weights_bytes


def _contexts(report: FitReport) -> list[int]:
    """Choose contexts for the ladder: the usual ones, the model's own, and the one judged for."""
    own = report.config.context if report.config else report.estimate and report.estimate.context
    known = report.entry.context if report.entry else None
    most = min(own or RUNGS[-1], known or RUNGS[-1])
    usual = [context for context in RUNGS if context < most]
    return sorted({*usual, min(most, RUNGS[-1]), report.verdict.context})
