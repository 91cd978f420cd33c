"""The rate of this machine's disk and the routes of models that ran here, kept in the ledger.

A forecast uses both. The disk is measured by random reads when a forecast first needs it; after
that, each answer that had to wait for the disk says how fast the disk was.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli.fit.run_history import (
    ABOUT,
    APART_S,
    MIN_DECODED,
    append,
    is_rate,
    lines,
    machine_key,
    now,
    record,
    since_s,
)
from conifer_cli.terminal import console
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog.store.store import Store
    from conifer_cli.fit.verdict import FitReport
    from engine.fit.machine import Machine
    from engine.fit.streaming import Curve, DiskSpeed, RoutedExperts
    from engine.generate import Stats
    from engine.nn.router_stats import RouterStats
    from engine.serving.scheduler import Finished
    from engine.streaming import StoreStats

LAST = 3  # measurements of a disk that count: it may be shared, and change
RANGE = 1.25  # how much a disk may differ from all that was measured
MAX_READ = 1 << 20  # the store reads larger matrices in pieces
WAITED_SHARE, WAITED_BYTES = 0.1, 64 << 20  # of an answer, for which the disk's rate is known
MIN_CHOSEN = 48  # tokens after which distances to the last choice of an expert mean something
POINTS = 64  # of a curve in the ledger


@dataclass(frozen=True, slots=True)
class DiskRate:
    """A measured rate of a disk. device: as in /proc/self/mountinfo. read_bytes: of each read."""

    machine: str
    device: str
    read_bytes: int
    bytes_per_s: float
    date: Any = None


@dataclass(frozen=True, slots=True)
class Routes:
    """How often a model's routers repeat themselves.

    experts, used: of a layer. points: shares of the experts in memory, each with its hit rate.
    chosen: how many choices were counted.
    """

    model: str
    file: str
    size_bytes: int
    experts: int
    used: int
    points: list[list[float]]
    chosen: int


def disk_of(
    machine: Machine, report: FitReport, experts: RoutedExperts, store: Store, probe: bool
) -> DiskSpeed:
    """Return the rate of the disk that has, or will have, a model's file.

    probe: measure it if it is unknown, for two seconds; before a first download, on a temporary
    file. Otherwise, a rate is assumed.
    """
    from engine.fit.speed import MEASURED, median
    from engine.fit.streaming import ASSUMED_DISK, MATRICES, DiskSpeed

    read_bytes = min(MAX_READ, math.ceil(experts.mean_bytes / MATRICES))
    place = report.paths[0] if report.paths else store.hub_cache
    key, device = machine_key(machine), _device(place)
    known = [
        found
        for found in lines("disk", DiskRate)
        if (found.machine, found.device) == (key, device)
        and read_bytes / ABOUT <= found.read_bytes <= ABOUT * read_bytes
        and is_rate(found.bytes_per_s)
    ]
    rates = [found.bytes_per_s for found in known]
    fresh = len(rates) >= LAST or (bool(known) and since_s(known[-1].date) < APART_S)
    if probe and not fresh:
        with suppress(OSError):
            rates.append(_measured(report, read_bytes, store))
            append("disk", _rate(key, device, read_bytes, rates[-1]))
    if not rates:
        return ASSUMED_DISK
    last = rates[-LAST:]
    return DiskSpeed(median(last), min(last) / RANGE, RANGE * max(last), MEASURED)


def _measured(report: FitReport, read_bytes: int, store: Store) -> float:
    from engine.fit.disk import TEMPORARY_BYTES, random_read_rate, temporary_read_rate

    path, folder = _large_file(report, store), store.hub_cache
    if path is None:
        from catalog.store.disk import SPARE_BYTES, existing, free_bytes

        if (free_bytes(folder) or 0) < TEMPORARY_BYTES + SPARE_BYTES:
            raise OSError(None, "too little space to measure the disk")
        console.note(f"measuring the disk with a temporary file of 1 GB in {folder}")
        folder = existing(folder)
    with Progress("measuring the disk", "reads") as progress:
        if path is None:
            return temporary_read_rate(folder, read_bytes, on_read=progress.update)
        return random_read_rate(path, read_bytes, on_read=progress.update)


def _large_file(report: FitReport, store: Store) -> Path | None:
    """Return the model's own file, or the largest on the disk that it will be on."""
    if report.paths:
        return max(report.paths, key=_size)
    from engine.fit.disk import TEMPORARY_BYTES

    device = _device(store.hub_cache)
    files = [path for model in store.installed() for path in model.paths]
    alike = [path for path in files if _device(path) == device and _size(path) >= TEMPORARY_BYTES]
    return max(alike, key=_size, default=None)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _device(place: Path) -> str:
    """Return the number of the disk that has a file or a folder, or will have it."""
    from catalog.store.disk import existing

    with suppress(OSError):
        number = existing(place).stat().st_dev
        return f"{os.major(number)}:{os.minor(number)}"
    return "unknown"


