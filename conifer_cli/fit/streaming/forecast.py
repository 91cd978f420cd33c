"""Forecast how a model streams on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from conifer_cli.fit.predict import Target, bytes_per_token, prompt_speed, speed
from conifer_cli.fit.streaming import records
from conifer_cli.fit.verdict import FitReport, FitRequest

if TYPE_CHECKING:
    from catalog.store.store import Store
    from engine.fit.speed import BytesPerToken
    from engine.fit.streaming import Forecast, Plan


def forecast_of(
    report: FitReport, target: Target, request: FitRequest, store: Store, probe: bool = False
) -> Forecast | None:
    """Forecast a model at the start of its context; None unless it streams.

    probe: measure the disk if its rate is unknown.
    """
    plan = report.verdict.plan
    if plan is None:
        return None
    moved = bytes_per_token(report, target, request, 0)
    return forecaster(report, target, request, store, probe)(plan, moved, False)


def forecaster(
    report: FitReport, target: Target, request: FitRequest, store: Store, probe: bool
) -> Callable[[Plan, BytesPerToken | None, bool], Forecast | None]:
    """Return what forecasts a split of memory, given the bytes per token.

    It takes a third value: True for another quantisation than the report's. The disk is measured
    at most once, whatever the size of each quantisation's reads.
    """
    from engine.fit.streaming import ASSUMED_DISK, PROMPT, forecast, joining

    disk = ASSUMED_DISK if target.here is None else None

    def of(plan: Plan, moved: BytesPerToken | None, sibling: bool) -> Forecast | None:
        rate = speed(report, target, moved, sibling)
        if rate is None:
            return None
        if plan.experts.joins and moved is not None:
            chosen, bandwidth = moved.experts_bytes, target.bandwidth.bytes_per_s
            rate = joining(rate, plan.experts, chosen, bandwidth)
        nonlocal disk
        if disk is None and target.here is not None:
            disk = records.disk_of(target.here, report, plan.experts, store, probe)
        assert disk is not None
        prompt = prompt_speed(report, target, PROMPT)
        prompt_s = PROMPT / prompt.per_s if prompt else None
        return forecast(plan, rate, records.curve_of(report, plan.experts), disk, prompt_s)

    return of
