"""Find the machines that a model fits on, and judge a PC with a card and memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conifer_cli.fit.headline import WORDS
from conifer_cli.fit.predict import Target, bytes_per_token, choose_target, speed
from conifer_cli.fit.verdict import FitReport, FitRequest, judge_again
from conifer_cli.terminal.format import counted, gigabytes
from conifer_cli.terminal.layout import Column, Grid, Line

if TYPE_CHECKING:
    from engine.fit.memory import Verdict
    from engine.fit.speed import Rate

MEMORY = (Column("GB", True), Column("GiB", True, rank=1))
KINDS = {"metal": "Macs", "cuda": "NVIDIA", "cpu": "CPUs"}
PC = "cpu"  # the machine that holds a card, unless its bandwidth is given
PC_BYTES_PER_S = 72e9  # two channels of DDR5-5600
LEAST_CONTEXT = 8192


@dataclass(frozen=True)
class Offer:
    """A machine, and how a model does on it."""

    name: str
    target: Target
    verdict: Verdict
    rate: Rate | None


def offers(report: FitReport, request: FitRequest) -> list[Offer]:
    """Return every machine of the list that a model fits, each with its least memory.

    Sorted by kind, then by memory, then the fastest first.
    """
    from engine.fit.machine_specs import machine_specs

    context = request.context or min(LEAST_CONTEXT, report.supported_context or LEAST_CONTEXT)
    request = replace(request, context=context)
    found = [offer for key in machine_specs() if (offer := _smallest(key, report, request))]
    kinds = list(KINDS)
    return sorted(
        found,
        key=lambda offer: (
            kinds.index(offer.target.machine.backend),
            offer.target.machine.memory_bytes,
            -(offer.rate.per_s if offer.rate else 0),
        ),
    )


def offer_lines(found: list[Offer]) -> list[Line]:
    """Format the machines that a model fits as a table for each kind."""
    lines: list[Line] = []
    for backend, title in KINDS.items():
        rows = [
            (offer.name, f"{memory / 10**9:.1f}", f"{memory / 2**30:.1f}", _rate(offer.rate))
            for offer in found
            for memory in [offer.target.machine.memory_bytes]
            if offer.target.machine.backend == backend
        ]
        if rows:
            columns = (Column(title), *MEMORY, Column("TOKENS/S"))
            lines += [Grid(columns, rows), ""]
    return lines or ["No machine of the list holds this file."]


def pc_lines(
    report: FitReport, card: Target, ram_bytes: int, bytes_per_s: float | None, request: FitRequest
) -> Iterator[str]:
    """Yield what a PC's CPU does with a model instead of its card, and what a split would do."""
    pc = pc_target(ram_bytes, bytes_per_s, request)
    verdict = judge_again(report, pc.machine, request)
    word = WORDS[verdict.kind]
    memory = gigabytes(pc.machine.memory_bytes)
    text = f"on the CPU instead, with {memory} of memory: {word}"
    if verdict.kind in ("fits", "tight"):
        moved = bytes_per_token(report, pc, request, 0)
        rate = speed(report, pc, moved)
        text += f", context {verdict.context:,}, {_rate(rate)} tokens/s at the start"
    yield text
    split = _split_per_s(report, card, pc, request)
    if split is not None:
        yield (
            f"split between card and memory: not in Conifer; llama.cpp --n-cpu-moe: "
            f"about {split:.0f} tokens/s"
        )


def pc_target(ram_bytes: int, bytes_per_s: float | None, request: FitRequest) -> Target:
    """Return the CPU and memory of a PC. A whole number of GB means GiB, as memory is sold."""
    if ram_bytes % 10**9 == 0:
        ram_bytes = ram_bytes // 10**9 << 30
    return choose_target(PC, ram_bytes, True, request.kernels, bytes_per_s or PC_BYTES_PER_S)


def raised_hint(report: FitReport, target: Target, request: FitRequest) -> str | None:
    """Return the command that raises a Mac's limit, if a model is better off with it."""
    from engine.fit.machine_specs import raised_limit

    raised = raised_limit(target.machine)
    if raised is None or report.verdict.kind == "fits":
        return None
    limit_mb, machine = raised
    verdict = judge_again(report, machine, request)
    if verdict.kind in ("too_large", "streams", report.verdict.kind):
        return None
    return (
        f"Only the working set is short. `sudo sysctl iogpu.wired_limit_mb={limit_mb}` raises it "
        f"until the next restart: {verdict.kind}, context {counted(verdict.context, 'token')}"
    )


def _smallest(key: str, report: FitReport, request: FitRequest) -> Offer | None:
    from engine.fit.machine_specs import models_of

    if key == PC:
        return None
    for name in models_of(key):
        target = choose_target(name, None, True, request.kernels)
        verdict = judge_again(report, target.machine, request)
        if verdict.kind == "fits":
            moved = bytes_per_token(report, target, request, 0)
            return Offer(name, target, verdict, speed(report, target, moved))
    return None


def _split_per_s(report: FitReport, card: Target, pc: Target, request: FitRequest) -> float | None:
    """Estimate a split: experts read from memory, the rest from the card; None if it cannot be."""
    from engine.fit.speed import DECODE_COSTS, decode_cost

    moved = bytes_per_token(report, pc, request, 0)
    need = report.verdict.need
    if moved is None or not moved.experts_bytes or card.prior is None or pc.prior is None:
        return None
    if need.weights_bytes > pc.machine.budget_bytes + card.machine.budget_bytes:
        return None
    gpu, cpu = decode_cost(card.prior, "cuda", card.kernels), DECODE_COSTS["cpu, others"]
    rest_bytes = moved.weights_bytes - moved.experts_bytes
    model = report.config or report.estimate
    layers = (model and model.layers) or 0
    taken_s = (
        cpu.weights * moved.experts_bytes / pc.prior.bytes_per_s
        + gpu.weights * rest_bytes / card.prior.bytes_per_s
        + layers * gpu.layer_s
    )
    return 1 / taken_s


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    return f"{rate.per_s:.3g} ({rate.low:.3g} to {rate.high:.3g})"
