"""Decide which model is best for a machine and a purpose: by quality, size and speed.

`fit`, `run`, `pull` and `doctor` judge and rank the catalog with the same functions, so they name
the same model. Published scores are compared only between models that both have one on the
purpose's benchmark, and are about equally large: sizes decide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conifer_cli import errors
from conifer_cli.fit.alternatives import USEFUL_CONTEXT, fitting_quants, sizes_of, supported
from conifer_cli.fit.predict import Target, best_known_report, bytes_per_token, choose_target, speed
from conifer_cli.fit.streaming.forecast import forecast_of
from conifer_cli.fit.verdict import FitReport, FitRequest, judge_again, shortage

if TYPE_CHECKING:
    from catalog import Entry
    from catalog.store.store import Store
    from engine.fit.speed import Rate

FLUENT_PER_S = 15.0  # tokens a second: faster than people read, as thinking and code need
USABLE_PER_S = 5.0  # about as fast as people read
NEWEST = 2026 + 1 / 12  # newer models count as this old
PER_YEAR = 2.0  # a year's progress in models, as a factor of size
UNDATED = "2025-01"
MIN_SIZE_RATIO = 1.25  # a quantisation must be this much larger to replace the default
ALIKE = 1.5  # the factor of size within which published scores decide


@dataclass(frozen=True)
class Purpose:
    """What a model is for.

    kinds: the catalog's kinds of models that serve it. context: the least, in tokens. benchmarks:
    whose scores compare models, the most telling first. made_for: a kind that is made for it, which
    counts as if it were larger.
    """

    kinds: tuple[str, ...]
    context: int = USEFUL_CONTEXT
    benchmarks: tuple[str, ...] = ("MMLU-Pro", "GPQA Diamond")
    made_for: str | None = None


PURPOSES: Mapping[str, Purpose] = {
    "chat": Purpose(("instruct", "reasoning")),
    "code": Purpose(
        ("coder", "reasoning", "instruct"),
        benchmarks=("SWE-bench Verified", "LiveCodeBench v6"),
        made_for="coder",
    ),
    "reasoning": Purpose(("reasoning",), benchmarks=("GPQA Diamond", "MMLU-Pro")),
    "long-context": Purpose(("instruct", "reasoning", "coder"), context=65_536),
}


@dataclass(frozen=True)
class Contender:
    """A model that may be the best: whether it fits, and its speed if that is known."""

    entry: Entry
    fits: bool
    per_s: float | None = None


@dataclass(frozen=True)
class CatalogRow:
    """A model of the catalog, judged for a machine.

    report: None if the model is unsupported or its file size is unknown.
    """

    entry: Entry
    quant: str
    report: FitReport | None
    rate: Rate | None

    @property
    def name(self) -> str:
        """The name that `conifer run` takes."""
        default = self.quant == self.entry.default_quant
        return self.entry.id if default else f"{self.entry.id}:{self.quant}"

    @property
    def kind(self) -> str | None:
        """The verdict: fits, tight, streams, too_large, or None if unknown."""
        return self.report.verdict.kind if self.report else None

    @property
    def file_bytes(self) -> int:
        """The size of the file in the catalog; 0 if unknown."""
        facts = self.entry.file(self.quant)
        return (facts and facts.size_bytes) or 0


def best(candidates: Iterable[Contender], purpose: str = "chat") -> list[Entry]:
    """Return the models that fit and serve a purpose, the best first.

    Models slower than USABLE_PER_S come last. Otherwise capacity decides, reduced by the square of
    what a model lacks of FLUENT_PER_S, or the published score where two of about the same capacity
    have one.
    """
    wanted = PURPOSES[purpose]
    serving = [each for each in candidates if each.fits and _serves(each.entry, wanted)]
    ranked = sorted(serving, key=lambda each: _key(each, wanted), reverse=True)
    alike = [each for each in ranked if _alike(each, ranked[0], wanted)]
    for benchmark in wanted.benchmarks:
        scored = [each for each in alike if benchmark in each.entry.scores]
        if len(scored) > 1 and ranked[0] in scored:
            winner = max(scored, key=lambda each: each.entry.scores[benchmark])
            ranked = [winner, *(each for each in ranked if each is not winner)]
            break
    return [each.entry for each in ranked]


def judged(target: Target, request: FitRequest, store: Store) -> list[CatalogRow]:
    """Judge every model of the catalog, offline."""
    from catalog import entries

    return [_row(entry, target, request, store) for entry in entries().values()]


def ranked(rows: list[CatalogRow], purpose: str = "chat") -> list[CatalogRow]:
    """Return the rows that fit and serve a purpose, the best first."""
    by_id = {row.entry.id: row for row in rows}
    context = PURPOSES[purpose].context
    return [by_id[entry.id] for entry in best((_contender(row, context) for row in rows), purpose)]


def best_here(store: Store, keep: bool = True) -> CatalogRow | None:
    """Return the best model for this machine when idle, as `conifer fit` does; None if none fits.

    Measures the memory bandwidth if nothing has measured it yet, which takes two seconds.
    keep: save the measurement.
    """
    return best_for(replace(choose_target(None, None, True, "auto"), keep=keep), store)


def best_for(target: Target, store: Store) -> CatalogRow | None:
    """Return the best model for a machine, or None if none fits."""
    return next(iter(ranked(judged(target, FitRequest(), store))), None)


def enforce(report: FitReport, request: FitRequest, store: Store, offer: str = "") -> None:
    """Raise NoRoom if the model is too large for this machine, unless --force was given.

    Raises it also if the model streams, unless that was asked for. offer: the hint for this.
    """
    if not request.accepts(report.verdict.kind):
        limit = request.budget_bytes
        target = choose_target(None, None, False, request.kernels, budget_bytes=limit)
        hints = ways_out(report, target, store)
        problem = f"{report.name} does not fit this machine: {shortage(report)}"
        raise errors.NoRoom(problem, (offer, *hints) if offer else tuple(hints))


def ways_out(report: FitReport, target: Target, store: Store) -> Iterator[str]:
    """Yield hints for a model that does not fit, each with a command or option to use."""
    name, entry, verdict = report.name, report.entry, report.verdict
    if context := verdict.plan.fits_context if verdict.plan else verdict.largest_context:
        yield f"A context of {context:,} tokens fits: `conifer run {name} -c {context}`"
    if report.q8_fits:
        yield f"The model fits with an 8-bit KV cache: `conifer run {name} --kv-type q8`"
    if entry and entry.architecture in supported():
        fitting = fitting_quants(entry, verdict.machine)
        smaller = [size_bytes for size_bytes in fitting if size_bytes < verdict.file_bytes]
        if smaller:
            quant = fitting[max(smaller)]
            yield f"A smaller quantisation fits: `conifer run {entry.id}:{quant}`"
    found = best_for(target, store)
    if found and found.entry != entry:
        yield f"The best model that fits now: `conifer run {found.name}`"
    yield "Run `conifer fit` to list every model, or pass --force to skip this check."


def has_context(entry: Entry, context: int) -> bool:
    """True unless a model is known to support less than a context."""
    return entry.context is None or entry.context >= context


def capacity(entry: Entry) -> float:
    """Return a model's size for comparisons, in parameters.

    A mixture is between its total and its active parameters, nearer to the total. Models of a year
    before count as if they were half as large.
    """
    total = entry.total_parameters or 0
    year, month = map(int, (entry.released or UNDATED).split("-"))
    age = max(0.0, NEWEST - (year + month / 12))
    return math.cbrt(total**2 * (entry.active_parameters or total)) * math.pow(PER_YEAR, -age)


def _serves(entry: Entry, wanted: Purpose) -> bool:
    return entry.kind in wanted.kinds and has_context(entry, wanted.context)


def _key(each: Contender, wanted: Purpose) -> tuple[bool, float]:
    per_s = FLUENT_PER_S if each.per_s is None else min(each.per_s, FLUENT_PER_S)
    size = capacity(each.entry) * (ALIKE if each.entry.kind == wanted.made_for else 1)
    return per_s >= USABLE_PER_S, size * (per_s / FLUENT_PER_S) ** 2


def _alike(each: Contender, first: Contender, wanted: Purpose) -> bool:
    usable, size = _key(each, wanted)
    first_usable, first_size = _key(first, wanted)
    return usable == first_usable and ALIKE * size >= first_size


def _contender(row: CatalogRow, context: int) -> Contender:
    """Describe a row for the ranking. A file smaller than the default's does not count."""
    least = min(context, row.entry.context or context)
    fits = (
        row.kind == "fits"
        and row.file_bytes >= (sizes_of(row.entry).get(row.entry.default_quant) or 0)
        and row.report is not None
        and row.report.verdict.largest_context >= least
    )
    return Contender(row.entry, fits, row.rate.per_s if row.rate else None)


