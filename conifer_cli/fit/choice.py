"""Judge a model, and choose its file if the name leaves the quantisation open.

The default is the catalog's, or Q4_K_M. If it does not fit with a useful context, the model's other
quantisations follow in the order of `catalog.quants`: the first that fits is chosen. Files on disk
come first. `run` and `pull` use `judge_model`; `fit` uses the same steps, on what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conifer_cli.fit.alternatives import USEFUL_CONTEXT, estimate_of, size_kind
from conifer_cli.fit.other_quants import expected_verdict, quant_of_report
from conifer_cli.fit.verdict import (
    FitReport,
    FitRequest,
    judge_disk,
    judge_hub,
    require_context,
    settled,
)
from conifer_cli.terminal import console
from engine.errors import UnsupportedError

if TYPE_CHECKING:
    from catalog import Entry, Reference
    from catalog.hub.client import Hub
    from catalog.hub.header_cache import HeaderCache
    from catalog.store.store import Store
    from engine.fit.machine import Machine
    from engine.fit.memory import Verdict
    from engine.fit.streaming import Plan

ROOMY, FITS, TIGHT, STREAMS, TOO_LARGE = 4, 3, 2, 1, 0
LEAST_BITS = 1.125  # per weight, in Q1_0: no file of a model is smaller


@dataclass(frozen=True)
class Option:
    """One quantisation of a model. `size_bytes` is the size of all parts."""

    repository: str | None
    quant: str
    size_bytes: int


def judge_model(
    name: str,
    reference: Reference,
    request: FitRequest,
    store: Store,
    connect: Callable[[], Hub],
    ignore_disk: bool = False,
) -> FitReport:
    """Judge whether a model fits this machine.

    `connect` is called only if the header must be downloaded. ignore_disk: ignore any local copy.
    """
    from catalog import CatalogError
    from catalog.hub.header_cache import HeaderCache
    from engine.fit.machine import limited, this_machine
    from engine.fit.memory import judge_size

    machine, entry, facts = this_machine(), reference.entry, reference.catalog_file
    machine = limited(machine, request.budget_bytes)
    here = None if ignore_disk else judge_here(name, reference, request, machine, store)
    if here is not None:
        return here
    if entry is not None and entry.context is not None:
        require_context(name, entry.context, request, entry)
    known, hopeless, plan = None, settled(facts, machine) and not request.force, None
    if hopeless and (plan := streaming_plan(reference, request, machine)) is not None:
        hopeless = not (request.streams or request.asks)  # a refusal needs no header
    if facts is not None and facts.size_bytes is not None and (reference.package or hopeless):
        verdict = judge_size(facts.size_bytes, machine)
        if plan is not None:
            verdict = replace(verdict, kind="streams", plan=plan)
        estimate = estimate_of(entry, facts) if entry else None
        known = FitReport(name, entry, verdict, facts.size_bytes, estimate=estimate)
        if reference.package or request.offline:
            return known
    if entry is not None and known is None:
        from engine.architectures.registry import require_architecture

        require_architecture(entry.architecture)
    headers = HeaderCache(store.home)
    try:
        return judge_remote(name, reference, request, machine, headers, connect, known)
    except CatalogError as error:
        if known is None:
            raise
        console.note(f"cannot look for a smaller file: {error}")
        return known


def judge_here(
    name: str, reference: Reference, request: FitRequest, machine: Machine, store: Store
) -> FitReport | None:
    """Judge a model on disk. Return None if it is missing, or if a better file is elsewhere."""
    entry, paths = reference.entry, store.find(reference)
    here = store.quantisations(reference) if reference.is_open and not request.force else []
    if paths and len(here) < 2:
        return judge_disk(name, reference, paths[0], request, machine)
    if not here or (not paths and entry and size_kind(entry, None, machine) in ("fits", None)):
        return None

    def judge(option: Option) -> FitReport:
        found = next(model for model in here if model.quant == option.quant)
        chosen = reference.of(option.repository, option.quant)
        return judge_disk(name, chosen, found.paths[0], request, machine)

    options = [Option(m.repository, m.quant, m.size_bytes) for m in here if m.quant]
    report = best(judge(options[0]), options[1:], judge, request, machine)
    kind = report.verdict.kind
    misfit = kind == "too_large" or (kind == "streams" and not request.streams)
    return None if entry and not paths and misfit else report


def streaming_plan(reference: Reference, request: FitRequest, machine: Machine) -> Plan | None:
    """Return how the catalog's facts say that a model would stream; None if it would not."""
    from engine.fit.estimate import judge_estimate

    estimate = estimate_of(reference.entry, reference.catalog_file) if reference.entry else None
    if estimate is None:
        return None
    wanted = request.context, request.kv_type, request.kernels
    return judge_estimate(estimate, machine, *wanted).plan


