"""Format the output of `conifer fit`: the memory bar and the tables of quantisations and models."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conifer_cli.fit.best import CatalogRow
from conifer_cli.fit.headline import STYLES, WORDS, headline, per_s
from conifer_cli.fit.other_quants import choice
from conifer_cli.fit.streaming import wording
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, counted, gigabytes, shares, size
from conifer_cli.terminal.inline import BOLD, CODE, Row
from conifer_cli.terminal.layout import BAD, FAINT, GOOD, WARNING, Cell, Column, Grid, Line

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from conifer_cli.fit.predict import Target
    from conifer_cli.fit.quant_matrix import QuantRow
    from engine.fit.memory import Verdict
    from engine.fit.speed import BytesPerToken, Rate
    from engine.fit.streaming import Forecast

BAR_WIDTH = 64
BAR_STYLES = dict(zip("WKBP.r|", (GOOD, CODE, "34", "35", FAINT, WARNING, BAD), strict=True))
BEST = 10  # models in the table, unless all are wanted
CATALOG = (
    Column("MODEL"),
    Column("TOTAL", True, rank=3),
    Column("ACTIVE", True, rank=2),
    Column("QUANT", rank=1),
    Column("GB", True),
    Column("VERDICT"),
    Column("CONTEXT", True, rank=1),
    Column("TOKENS/S", True),
    Column(rank=4),
)
_REPACKED = (
    "Repacked for this machine, the weights take up {:.2f} times the file size. "
    "Q4_1, Q4_K, Q5_1, Q5_K and Q8_0 files grow the least."
)
_CAVEAT = "~ estimated from the file size and published data. Run `conifer fit MODEL` for details."
_BUSY = "Only {} are available now: close other programs before you run it."
_HERE = "* on this machine."
_HIDDEN = "Not listed: {}, because a larger file fits as well and is faster."
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

_PLAIN = {"prior": "published"}  # the word for a rate's source on the screen


@dataclass(frozen=True)
class DecodeSpeed:
    """Decoding speeds at the start and end of the context. None means unknown.

    slow: the block type that slows decoding, and its rate per byte relative to Q4_K. prompts: their
    lengths in tokens, and the rates at which they are read. streaming: with experts on the disk.
    """

    moved: BytesPerToken | None
    start: Rate | None
    end: Rate | None
    slow: tuple[str, float] | None = None
    prompts: tuple[tuple[int, Rate], ...] = ()
    streaming: Forecast | None = None


def verdict_lines(
    report: FitReport,
    target: Target,
    found: DecodeSpeed,
    rows: list[QuantRow],
    hints: list[str],
    request: FitRequest,
) -> list[Line]:
    """Format the report on one model: the verdict, the table of quantisations, the details."""
    verdict = report.verdict
    lines: list[Line] = [headline(report, found.start), _title(report)]
    lines += [choice(report)] if report.default_quant else []
    if found.streaming is not None:
        lines += ["", *wording.lines(found.streaming)]
    if not request.accepts(verdict.kind):
        lines += ["", *hints]
    lines += ["", *_matrix(rows, verdict), "", *bar(verdict), ""]
    lines += [_parts(report, request), ""]
    largest = f"{verdict.largest_context:,}" if verdict.largest_context else "none"
    does = "streams" if verdict.kind == "streams" else "fits"
    lines.append(f"context: {verdict.context:,}; largest that {does}: {largest}")
    lines += _speeds(found, target, verdict.context)
    if verdict.need.weights_bytes > 1.25 * verdict.file_bytes:
        lines.append(_REPACKED.format(verdict.need.weights_bytes / verdict.file_bytes))
    return [*lines, *_types(report), f"based on {report.source}"]


def bar(verdict: Verdict) -> list[Line]:
    """Draw memory use as a bar. If it exceeds the budget, `|` marks the end of the budget."""
    width = min(BAR_WIDTH, (console.line_width(sys.stdout) or BAR_WIDTH + 3) - 3)
    need, budget = verdict.need, verdict.budget_bytes
    sizes = (need.weights_bytes, need.kv_bytes, need.buffers_bytes, need.program_bytes)
    whole, drawn, done = max(need.total_bytes, budget, 1), "", 0
    for letter, size_bytes in zip("WKBP", sizes, strict=True):
        done += size_bytes
        drawn += letter * (round(width * done / whole) - len(drawn))
    legend = "W weights, K KV cache, B buffers, P program"
    if need.total_bytes > budget:
        cut = round(width * budget / whole)
        return [_coloured(f"{drawn[:cut]}|{drawn[cut:]}"), f"{legend}; | end of budget"]
    reserve = min(round(width * verdict.reserve_bytes / whole), width - len(drawn))
    drawn += "." * (width - len(drawn) - reserve) + "r" * reserve
    return [_coloured(drawn), f"{legend}, . free, r kept free"]


def _coloured(drawn: str) -> Row:
    return [("", "["), *((BAR_STYLES[letter], letter) for letter in drawn), ("", "]")]


def catalog(
    rows: Sequence[CatalogRow],
    ranked: Sequence[CatalogRow],
    target: Target,
    here: Container[str],
    purpose: str,
    everything: bool,
    available_bytes: int | None = None,
) -> list[Line]:
    """Format the best model, and a table of the best ones or of every model.

    rows: every model, in order of verdicts. ranked: those that fit, the best first. here: the ids
    of the models on this machine. available_bytes: what other programs leave now, if that counts.
    """
    machine, bandwidth = target.machine, target.bandwidth
    rate = f"memory bandwidth {size(int(bandwidth.bytes_per_s))}/s ({_plain(bandwidth.source)})"
    budget = f"budget {gigabytes(machine.budget_bytes)}, {machine.limited_by}"
    about = f"{machine.name}: {budget}; {rate}"
    shown = rows if everything else ranked[:BEST]
    table = Grid(CATALOG, [_cells(row, here) for row in shown])
    sources = {row.rate.source for row in shown if row.rate}
    notes: list[Line] = [_CAVEAT]
    notes += [_HERE] if any(row.entry.id in here for row in shown) else []
    notes += [f"{_plain(source)}: {note}" for source, note in _NOTES.items() if source in sources]
    if not everything:
        counts = Counter(row.kind for row in rows if row not in shown)
        words = {**WORDS, "fits": "fit"}
        more = [f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind]]
        notes.insert(0, f"Not listed: {', '.join(more)}. See `conifer fit --all`.")
    first: list[Line] = [_best(ranked, target, purpose), *_busy(ranked, available_bytes), about]
    return [*first, "", table, "", *notes]


def _best(ranked: Sequence[CatalogRow], target: Target, purpose: str) -> Row:
    what = f"Best {'here' if target.here else 'there'} for {purpose}: "
    if not ranked:
        return [(f"{BOLD};{BAD}", f"{what}nothing fits with a useful context")]
    row = ranked[0]
    facts = row.entry.file(row.quant)
    parts = [size(facts.size_bytes)] if facts and facts.size_bytes is not None else []
    parts += [f"about {per_s(row.rate.per_s)} tokens/s"] if row.rate else []
    command = f"`conifer run {row.name}`"
    more = f", {', '.join(parts)}" if parts else ""
    return [(f"{BOLD};{GOOD}", what), (CODE, command), ("", more)]


def _busy(ranked: Sequence[CatalogRow], available_bytes: int | None) -> list[Line]:
    """Warn if the best model does not fit while the current programs are running."""
    report = ranked[0].report if ranked else None
    if (
        report is None
        or available_bytes is None
        or report.verdict.need.total_bytes <= available_bytes
    ):
        return []
    return [[(WARNING, _BUSY.format(gigabytes(available_bytes)))]]


def _cells(row: CatalogRow, here: Container[str]) -> tuple[Cell, ...]:
    entry, facts = row.entry, row.entry.file(row.quant)
    verdict = row.report.verdict if row.report else None
    sized = facts.size_bytes if facts else None
    word = WORDS[row.kind] + (" ~" if verdict and verdict.estimated else "")
    return (
        entry.id + (" *" if entry.id in here else ""),
        count(entry.total_parameters),
        count(entry.active_parameters) if entry.moe else "dense",
        row.quant,
        f"{sized / 1e9:,.1f}" if sized is not None else "-",
        (STYLES[row.kind], word),
        f"{verdict.context:,}" if verdict and row.kind != "too_large" else "-",
        f"{row.rate.per_s:,.1f}" if row.rate else "-",
        (FAINT, _plain(row.rate.source) if row.rate else ""),
    )


def _plain(source: str) -> str:
    return _PLAIN.get(source, source)


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


def _parts(report: FitReport, request: FitRequest) -> Grid:
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
        ("buffers", need.buffers_bytes, f"working memory{about}"),
        ("program", need.program_bytes, "Python, MLX and Conifer"),
        ("total", need.total_bytes, ""),
        ("reserve", verdict.reserve_bytes, "kept free"),
        ("budget", verdict.budget_bytes, f"{machine.limited_by}, {machine.name}"),
    ]
    rows = [(label, f"{n / 10**9:.2f}", f"{n / 2**30:.2f}", note) for label, n, note in parts]
    return Grid([Column(), Column("GB", True), Column("GiB", True), Column()], rows)


def _speeds(found: DecodeSpeed, target: Target, context: int) -> list[Line]:
    moved = found.moved
    lines: list[Line] = []
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
    first_s = f"{per_s(tokens / rate.per_s)} s to the first token"
    return f"prompt of {tokens:,}: {_range(rate)} tokens/s, {first_s}, {_plain(rate.source)}"


def _range(rate: Rate) -> str:
    return f"{per_s(rate.per_s)} ({per_s(rate.low)} to {per_s(rate.high)})"


def _matrix(rows: list[QuantRow], verdict: Verdict) -> list[Line]:
    shown = [row for row in rows if not any(_is_better(other, row) for other in rows)]
    cells: list[tuple[Cell, ...]] = []
    measured = False
    for row in shown:
        exact = row.known and not verdict.estimated
        own = any(rate and rate.source == "measured" for _, _, rate in row.steps)
        measured = measured or own
        name = row.quant + (" *" if own else "") + ("" if exact else " ~")
        steps = (_step(kind, rate) for _, kind, rate in row.steps)
        cells.append((name, f"{row.size_bytes / 1e9:,.1f}", *steps))
    contexts = [context for context, _, _ in rows[0].steps]
    kept = (contexts[0], verdict.context)
    columns = [Column("QUANT"), Column("GB", True)]
    columns += [
        Column(f"{context:,}", True, rank=0 if context in kept else at)
        for at, context in enumerate(contexts, 1)
    ]
    notes = ["Rates are tokens/s at the end of each context; - means too large, ~ means estimated."]
    notes += [_MEASURED_ROW] if measured else []
    hidden = ", ".join(row.quant for row in rows if row not in shown)
    notes += [_HIDDEN.format(hidden)] if hidden else []
    return [Grid(columns, cells), *notes]


def _is_better(other: QuantRow, row: QuantRow) -> bool:
    """True if a larger file fits wherever a smaller one does, and is faster there."""
    if row.known or other.size_bytes <= row.size_bytes:
        return False
    order = ("fits", "tight", "streams", "too_large")
    pairs = list(zip(other.steps, row.steps, strict=True))
    fits = all(order.index(a[1]) <= order.index(b[1]) for a, b in pairs)
    faster = all(a[2] and a[2].per_s > b[2].per_s for a, b in pairs if b[2])
    return fits and faster and any(b[2] for _, b in pairs)


def _step(kind: str, rate: Rate | None) -> Cell:
    if kind == "too_large":
        return FAINT, "-"
    text = f"{rate.per_s:,.1f}" if rate else "fits"
    return (WARNING, f"{text} {kind}") if kind in ("tight", "streams") else text
