"""Decide which model is best for a machine and a purpose: by quality, size and speed.

`fit`, `run` and `doctor` ask the same function. Published scores are compared only between models
that both have one on the purpose's benchmark, and are about equally large: sizes decide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conifer_cli.fit.alternatives import USEFUL_CONTEXT, estimate_of, fitting_quants, supported

if TYPE_CHECKING:
    from catalog import Entry
    from engine.fit.machine import Machine
    from engine.fit.memory import Verdict
    from engine.fit.speed import Bandwidth

FLUENT_PER_S = 15.0  # tokens a second: faster than people read, as thinking and code need
NEWEST = 2026 + 1 / 12  # newer models count as this old
PER_YEAR = 2.0  # a year's progress in models, as a factor of size
UNDATED = "2025-01"
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


def best(candidates: Iterable[Contender], purpose: str = "chat") -> list[Entry]:
    """Return the models that fit and serve a purpose, the best first.

    Models slower than FLUENT_PER_S come last. Among the others, capacity decides, or the published
    score where two of about the same capacity have one.
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


def best_here(
    machine: Machine, bandwidth: Bandwidth | None = None, purpose: str = "chat"
) -> Entry | None:
    """Return the best model for a machine, from the catalog's facts alone; None if none fits.

    bandwidth: None if speed does not matter, for example because it would have to be measured.
    """
    from catalog import entries

    known = supported()
    found = best(
        (
            candidate(entry, machine, bandwidth, PURPOSES[purpose].context)
            for entry in entries().values()
            if entry.architecture in known
        ),
        purpose,
    )
    return found[0] if found else None


def candidate(
    entry: Entry, machine: Machine, bandwidth: Bandwidth | None, context: int
) -> Contender:
    """Judge a model's default file for a machine with a context of so many tokens."""
    from engine.fit.estimate import GUESSED_LAYERS, estimate_bytes_per_token, judge_estimate
    from engine.fit.speed import seconds
    from engine.kernels.select import selected

    estimate = estimate_of(entry, entry.file())
    if estimate is None or not has_context(entry, context):
        return Contender(entry, False)
    verdict = judge_estimate(estimate, machine, min(context, entry.context or context))
    if bandwidth is None or verdict.kind != "fits":
        return Contender(entry, verdict.kind == "fits")
    kernels = selected("auto", machine.backend)
    moved = estimate_bytes_per_token(estimate, machine.backend, kernels, 0, "f16")
    if moved is None:
        return Contender(entry, True)
    layers = estimate.layers or GUESSED_LAYERS
    return Contender(entry, True, 1 / seconds(moved, layers, bandwidth, machine.backend, kernels))


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


def ways_out(name: str, entry: Entry | None, verdict: Verdict, q8_fits: bool) -> Iterator[str]:
    """Yield hints for a model that does not fit, each with a command or option to use."""
    if verdict.largest_context:
        context = verdict.largest_context
        yield f"A context of {context:,} tokens fits: `conifer run {name} -c {context}`"
    if q8_fits:
        yield f"The model fits with an 8-bit KV cache: `conifer run {name} --kv-type q8`"
    if entry and entry.architecture in supported():
        fitting = fitting_quants(entry, verdict.machine)
        smaller = [size_bytes for size_bytes in fitting if size_bytes < verdict.file_bytes]
        if smaller:
            quant = fitting[max(smaller)]
            yield f"A smaller quantisation fits: `conifer run {entry.id}:{quant}`"
    best = best_here(verdict.machine)
    if best and best != entry:
        yield f"The best model for this machine: `conifer run {best.id}`"
    yield "Run `conifer fit` to list every model, or pass --force to skip this check."


def _serves(entry: Entry, wanted: Purpose) -> bool:
    return entry.kind in wanted.kinds and has_context(entry, wanted.context)


def _key(each: Contender, wanted: Purpose) -> tuple[bool, float]:
    fast = each.per_s is None or each.per_s >= FLUENT_PER_S
    return fast, capacity(each.entry) * (ALIKE if each.entry.kind == wanted.made_for else 1)


def _alike(each: Contender, first: Contender, wanted: Purpose) -> bool:
    fast, size = _key(each, wanted)
    first_fast, first_size = _key(first, wanted)
    return fast == first_fast and ALIKE * size >= first_size
