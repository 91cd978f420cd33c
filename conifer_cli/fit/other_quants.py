"""Judge another quantisation of a model, scaled from one whose header or size is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from conifer_cli.fit.verdict import FitReport, FitRequest

if TYPE_CHECKING:
    from engine.fit.machine import Machine
    from engine.fit.memory import Need, Verdict
    from engine.fit.streaming import RoutedExperts


def quant_of_report(report: FitReport) -> str:
    """Return the quantisation of the report's file."""
    from catalog.file_names import quant_of

    if report.estimate is not None:
        return report.estimate.quant
    first = report.paths[0].name if report.paths else report.remote[0].name if report.remote else ""
    return quant_of(first) or "this file"


def choice(report: FitReport) -> str:
    """Describe why the report is not on the default quantisation."""
    return f"{quant_of_report(report)} fits this machine better than {report.default_quant}"


def other_needs(
    report: FitReport,
    machine: Machine,
    request: FitRequest,
    quant: str,
    size_bytes: int,
    most: bool = True,
) -> tuple[Callable[[int], Need], float]:
    """Return a quantisation's memory use by context, and the relative size of its weights.

    The size is relative to the weights of the report's file. most: see `loaded_bytes`.
    """
    from engine.fit.estimate import estimate_needs
    from engine.fit.memory import needs
    from engine.kernels.select import selected
    from engine.kernels.sizes import loaded_bytes
    from engine.nn.config import count_parameters, used_tensors

    backend, mine = machine.backend, quant_of_report(report)
    kernels = selected(request.kernels, backend)
    if report.config is None or report.tensors is None:
        assert report.estimate is not None
        estimate = replace(report.estimate, quant=quant, size_bytes=size_bytes)
        need = estimate_needs(estimate, backend, request.kv_type, kernels)
        held = need(1).weights_bytes
    else:
        held = report.verdict.need.weights_bytes
        if quant != mine:
            read = sum(info.size_bytes for info in used_tensors(report.config, report.tensors))
            read_bytes = int(size_bytes * read / report.size_bytes)
            weights, _ = count_parameters(report.config, report.tensors)
            held = loaded_bytes(quant, read_bytes, weights, backend, kernels, most)
        need = needs(report.config, report.tensors, backend, request.kv_type, kernels, held)
    return need, held / report.verdict.need.weights_bytes


def expected_verdict(
    report: FitReport, machine: Machine, request: FitRequest, quant: str, size_bytes: int
) -> Verdict:
    """Return the verdict to expect of another quantisation. Its header may show a worse one."""
    from engine.fit.memory import DEFAULT_CONTEXT, judge_needs

    need, share = other_needs(report, machine, request, quant, size_bytes, most=False)
    most = report.supported_context or max(DEFAULT_CONTEXT, request.context or 0)
    experts = experts_of(report, machine, request)
    return judge_needs(
        need,
        machine,
        most,
        request.context,
        size_bytes,
        estimated=True,
        experts=experts.scaled(share) if experts else None,
    )


def experts_of(report: FitReport, machine: Machine, request: FitRequest) -> RoutedExperts | None:
    """Return a model's experts if a machine can leave them on the disk."""
    from engine.fit.estimate import estimated_experts
    from engine.fit.memory import streamed_experts

    if report.config is not None and report.tensors is not None:
        wanted = machine.backend, request.kernels
        return streamed_experts(report.config, report.tensors, *wanted)
    if report.estimate is None:
        return None
    return estimated_experts(report.estimate, machine.backend, request.kernels)
