"""What was measured on this machine, kept on it: the rate of its memory, the rates of real runs.

One line of JSON for each measurement, in `ledger.jsonl` under Conifer's home; nothing of it leaves
the machine. A line that cannot be read is passed over, and a disk that takes none is no failure:
predictions are then what they were.
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
MAX_BYTES = 1 << 20  # of the file; of a longer one the older half goes
LAST = 9  # runs of a file that count
TELLING_BYTES = 512 << 20  # from which on a file says something of others: a cache holds less
MEASUREMENTS, APART_S = 3, 3600.0  # of the memory: so many, so far apart, of which the best counts
MIN_DECODED, MIN_PREFILLED = 16, 64  # tokens from which on a rate says something


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a file. Rates are tokens per second, None where there were too few tokens.

    depth: tokens before the middle of the answer. weights_bytes, kv_bytes: what one token moved
    there. predicted_bytes: the memory that the arithmetic says so many tokens need.
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
    """Name a machine as far as its speed goes."""
    from engine.device import cores

    threads = f", {cores()} threads" if machine.backend == "cpu" else ""
    return f"{machine.backend}: {machine.name}{threads}"


def bandwidth_of(machine: Machine) -> Bandwidth:
    """Say how fast this machine reads memory: the most that was measured, which takes two seconds.

    What else runs only ever slows a read, so that later calls measure again. What was read from a
    buffer that a cache may hold is not kept.
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
        with Progress("measuring how fast this machine reads memory", "reads") as progress:
            rates.append(round(bandwidth(machine.backend, machine.budget_bytes, progress.update)))
    if telling:
        _append("bandwidth", {"machine": key, "bytes_per_s": rates[-1], "date": _now()})
    return Bandwidth(max(rates), MEASURED)


def runs() -> list[Run]:
    """Read the runs, the oldest first."""
    names = {field.name for field in fields(Run)}
    found = []
    for entry in _lines("run"):
        facts = {name: value for name, value in entry.items() if name in names}
        if len(facts) == len(names) and _sound(facts):
            found.append(Run(**facts))
    return found


def ratios(
    machine: Machine, kernels: str, bandwidth: Bandwidth
) -> dict[tuple[str, int], list[float]]:
    """Say for every file that ran here how many times longer a token took than by the priors."""
    key = machine_key(machine)
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs():
        if run.decode_per_s is not None and (run.machine, run.kernels) == (key, kernels):
            ratio = by_priors(run, bandwidth) / run.decode_per_s
            found.setdefault((run.file, run.size_bytes), []).append(ratio)
    return {file: values[-LAST:] for file, values in found.items()}


def by_priors(run: Run, bandwidth: Bandwidth) -> float:
    """Say how many tokens a second the priors give for a run."""
    from engine.fit.speed import BytesPerToken, seconds

    moved = BytesPerToken(0, run.weights_bytes, 0, 0, run.kv_bytes)
    return 1 / seconds(moved, run.layers, bandwidth, run.backend, run.kernels)


def disk_faults() -> int:
    """Count how often this process has waited for the disk with a page of memory so far."""
    try:
        import resource
    except ImportError:  # where there is none nobody counts
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def record_answer(report: FitReport, kernels: str, kv_type: str, stats: Stats, faults: int) -> None:
    """Keep what an answer took.

    faults: how often it waited for the disk. Where weights are mapped, the first answer after a
    start of the machine decodes at the disk's rate, which says nothing of the next.
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
    """Keep one run of a model: `tokens` at most in its cache, decoded around `depth`.

    peak_bytes: None is what this process has held until now.
    """
    from engine.fit.bandwidth import peak_memory_bytes
    from engine.fit.memory import needs
    from engine.fit.speed import bytes_per_token

    if report.config is None or report.tensors is None or not report.paths:
        return
    if report.verdict.kind == "too_large":  # it ran from the disk, which says nothing of others
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
    """Give the median of the last values that are there."""
    there = [value for value in values if value is not None][-LAST:]
    return statistics.median(there) if there else None


def _path() -> Path:
    return options.home() / "ledger.jsonl"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _since_s(date: object) -> float:
    """Say how long ago something was written; without a date that makes sense, for ever."""
    try:
        then = datetime.datetime.fromisoformat(str(date))
        return (datetime.datetime.fromisoformat(_now()) - then).total_seconds()
    except (ValueError, TypeError):  # no date, or one of no time zone
        return math.inf


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else float(f"{rate:.5g}")


def _sound(facts: dict[str, Any]) -> bool:
    """Check a run that was read: a file may have been edited, or be of another version."""
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
    """Read the lines of one kind, as far as they are ours."""
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
            os.write(number, line.encode())  # in one piece, whoever else is writing
        finally:
            os.close(number)


def _shorten(path: Path) -> None:
    """Drop the older half of a file that has grown long."""
    if not path.exists() or path.stat().st_size < MAX_BYTES:
        return
    lines = path.read_bytes().splitlines(keepends=True)
    shorter = path.with_suffix(f".{os.getpid()}")
    shorter.write_bytes(b"".join(lines[len(lines) // 2 :]))
    os.replace(shorter, path)