def judge_remote(
    name: str,
    reference: Reference,
    request: FitRequest,
    machine: Machine,
    headers: HeaderCache,
    connect: Callable[[], Hub],
    known: FitReport | None = None,
) -> FitReport:
    """Judge a model by its headers on the Hub. Raises CatalogError.

    known: the report on the default file if its size alone shows that it is too large.
    """

    def judge(option: Option) -> FitReport:
        chosen = reference.of(option.repository, option.quant)
        return judge_hub(name, chosen, request, machine, connect(), headers)

    entry = reference.entry
    if known is not None and (not reference.is_open or _too_many_parameters(entry, machine)):
        return known
    if not reference.is_open or (entry is not None and request.force):
        return judge_hub(name, reference, request, machine, connect(), headers)
    if entry is None:
        options = listed_options(reference, connect())
        if not options or request.force:
            named = reference.of(reference.repository, options[0].quant) if options else reference
            return judge_hub(name, named, request, machine, connect(), headers)
        first, *options = options
        return best(judge(first), options, judge, request, machine)
    report = known or judge_hub(name, reference, request, machine, connect(), headers)
    if grade(report.verdict, report, request) == ROOMY:
        return report
    options = [*listed_options(reference, connect()), *catalog_options(entry)]
    return best(report, options, judge, request, machine)


def best(
    default: FitReport,
    options: Iterable[Option],
    judge: Callable[[Option], FitReport | None],
    request: FitRequest,
    machine: Machine,
) -> FitReport:
    """Return the report on the default, or on the first option that fits better.

    Judges the most promising option, by its size, until one keeps what it promised: few headers
    are read. judge: returns None if nothing is known about an option.
    """
    mine, basis, reports = quant_of_report(default), default, {0: default}
    grades = {0: grade(default.verdict, default, request)}
    others = [option for option in options if option.quant != mine]

    def promise(number: int) -> tuple[int, int]:
        if number in grades:
            return grades[number], -number
        option = others[number - 1]
        verdict = expected_verdict(basis, machine, request, option.quant, option.size_bytes)
        return grade(verdict, basis, request), -number

    while (number := max(range(len(others) + 1), key=promise)) not in grades:
        grades[number] = TOO_LARGE
        with suppress(UnsupportedError):  # a block type that Conifer does not read
            if (report := judge(others[number - 1])) is not None:
                reports[number] = replace(report, default_quant=mine)
                grades[number] = grade(report.verdict, report, request)
                basis = basis if basis.config else report
    return reports[number] if grades[number] else default


def grade(verdict: Verdict, report: FitReport, request: FitRequest) -> int:
    """Return how well a file fits: ROOMY with a useful context, FITS with less, or worse."""
    supported = report.supported_context or USEFUL_CONTEXT
    useful = request.context or min(USEFUL_CONTEXT, supported)
    if verdict.kind == "fits":
        return ROOMY if verdict.context >= useful else FITS
    if verdict.kind == "streams" and request.streams:
        return ROOMY  # as the user wants it
    return {"tight": TIGHT, "streams": STREAMS}.get(verdict.kind, TOO_LARGE)


def listed_options(reference: Reference, hub: Hub) -> list[Option]:
    """Return a model's quantisations on the Hub, in order of preference. Raises CatalogError.

    The catalog's second repository of a model may be missing.
    """
    from catalog import AccessDenied, ModelNotFound
    from catalog.quants import preferred

    found: dict[str, Option] = {}
    for repository in reference.repositories:
        try:
            files = hub.files(repository, reference.revision)
        except (AccessDenied, ModelNotFound):
            if reference.entry is None:
                raise
            continue
        sizes = {file.name: file.size_bytes for file in files}
        for chosen in reference.choices(sizes):
            size_bytes = sum(sizes[name] for name in chosen.names)
            if chosen.quant is not None:
                option = Option(repository, chosen.quant, size_bytes)
                found.setdefault(chosen.quant, option)
    return [found[quant] for quant in preferred(found, reference.preferred_quant)]


def catalog_options(entry: Entry) -> list[Option]:
    """Return the catalog's quantisations of a model, in order of preference."""
    from catalog.quants import preferred

    sized = {
        file.quant: Option(file.repository, file.quant, file.size_bytes)
        for file in entry.files
        if file.size_bytes is not None
    }
    return [sized[quant] for quant in preferred(sized, entry.default_quant)]


def _too_many_parameters(entry: Entry | None, machine: Machine) -> bool:
    """True if no quantisation of a model can fit a machine."""
    from engine.fit.memory import surely_too_large

    parameters = (entry and entry.total_parameters) or 0
    return surely_too_large(int(parameters * LEAST_BITS / 8), machine)
