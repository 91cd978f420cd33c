"""Format the output of `conifer fit`: the memory bar and the tables of quantisations and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conifer_cli.fit.other_quants import choice
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.terminal.format import count, counted, gigabytes, shares, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from catalog import Entry
    from conifer_cli.fit.predict import Target
    from conifer_cli.fit.quant_matrix import QuantRow
    from engine.fit.memory import Verdict
    from engine.fit.speed import BytesPerToken, Rate

WORDS = {"fits": "fits", "tight": "tight", "too_large": "too large", None: "unknown"}
BAR_WIDTH = 64
_REPACKED = (
    "Repacked for this machine, the weights take up {:.2f} times the file size. "
    "Q4_1, Q4_K, Q5_1, Q5_K and Q8_0 files grow the least."
)
_CAVEAT = "~ estimated from the file size and published data. Run `conifer fit MODEL` for details."
_MEASURED_ROW = "* measured on this machine; the other rows are predicted from it."
_SLOW = "{} blocks decode at {:.1g} x the rate of Q4_K for each byte"
_SOURCES = {
    "measured": "measured on this machine",
    "predicted": "predicted from the measured memory bandwidth, {}",
    "prior": "predicted from the published memory bandwidth, {}, and other programs' rates",
}
_NOTES = {
    "measured": "taken from runs on this machine.",
    "predicted": "calculated from measurements on this machine.",
    "prior": "calculated from published figures and other programs' rates, which Conifer aims at.",
}


@dataclass(frozen=True)
class DecodeSpeed:
    """Decoding speeds at the start and end of the context. None means unknown.

    slow: the block type that slows decoding, and its rate per byte relative to Q4_K. prompts: their
    lengths in tokens, and the rates at which they are read.
    """

    moved: BytesPerToken | None
    start: Rate | None
    end: Rate | None
    slow: tuple[str, float] | None = None
    prompts: tuple[tuple[int, Rate], ...] = ()


@dataclass(frozen=True)
class CatalogRow:
    """One model in the catalog table.

    report: None if the model is unsupported or its file size is unknown.
    """

    entry: Entry
    quant: str
    report: FitReport | None
    rate: Rate | None

    @property
    def kind(self) -> str | None:
        """The verdict: fits, tight, too_large, or None if unknown."""
        return self.report.verdict.kind if self.report else None


def verdict_lines(
    report: FitReport,
    target: Target,
    found: DecodeSpeed,
    rows: list[QuantRow],
    hints: list[str],
    request: FitRequest,
) -> list[str]:
    """Format the report on one model as lines of text."""
    verdict = report.verdict
    lines = [_title(report), f"based on {report.source}"]
    lines += [choice(report)] if report.default_quant else []
    lines += [*_types(report), "", *bar(verdict), ""]
    lines += [*_parts(report, request), ""]
    lines.append(f"verdict: {WORDS[verdict.kind]}" + (" (estimated)" if verdict.estimated else ""))
    largest = f"{verdict.largest_context:,}" if verdict.largest_context else "none"
    lines.append(f"context: {verdict.context:,}; largest that fits: {largest}")
    lines += _speeds(found, target, verdict.context)
    if verdict.need.weights_bytes > 1.25 * verdict.file_bytes:
        lines.append(_REPACKED.format(verdict.need.weights_bytes / verdict.file_bytes))
    if verdict.kind == "too_large":
        lines += ["", *hints]
    return [*lines, "", *_matrix(rows, verdict)]


def bar(verdict: Verdict) -> list[str]:
    """Draw memory use as a bar. If it exceeds the budget, `|` marks the end of the budget."""
    need, budget = verdict.need, verdict.budget_bytes
    sizes = (need.weights_bytes, need.kv_bytes, need.buffers_bytes, need.program_bytes)
    whole, drawn, done = max(need.total_bytes, budget, 1), "", 0
    for letter, size_bytes in zip("WKBP", sizes, strict=True):
        done += size_bytes
        drawn += letter * (round(BAR_WIDTH * done / whole) - len(drawn))
    if need.total_bytes > budget:
        cut = round(BAR_WIDTH * budget / whole)
        drawn = f"{drawn[:cut]}|{drawn[cut:]}"
        return [f"[{drawn}]", "W weights, K KV cache, B buffers, P program; | end of budget"]
    reserve = min(round(BAR_WIDTH * verdict.reserve_bytes / whole), BAR_WIDTH - len(drawn))
    drawn += "." * (BAR_WIDTH - len(drawn) - reserve) + "r" * reserve
    return [f"[{drawn}]", "W weights, K KV cache, B buffers, P program, . free, r reserve"]


def catalog(rows: Sequence[CatalogRow], target: Target) -> list[str]:
    """Format a table of every model in the catalog."""
    machine, bandwidth = target.machine, target.bandwidth
    rate = f"memory bandwidth {size(int(bandwidth.bytes_per_s))}/s ({bandwidth.source})"
    budget = f"budget {gigabytes(machine.budget_bytes)}, {machine.limited_by}"
    first = f"{machine.name}: {budget}; {rate}"
    heading = ("MODEL", "TOTAL", "ACTIVE", "QUANT", "FILE", "VERDICT", "CONTEXT", "TOKENS/S", "")
    cells = [_cells(row) for row in rows]
    sources = {row.rate.source for row in rows if row.rate}
    notes = [f"{source}: {note}" for source, note in _NOTES.items() if source in sources]
    return [first, "", *table([heading, *cells], right=(1, 2, 4, 6, 7)), "", _CAVEAT, *notes]


def _cells(row: CatalogRow) -> tuple[str, ...]:
    entry, facts = row.entry, row.entry.file(row.quant)
    verdict = row.report.verdict if row.report else None
    sized = facts.size_bytes if facts else None
    word = WORDS[row.kind] + (" ~" if verdict and verdict.estimated else "")
    return (
        entry.id,
        count(entry.total_parameters),
        count(entry.active_parameters) if entry.moe else "dense",
        row.quant,
        size(sized) if sized is not None else "-",
        word,
        f"{verdict.context:,}" if verdict and row.kind != "too_large" else "-",
        _number(row.rate.per_s) if row.rate else "-",
        row.rate.source if row.rate else "",
    )


def _title(report: FitReport) -> str:
    entry, config = report.entry, report.config
    if entry is not None:
        sizes = _sizes(entry.total_parameters, entry.active_parameters, entry.moe)
        return f"{report.name}: {entry.name}, {sizes}"
    if config is None or report.parameters is None:
        return report.name
    sizes = _sizes(*report.parameters, config.experts is not None)
    return f"{report.name}: {config.name}, {config.architecture}, {sizes}"


def _sizes(total: int | None, active: int | None, moe: bool) -> str:
    text = f"{count(total)} parameters"
    return f"{text}, {count(active)} active per token" if moe else text


def _types(report: FitReport) -> list[str]:
    from engine.kernels.sizes import bytes_by_type

    return [f"made of {shares(bytes_by_type(report.tensors))}"] if report.tensors else []


def _parts(report: FitReport, request: FitRequest) -> list[str]:
    verdict, need = report.verdict, report.verdict.need
    machine = verdict.machine
    about = ", estimated" if verdict.estimated else ""
    parts = [
        ("weights", need.weights_bytes, f"file size {size(report.size_bytes)}"),
        (
            "KV cache",
            need.kv_bytes,
            f"{counted(verdict.context, 'token')}, {request.kv_type}{about}",
        ),
        ("buffers", need.buffers_bytes, about.removeprefix(", ")),
        ("program", need.program_bytes, ""),
        ("total", need.total_bytes, ""),
        ("reserve", verdict.reserve_bytes, "left free"),
        ("budget", verdict.budget_bytes, f"{machine.limited_by}, {machine.name}"),
    ]
    rows = [(label, f"{n / 10**9:.2f}", f"{n / 2**30:.2f}", note) for label, n, note in parts]
    return table([("", "GB", "GiB", ""), *rows], right=(1, 2))


def _speeds(found: DecodeSpeed, target: Target, context: int) -> list[str]:
    moved, lines = found.moved, []
    if found.start and found.end:
        at = counted(context, "token")
        rates = f"{_range(found.start)} at the start, {_range(found.end)} at {at}"
        read = f"{size(int(target.bandwidth.bytes_per_s))}/s"
        lines = [f"tokens/s: {rates}", f"  {_SOURCES[found.start.source].format(read)}"]
        lines += [f"  {_SLOW.format(*found.slow)}"] if found.slow else []
    lines += [_prompt(tokens, rate) for tokens, rate in found.prompts]
    if moved is not None:
        labels = ("experts", "attention", "shared", "head")
        parts = {label: getattr(moved, f"{label}_bytes") for label in labels}
        named = ", ".join(f"{label} {size(n)}" for label, n in parts.items() if n)
        lines.append(f"bytes per token: {size(moved.weights_bytes)} of weights ({named})")
    return lines


def _prompt(tokens: int, rate: Rate) -> str:
    first_s = f"{_number(tokens / rate.per_s)} s to the first token"
    return f"prompt of {tokens:,}: {_range(rate)} tokens/s, {first_s}, {rate.source}"


def _range(rate: Rate) -> str:
    return f"{_number(rate.per_s)} ({_number(rate.low)} to {_number(rate.high)})"


def _number(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def _matrix(rows: list[QuantRow], verdict: Verdict) -> list[str]:
    contexts = [context for context, _, _ in rows[0].steps]
    lines = [("QUANT", "FILE", *(f"{context:,}" for context in contexts))]
    measured = False
    for row in rows:
        exact = row.known and not verdict.estimated
        own = any(rate and rate.source == "measured" for _, _, rate in row.steps)
        measured = measured or own
        name = row.quant + (" *" if own else "") + ("" if exact else " ~")
        steps = (_step(kind, rate) for _, kind, rate in row.steps)
        lines.append((name, size(row.size_bytes), *steps))
    legend = "Rates are tokens/s at the end of each context; - means too large, ~ means estimated."
    notes = [legend, _MEASURED_ROW] if measured else [legend]
    return [*table(lines, right=range(1, len(contexts) + 2)), *notes]


def _step(kind: str, rate: Rate | None) -> str:
    if kind == "too_large":
        return "-"
    return (_number(rate.per_s) if rate else "fits") + (" tight" if kind == "tight" else "")
