"""Benchmark history: memory bandwidth and model runs measured on this machine.

Each measurement is one line of JSON in `ledger.jsonl` in Conifer's folder. The file never leaves
this machine. Invalid lines are skipped, and failed writes are ignored.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import resource
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from catalog.files import open_regular, parse_json, read_file, write_atomically
from conifer_cli import options
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from conifer_cli.fit.verdict import FitReport
    from engine.fit.machine import Machine
    from engine.fit.speed import Bandwidth
    from engine.generate import Stats

_T = TypeVar("_T")
FORMAT = 1
MAX_BYTES = 1 << 20  # maximum file size; when reached, drop the older half
MAX_FILE_BYTES = 4 * MAX_BYTES  # a larger file is not read
LAST = 9  # most recent runs per file that predictions use
ABOUT = 1.5  # the factor by which prompts that are compared may differ in length
MIN_FILE_BYTES = 512 << 20  # smaller files fit in a CPU cache and predict nothing
MEASUREMENTS, APART_S = 3, 3600.0  # of bandwidth, at least an hour apart
MIN_DECODED, MIN_PREFILLED = 16, 64  # tokens needed for a meaningful rate
RATES = (1e-6, 1e15)  # tokens or bytes per second; anything else is not a measurement


@dataclass(frozen=True, slots=True)
class _Kind:
    kind: str


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run. Rates are in tokens per second, or None if there were too few tokens.

    depth: cache length halfway through the answer. weights_bytes, kv_bytes: bytes moved per token
    at this depth. predicted_bytes: predicted memory use. types: the bytes of weights by block type,
    empty in older records.
    """

    date: str
    machine: str
    model: str
    file: str
    size_bytes: int
    kernels: str
    backend: str
    kv_type: str
    layers: int
    depth: int
    weights_bytes: int
    kv_bytes: int
    decode_per_s: float | None
    prefill_per_s: float | None
    peak_bytes: int
    predicted_bytes: int
    types: dict[str, int] = field(default_factory=dict)
    routed_layers: int = 0
    kv_reuse: float = 0.0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured memory bandwidth."""

    machine: str
    bytes_per_s: float
    date: Any = None


def is_rate(value: float) -> bool:
    """True if a measured rate is plausible."""
    return RATES[0] <= value <= RATES[1]


def machine_key(machine: Machine) -> str:
    """Return a key shared by all machines of equal speed."""
    from engine.device import cores

    threads = f", {cores()} threads" if machine.backend == "cpu" else ""
    return f"{machine.backend}: {machine.name}{threads}"


def bandwidth_of(machine: Machine, keep: bool = True) -> Bandwidth:
    """Return the highest memory bandwidth measured on this machine.

    Measuring takes two seconds. Other programs can only lower a result, so later calls measure
    again. Results from buffers that fit in a CPU cache are not saved. keep: False saves none.
    """
    from engine.fit.decode_cost import byte_seconds
    from engine.fit.machine_specs import known_here
    from engine.fit.speed import MEASURED, Bandwidth

    key = machine_key(machine)
    rates, age_s = [], math.inf
    for entry in lines("bandwidth", Measurement):
        if entry.machine == key and is_rate(entry.bytes_per_s):
            rates.append(float(entry.bytes_per_s))
            age_s = since_s(entry.date)
    core_s, (costs, flops) = byte_seconds(machine.backend), known_here(machine)
    if len(rates) >= MEASUREMENTS or age_s < APART_S:
        return Bandwidth(max(rates), MEASURED, core_s, costs, flops=flops)
    from engine.fit.bandwidth import BANDWIDTH_BYTES, bandwidth, buffer_bytes

    reliable = buffer_bytes(machine.budget_bytes) >= BANDWIDTH_BYTES
    if reliable or not rates:
        with Progress("measuring memory bandwidth", "reads") as progress:
            rates.append(round(bandwidth(machine.backend, machine.budget_bytes, progress.update)))
    if reliable and keep:
        append("bandwidth", {"machine": key, "bytes_per_s": rates[-1], "date": now()})
    return Bandwidth(max(rates), MEASURED, core_s, costs, flops=flops)


def runs() -> list[Run]:
    """Return all recorded runs, oldest first."""
    return [run for run in lines("run", Run) if _is_sound(run)]


def _is_sound(run: Run) -> bool:
    """True if a run's values are plausible."""
    from engine.fit.speed import BACKEND_COSTS

    rates = (rate for rate in (run.decode_per_s, run.prefill_per_s) if rate is not None)
    counts = (run.depth, run.kv_bytes, run.peak_bytes, run.predicted_bytes, *run.types.values())
    positive = (run.size_bytes, run.layers, run.weights_bytes)
    known = (run.backend, run.kernels) in BACKEND_COSTS
    return known and min(counts) >= 0 and min(positive) >= 1 and all(map(is_rate, rates))


def run_ratios(
    machine: Machine, kernels: str, bandwidth: Bandwidth
) -> dict[tuple[str, int], list[float]]:
    """Return measured time per token divided by predicted time, by file name and size."""
    key = machine_key(machine)
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs():
        if run.decode_per_s is not None and (run.machine, run.kernels) == (key, kernels):
            ratio = by_priors(run, bandwidth) / run.decode_per_s
            found.setdefault((run.file, run.size_bytes), []).append(ratio)
    return {file: values[-LAST:] for file, values in found.items()}


def prompt_rates(machine: Machine, kernels: str, file: tuple[str, int], tokens: int) -> list[float]:
    """Return the rates at which a file read prompts of about so many tokens on this machine."""
    key = machine_key(machine)
    return [
        run.prefill_per_s
        for run in runs()
        if (run.machine, run.kernels, run.file, run.size_bytes) == (key, kernels, *file)
        and run.prefill_per_s is not None
        and tokens / ABOUT <= run.prompt_tokens <= ABOUT * tokens
    ][-LAST:]


