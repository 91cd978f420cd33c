"""Open a session: check that the model fits, download it if it is missing, and load it."""

from __future__ import annotations

from conifer_cli.acquire import RequestedModel, ensure, judge
from conifer_cli.errors import UsageError
from conifer_cli.fit.verdict import FitReport, FitRequest, reading
from conifer_cli.run_options import RunOptions
from conifer_cli.session.router_report import require_experts
from conifer_cli.session.session import Session, is_raw
from conifer_cli.terminal import console


def open_session(target: RequestedModel, options: RunOptions, offline: bool = False) -> Session:
    """Open a session. offline: never download, even if `options` allows it."""
    offline = offline or options.offline
    request = FitRequest(
        options.context,
        options.kv_type,
        options.force,
        options.yes,
        options.kernels,
        offline,
        stream=options.stream,
        budget_bytes=options.budget,
        asks=console.can_ask(),
    )
    report = judge(target, request)
    require_template(report, options)
    require_experts(report, options.experts_out)
    report = ensure(target, report, request)
    with reading(target.name, target.reference):
        return Session(report, options)


def require_template(report: FitReport, options: RunOptions) -> None:
    """Raise UsageError if an option needs a chat template and the model has none."""
    if is_raw(report):
        flags = {
            "system": "-s/--system",
            "think": "--think",
            "effort": "--effort",
            "reasoning_budget": "--reasoning-budget",
        }
        for name, flag in flags.items():
            if getattr(options, name) is not None and options.is_explicit(name):
                raise UsageError(f"{flag} requires a chat template, but this model has none")
