"""Benchmark history: memory bandwidth and real runs measured on this machine.

Each measurement is one line of JSON in `ledger.jsonl` in Conifer's folder, and never leaves this
machine. Invalid lines are skipped, and failed writes are ignored.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli import options
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from conifer_cli.fit.plan import FitReport
    from engine.fit.machine import Machine
    from engine.fit.speed import Bandwidth
    from engine.generate import Stats

FORMAT = 1
MAX_BYTES = 1 << 20  # of the file; beyond this the older half is dropped
LAST = 9  # runs per file used for predictions
TELLING_BYTES = 512 << 20  # smaller files fit a CPU cache and predict nothing
MEASUREMENTS, APART_S = 3, 3600.0  # of bandwidth, at least this far apart; the best counts
MIN_DECODED, MIN_PREFILLED = 16, 64  # tokens needed for a meaningful rate


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a file. Rates are tokens per second; None if there were too few tokens.

    depth: tokens before the middle of the answer. weights_bytes, kv_bytes: bytes one token moved
    at this depth. predicted_bytes: predicted memory use.
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


def machine_key(machine: Machine) -> str:
    """Return a key for machines of equal speed."""
    from engine.device import cores

    threads = f", {cores()} threads" if machine.backend == "cpu" else ""
    return f"{machine.backend}: {machine.name}{threads}"


def bandwidth_of(machine: Machine) -> Bandwidth:
    """Return the highest measured memory bandwidth of this machine. Measuring takes two seconds.

    Other programs only slow a measurement, so repeat it on later calls. Results from buffers that
    may fit a CPU cache are not saved.
    """
    from engine.fit.speed import MEASURED, Bandwidth

    key = machine_key(machine)
    known = [entry for entry in _lines("bandwidth") if entry.get("machine") == key]
    known = [entry for entry in known if _is_rate(entry.get("bytes_per_s"))]
    rates = [float(entry["bytes_per_s"]) for entry in known]
    if len(rates) >= MEASUREMENTS or (rates and _since_s(known[-1].get("date")) < APART_S):
        return Bandwidth(max(rates), MEASURED)
    from engine.fit.bandwidth import BANDWIDTH_BYTES, bandwidth, buffer_bytes

    telling = buffer_bytes(machine.budget_bytes) >= BANDWIDTH_BYTES
    if telling or not rates:
        with Progress("measuring memory bandwidth", "reads") as progress:
            rates.append(round(bandwidth(machine.backend, machine.budget_bytes, progress.update)))
    if telling:
        _append("bandwidth", {"machine": key, "bytes_per_s": rates[-1], "date": _now()})
    return Bandwidth(max(rates), MEASURED)


def runs() -> list[Run]:
    """Return all runs, oldest first."""
    names = {field.name for field in fields(Run)}
    found = []
    for entry in _lines("run"):
        facts = {name: value for name, value in entry.items() if name in names}
        if len(facts) == len(names) and _sound(facts):
            found.append(Run(**facts))
    return found


def run_ratios(
    machine: Machine, kernels: str, bandwidth: Bandwidth
) -> dict[tuple[str, int], list[float]]:
    """Return measured time per token divided by the prior, for each file that ran here."""
    key = machine_key(machine)
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs():
        if run.decode_per_s is not None and (run.machine, run.kernels) == (key, kernels):
            ratio = by_priors(run, bandwidth) / run.decode_per_s
            found.setdefault((run.file, run.size_bytes), []).append(ratio)
    return {file: values[-LAST:] for file, values in found.items()}


def by_priors(run: Run, bandwidth: Bandwidth) -> float:
    """Return the prior for a run, in tokens per second."""
    from engine.fit.speed import BytesPerToken, seconds

    moved = BytesPerToken(0, run.weights_bytes, 0, 0, run.kv_bytes)
    return 1 / seconds(moved, run.layers, bandwidth, run.backend, run.kernels)


def disk_faults() -> int:
    """Return the major page faults of this process so far."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def record_answer(report: FitReport, kernels: str, kv_type: str, stats: Stats, faults: int) -> None:
    """Record the speed of an answer.

    faults: major page faults. The first answer from mapped weights may run at the speed of the
    disk, so an answer with many faults is not recorded.
    """
    computed = stats.prompt_tokens - stats.cached_tokens
    if faults > computed + stats.decoded_tokens:
        return
    record(
        report,
        kernels,
        kv_type,
        tokens=stats.prompt_tokens + stats.decoded_tokens,
        depth=stats.prompt_tokens + stats.decoded_tokens // 2,
        decode_per_s=stats.decode_per_s if stats.decoded_tokens >= MIN_DECODED else None,
        prefill_per_s=stats.prompt_per_s if computed >= MIN_PREFILLED else None,
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
) -> None:
    """Record one run with up to `tokens` in the cache, decoded around `depth`.

    peak_bytes: None means the peak of this process so far.
    """
    from engine.fit.bandwidth import peak_memory_bytes
    from engine.fit.memory import needs
    from engine.fit.speed import bytes_per_token

    if report.config is None or report.tensors is None or not report.paths:
        return
    if report.verdict.kind == "too_large":  # it ran from disk, which predicts nothing
        return
    if decode_per_s is None and prefill_per_s is None:
        return
    config, tensors, machine = report.config, report.tensors, report.verdict.machine
    moved = bytes_per_token(config, tensors, machine.backend, kernels, depth, kv_type)
    need = needs(config, tensors, machine.backend, kv_type, kernels)
    run = Run(
        date=_now(),
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
    )
    _append("run", asdict(run))


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the last values, ignoring None."""
    there = [value for value in values if value is not None][-LAST:]
    return statistics.median(there) if there else None


def _path() -> Path:
    return options.home() / "ledger.jsonl"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _since_s(date: object) -> float:
    """Return the seconds since a date; infinity if it is invalid."""
    try:
        then = datetime.datetime.fromisoformat(str(date))
        return (datetime.datetime.fromisoformat(_now()) - then).total_seconds()
    except (ValueError, TypeError):  # no date, or no time zone
        return math.inf


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else float(f"{rate:.5g}")


def _sound(facts: dict[str, Any]) -> bool:
    """True if every field of a run has a valid type and value."""
    texts = ("date", "machine", "model", "file", "kernels", "backend", "kv_type")
    rates = ("decode_per_s", "prefill_per_s")
    counts = set(facts) - {*texts, *rates}
    return (
        all(isinstance(facts[name], str) for name in texts)
        and all(type(facts[name]) is int and facts[name] >= 0 for name in counts)
        and all(
            facts[name] is None or (type(facts[name]) in (int, float) and facts[name] > 0)
            for name in rates
        )
    )


def _lines(kind: str) -> list[dict[str, Any]]:
    """Return the valid entries of one kind."""
    try:
        text = _path().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and (entry.get("format"), entry.get("kind")) == (
                FORMAT,
                kind,
            ):
                found.append(entry)
    return found


def _append(kind: str, facts: dict[str, Any]) -> None:
    line = json.dumps({"format": FORMAT, "kind": kind, **facts}, separators=(",", ":")) + "\n"
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _shorten(path)
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(number, line.encode())  # one write, so that other processes cannot interleave
        finally:
            os.close(number)


def _shorten(path: Path) -> None:
    """Drop the older half of a file over MAX_BYTES."""
    if not path.exists() or path.stat().st_size < MAX_BYTES:
        return
    lines = path.read_bytes().splitlines(keepends=True)
    shorter = path.with_suffix(f".{os.getpid()}")
    shorter.write_bytes(b"".join(lines[len(lines) // 2 :]))
    os.replace(shorter, path)