def by_priors(run: Run, bandwidth: Bandwidth) -> float:
    """Predict the tokens per second of a run from bandwidth alone."""
    from engine.fit.speed import BytesPerToken, seconds

    moved = BytesPerToken(
        *(0, run.weights_bytes, 0, 0, run.kv_bytes), run.types, run.routed_layers, run.kv_reuse
    )
    return 1 / seconds(moved, run.layers, bandwidth, run.backend, run.kernels)


def disk_faults() -> int:
    """Return the number of major page faults in this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def record_answer(report: FitReport, kernels: str, kv_type: str, stats: Stats, faults: int) -> None:
    """Record an answer's speed, unless disk reads limited it.

    faults: major page faults during the answer. If there are more faults than tokens, nothing is
    recorded. Streamed answers have records of their own.
    """
    computed = stats.prompt_tokens - stats.cached_tokens
    if report.streaming is not None or faults > computed + stats.decoded_tokens:
        return
    record(
        report,
        kernels,
        kv_type,
        tokens=stats.prompt_tokens + stats.decoded_tokens,
        depth=stats.prompt_tokens + stats.decoded_tokens // 2,
        decode_per_s=stats.decode_per_s if stats.decoded_tokens >= MIN_DECODED else None,
        prefill_per_s=stats.prompt_per_s if computed >= MIN_PREFILLED else None,
        prompt_tokens=computed,
    )


def record(
    report: FitReport,
    kernels: str,
    kv_type: str,
    tokens: int,
    depth: int,
    decode_per_s: float | None,
    prefill_per_s: float | None,
    peak_bytes: int | None = None,
    prompt_tokens: int = 0,
) -> None:
    """Record one run.

    tokens: the largest cache length. depth: the approximate cache length at which the speed
    was measured. peak_bytes: peak memory use; defaults to this process's peak so far.
    prompt_tokens: how many tokens prefill_per_s is the rate of.
    """
    from engine.fit.bandwidth import peak_memory_bytes
    from engine.fit.memory import needs
    from engine.fit.speed import bytes_per_token

    config, tensors, machine = report.config, report.tensors, report.verdict.machine
    if config is None or tensors is None or not report.paths:
        return
    streams = report.streaming is not None
    if report.verdict.kind in ("too_large", "streams") and not streams:  # the disk limits its speed
        return
    if decode_per_s is None and prefill_per_s is None:
        return
    moved = bytes_per_token(config, tensors, machine.backend, kernels, depth, kv_type)
    need = needs(config, tensors, machine.backend, kv_type, kernels)
    run = Run(
        date=now(),
        machine=machine_key(machine),
        model=report.name if report.entry else report.paths[0].name,
        file=report.paths[0].name,
        size_bytes=report.size_bytes,
        kernels=kernels,
        backend=machine.backend,
        kv_type=kv_type,
        layers=config.layers,
        depth=depth,
        weights_bytes=moved.weights_bytes,
        kv_bytes=moved.kv_bytes,
        decode_per_s=_rounded(decode_per_s),
        prefill_per_s=_rounded(prefill_per_s),
        peak_bytes=peak_memory_bytes() if peak_bytes is None else peak_bytes,
        predicted_bytes=need(tokens).total_bytes,
        types=dict(moved.types),
        routed_layers=moved.routed_layers,
        kv_reuse=moved.kv_reuse,
        prompt_tokens=prompt_tokens,
    )
    append("run", asdict(run))


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the most recent values, ignoring None."""
    from engine.fit.speed import median as middle

    known = [value for value in values if value is not None][-LAST:]
    return middle(known) if known else None


def _path() -> Path:
    return options.home() / "ledger.jsonl"


def now() -> str:
    """Return the date of an entry: ISO 8601, with a time zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def since_s(date: object) -> float:
    """Return the seconds since a date; infinity if the date is invalid."""
    try:
        then = datetime.datetime.fromisoformat(str(date))
        return (datetime.datetime.fromisoformat(now()) - then).total_seconds()
    except (ValueError, TypeError, OverflowError):  # missing date or time zone
        return math.inf


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else float(f"{rate:.5g}")


def lines(kind: str, shape: type[_T]) -> list[_T]:
    """Return the entries of a kind; skips those of any other shape."""
    path = _path()
    try:
        stat = path.stat()
        kept = _lines(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    except OSError:
        return []
    found = [parse_json(line, shape, FORMAT) for of, line in kept if of == kind]
    return [entry for entry in found if entry is not None]


@lru_cache(maxsize=1)
def _lines(path: Path, state: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return (kind, line) for each entry. `fit` asks for each model; state: read again if new."""
    text = read_file(path, MAX_FILE_BYTES).decode(errors="replace")
    kinds = [(parse_json(line, _Kind, FORMAT), line) for line in text.splitlines()]
    return [(entry.kind, line) for entry, line in kinds if entry is not None]


def append(kind: str, values: dict[str, Any]) -> None:
    """Add an entry of a kind. Does nothing if the file cannot be written."""
    line = json.dumps({"format": FORMAT, "kind": kind, **values}, separators=(",", ":")) + "\n"
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _shorten(path)
        with open_regular(path, "ab") as file:
            file.write(line.encode())  # one write, so lines cannot interleave


def _shorten(path: Path) -> None:
    if not path.is_file() or path.stat().st_size < MAX_BYTES:
        return
    try:
        lines = read_file(path, MAX_FILE_BYTES).splitlines(keepends=True)
    except OSError:  # too large to be Conifer's
        lines = []
    write_atomically(path, b"".join(lines[len(lines) // 2 :]), mode=0o644)