def _row(entry: Entry, target: Target, request: FitRequest, store: Store) -> CatalogRow:
    """Judge the largest file that fits; or the default, if that fits and the largest is slow."""
    quant, fitting = entry.default_quant, fitting_quants(entry, target.machine)
    default = sizes_of(entry).get(quant, 0)
    largest = max(fitting, default=0)
    if largest == 0 or (default in fitting and largest < MIN_SIZE_RATIO * default):
        return _judged_file(entry, quant, target, request, store)
    row = _judged_file(entry, fitting[largest], target, request, store)
    if default in fitting and row.rate is not None and row.rate.per_s < FLUENT_PER_S:
        return _judged_file(entry, quant, target, request, store)
    return row


def _judged_file(
    entry: Entry, quant: str, target: Target, request: FitRequest, store: Store
) -> CatalogRow:
    from catalog import resolve
    from engine.errors import ModelFileError

    if request.context is not None and entry.context is not None:
        request = replace(request, context=min(request.context, entry.context))
    if entry.architecture not in supported():
        return CatalogRow(entry, quant, None, None)
    name = CatalogRow(entry, quant, None, None).name
    try:
        report = best_known_report(name, resolve(name), request, target.machine, store, None)
        least = min(USEFUL_CONTEXT, entry.context or USEFUL_CONTEXT)
        if request.context is None and report.verdict.context < least:
            report = replace(
                report, verdict=judge_again(report, target.machine, replace(request, context=least))
            )
    except (errors.UsageError, errors.Unreadable, ModelFileError):
        return CatalogRow(entry, quant, None, None)
    if report.verdict.kind == "too_large":  # swapping makes any rate meaningless
        return CatalogRow(entry, quant, report, None)
    if report.verdict.kind == "streams":
        found = forecast_of(report, target, request, store)
        return CatalogRow(entry, quant, report, found.rate if found else None)
    rate = speed(report, target, bytes_per_token(report, target, request, 0))
    return CatalogRow(entry, quant, report, rate)
