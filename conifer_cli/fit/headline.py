"""The verdict on a model in one line, for `fit`, `pull` and their questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conifer_cli.terminal.inline import BOLD, Row
from conifer_cli.terminal.layout import BAD, GOOD, WARNING

if TYPE_CHECKING:
    from conifer_cli.fit.verdict import FitReport
    from engine.fit.speed import Rate

WORDS = {
    "fits": "fits",
    "tight": "tight",
    "streams": "streams",
    "too_large": "too large",
    None: "unknown",
}
STYLES = {"fits": GOOD, "tight": WARNING, "streams": WARNING, "too_large": BAD, None: ""}


def headline(report: FitReport, rate: Rate | None) -> Row:
    """Return the verdict, the memory that it takes, the context and the speed."""
    verdict = report.verdict
    need, budget = verdict.need.total_bytes / 1e9, verdict.budget_bytes / 1e9
    about = " (estimated)" if verdict.estimated else ""
    parts = [f"{need:,.1f} of {budget:,.1f} GB"]
    if verdict.kind != "too_large":
        parts.append(f"context {verdict.context:,}")
    if rate is not None:
        least = "" if rate.source == "measured" else "about "
        parts.append(f"{least}{per_s(rate.per_s)} tokens/s")
    word = f"verdict: {WORDS[verdict.kind]}{about}"
    return [(f"{BOLD};{STYLES[verdict.kind]}", word), ("", f"; {', '.join(parts)}")]


def per_s(rate: float) -> str:
    """Format a rate: one decimal, or none from 100 on."""
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:.1f}"
