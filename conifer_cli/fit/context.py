"""How much context a model can have on this machine, and what limits it."""

from __future__ import annotations

from conifer_cli.errors import UsageError
from conifer_cli.fit.verdict import FitReport
from conifer_cli.terminal.format import counted


def largest_context(report: FitReport, context: int) -> int:
    """Return the largest context that can be reserved, in tokens.

    context: the current one. If it is too large for the memory, --force was given, and only the
    model limits the context.
    """
    largest = report.verdict.largest_context
    return largest if context <= largest else max(report.supported_context, context)


def limit(report: FitReport, context: int) -> str:
    """Return a sentence that names the limit of the context: the model or the memory."""
    largest, supported = largest_context(report, context), report.supported_context
    if largest >= supported:
        return f"{report.name} supports no more than {counted(supported, 'token')}."
    return (
        f"{report.name} supports {counted(supported, 'token')}, but no more than {largest:,} fit "
        "in memory."
    )


def advice(report: FitReport, context: int, needed: int, kv_type: str) -> str:
    """Return how to reserve a context of `needed` tokens, or why that is impossible."""
    largest = largest_context(report, context)
    if needed <= largest:
        wanted = min(max(needed, 2 * context), largest)
        return f"Pass -c {wanted} for a larger context. The largest that fits is {largest:,}."
    if needed > report.supported_context:
        remedy = "Run `conifer list --catalog` to see the context of every model."
    elif kv_type == "q8":
        remedy = "Close other programs to free memory."
    else:
        remedy = "Close other programs, or pass --kv-type q8, which takes less memory."
    return f"{limit(report, context)} {remedy}"


def require_room(report: FitReport, context: int, wanted: int) -> None:
    """Raise UsageError if the model or the memory does not allow a context of `wanted` tokens."""
    if report.streaming and wanted > report.verdict.context:
        hint = f"Experts have the rest of the memory. Start again with -c {wanted}."
        raise UsageError(f"a context of {wanted:,} tokens is too large for now", hint)
    if wanted > largest_context(report, context):
        raise UsageError(f"a context of {wanted:,} tokens is too large", limit(report, context))