def _rate(machine: str, device: str, read_bytes: int, per_s: float) -> dict[str, Any]:
    return {
        "machine": machine,
        "device": device,
        "read_bytes": read_bytes,
        "bytes_per_s": round(per_s),
        "date": now(),
    }


def curve_of(report: FitReport, experts: RoutedExperts) -> Curve:
    """Return the hit rates of a model: as measured here, or else as published for its family.

    All quantisations of a model have the same curve.
    """
    from engine.fit.speed import MEASURED
    from engine.fit.streaming import published_curve, rising_curve

    family = (experts.count, experts.used)
    file = (report.paths[0].name, report.size_bytes) if report.paths else ("", 0)
    kept = [each for each in lines("routes", Routes) if _is_sound(each, family)]
    own = [each for each in kept if (each.file, each.size_bytes) == file]
    own = own or [each for each in kept if each.model and each.model == _model(report)]
    if not own:
        return published_curve(*family)
    best = max(own[-LAST:], key=lambda each: each.chosen)
    return rising_curve([(share, hit) for share, hit in best.points], *family, MEASURED)


def _is_sound(found: Routes, family: tuple[int, int]) -> bool:
    pairs = all(len(point) == 2 and 0 <= min(point) <= max(point) <= 1 for point in found.points)
    return (found.experts, found.used) == family and bool(found.points) and pairs


def _model(report: FitReport) -> str:
    return report.entry.id if report.entry else ""


def keep_routes(report: FitReport, experts: RoutedExperts, curve: Curve, chosen: int) -> None:
    """Record how a model's routers repeated themselves, if enough tokens were counted."""
    if not report.paths or chosen < MIN_CHOSEN * experts.layers * experts.used:
        return
    step = max(1, len(curve.points) // POINTS)
    points = [curve.points[0], *curve.points[step:-1:step], curve.points[-1]]
    append(
        "routes",
        {
            "model": _model(report),
            "file": report.paths[0].name,
            "size_bytes": report.size_bytes,
            "experts": experts.count,
            "used": experts.used,
            "points": [[round(share, 4), round(hit, 4)] for share, hit in points],
            "chosen": chosen,
        },
    )


def keep_stream(
    report: FitReport,
    before: StoreStats,
    after: StoreStats,
    stats: Stats | Finished,
    kernels: str,
    kv_type: str,
) -> None:
    """Record what a streamed answer says of the disk, of the routes, and of the time in memory.

    It must have run alone. before, after: what the store had counted. stats: the answer's.
    The time in memory is what remains without the waits for the disk.
    """
    from engine.fit.streaming import MATRICES, curve_of_distances

    found, machine = report.streaming, report.verdict.machine
    if found is None or not report.paths:
        return
    experts, done = found.plan.experts, after - before
    read_bytes = done.bytes_read - done.prompt_bytes_read
    if read_bytes >= WAITED_BYTES and done.wait_s >= WAITED_SHARE * stats.decode_s:
        size = min(MAX_READ, math.ceil(experts.mean_bytes / MATRICES))
        rate = _rate(machine_key(machine), _device(report.paths[0]), size, read_bytes / done.wait_s)
        append("disk", rate)
    busy_s = stats.decode_s - done.wait_s
    if stats.decoded_tokens >= MIN_DECODED and busy_s > 0:
        tokens = stats.prompt_tokens + stats.decoded_tokens
        depth = stats.prompt_tokens + stats.decoded_tokens // 2
        rate_in_memory = (stats.decoded_tokens - 1) / busy_s
        record(report, kernels, kv_type, tokens, depth, rate_in_memory, None)
    curve = curve_of_distances(after.distances, experts.count, experts.used, experts.layers)
    keep_routes(report, experts, curve, sum(after.distances))


def keep_reuse(report: FitReport, routes: RouterStats) -> None:
    """Record the routes of an answer whose experts were all in memory."""
    from engine.fit.memory import streamed_experts
    from engine.fit.speed import MEASURED
    from engine.fit.streaming import curve_of_reuse

    within = routes.reuse()
    if report.config is None or report.tensors is None or not within:
        return
    backend = report.verdict.machine.backend
    experts = streamed_experts(report.config, report.tensors, backend, "auto")
    if experts is not None:
        curve = curve_of_reuse(within, experts.count, experts.used, MEASURED)
        keep_routes(report, experts, curve, routes.counted)
