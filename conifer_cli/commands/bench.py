"""`conifer bench`: measure a model's speed and the share of memory bandwidth that decoding uses."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import StreamOffer, ensure, judge, locate
from conifer_cli.errors import NoRoom, UsageError
from conifer_cli.fit import run_history
from conifer_cli.fit.verdict import FitReport, FitRequest, require_context
from conifer_cli.options import gpu_verdicts
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, gigabytes, size
from conifer_cli.terminal.layout import Column, Grid, Line
from conifer_cli.terminal.progress import Progress
from conifer_cli.versions import installed_version

if TYPE_CHECKING:
    from engine.benchmark import Measured
    from engine.model import Model
    from engine.streaming import StoreStats

PROMPTS = (128, 512)
DEPTHS = (0, 4096)
COLUMNS = (
    Column(),
    Column("TOKENS/S", True),
    Column("LOWEST", True, rank=2),
    Column("HIGHEST", True, rank=2),
    Column("BYTES/TOKEN", True, rank=3),
    Column("READ AT", True, rank=3),
    Column("SHARE", True, rank=1),
)
STREAMED = (
    *COLUMNS[:4],
    Column("HITS", True, rank=1),
    Column("READ", True, rank=1),
    Column("WAITED", True, rank=3),
)
Watch = Callable[[Iterable[float]], Iterator[float]]


@dataclass(frozen=True)
class BenchOptions:
    """Options for `conifer bench`. prompts, depths: None for the default lengths that fit."""

    prompts: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    tokens: int = 64
    repeat: int = 5
    kv_type: str = "f16"
    kernels: str = "auto"
    isa: str | None = None
    force: bool = False
    stream: bool = False
    budget_bytes: int | None = None
    yes: bool = False
    as_json: bool = False


def bench_model(name: str | None, options: BenchOptions) -> int:
    """Print the measurements as a table and as one line of JSON. Return the exit code."""
    target = locate(name)
    request = FitRequest(
        None,
        options.kv_type,
        options.force,
        options.yes,
        options.kernels,
        stream=options.stream,
        budget_bytes=options.budget_bytes,
        asks=console.can_ask(),
    )
    report = judge(target, request)
    need, verdict = _longest(options), report.verdict
    if verdict.kind == "streams" and verdict.context < need <= verdict.largest_context:
        request = replace(request, context=need)  # its cache takes the place of experts
        report = judge(target, request)
    report = ensure(target, report, request, StreamOffer(report.name, "bench"))
    prompts, depths = lengths(report, options)

    from engine.model import load

    model = load(
        *(report.paths[0], options.kernels),
        isa=options.isa,
        gpu_verdicts=gpu_verdicts(),
        expert_bytes=report.expert_bytes,
    )
    document = measure(model, report, prompts, depths, options)
    _record(document, report, options)
    if not options.as_json:
        console.print_lines(_report(document))
    if options.as_json or not console.is_terminal(sys.stdout):
        blank = [] if options.as_json else [""]
        console.print_lines([*blank, json.dumps(document, separators=(",", ":"))])
    return errors.OK


def _longest(options: BenchOptions) -> int:
    """Return the context that the lengths on the command line need; 0 if there are none."""
    from engine.benchmark import decode_context

    needs = [tokens + 1 for tokens in options.prompts or ()]
    needs += [decode_context(depth, options.tokens) for depth in options.depths or ()]
    return max(needs, default=0)


def lengths(report: FitReport, options: BenchOptions) -> tuple[list[int], list[int]]:
    """Return the prompt lengths and depths. Raises UsageError or NoRoom if one is too long."""
    from engine.benchmark import decode_context

    assert report.config is not None
    most = report.config.context
    fits = most if options.force else min(most, report.verdict.largest_context)
    if report.streaming is not None:  # experts have the rest of the memory
        fits = min(fits, report.verdict.context)
    chosen: list[list[int]] = []
    for asked, default, more in (
        (options.prompts, PROMPTS, 1),
        (options.depths, DEPTHS, decode_context(0, options.tokens)),
    ):
        for need in (length + more for length in asked or ()):
            require_context(report.name, most, FitRequest(need))
            if need > fits:
                raise NoRoom(
                    f"a context of {need:,} tokens does not fit in memory; "
                    f"the largest for {report.name} is {fits:,} tokens"
                )
        chosen.append([n for n in (asked or default) if n + more <= fits])
    if not any(chosen):
        raise UsageError(
            f"the default lengths exceed the largest context for {report.name}: {fits:,} tokens",
            "Set shorter lengths with --prompt, --depth and --tokens.",
        )
    return chosen[0], chosen[1]


def measure(
    model: Model, report: FitReport, prompts: list[int], depths: list[int], options: BenchOptions
) -> dict[str, Any]:
    """Run all measurements and return the JSON document."""
    from engine import benchmark as engine
    from engine.fit.bandwidth import peak_memory_bytes

    repeat, kv_type = options.repeat, options.kv_type
    total = repeat * (len(prompts) + 2 * len(depths))
    with Progress("measuring", "runs") as progress:
        watch = _watch(progress, total)
        prefill = [
            {"tokens": n, **_summary(engine.prefill_runs(model, n, repeat, kv_type), watch)}
            for n in prompts
        ]
        decode = [
            {
                "depth": n,
                "tokens": options.tokens,
                **_summary(engine.decode_runs(model, n, options.tokens, repeat, kv_type), watch),
            }
            for n in depths
        ]
        peak = peak_memory_bytes()  # before bandwidth buffers are allocated
        if report.streaming is None:
            for row in decode:
                row |= _bandwidth_share(model, report, row, watch, options)
    measured = {"prefill": prefill, "decode": decode, "peak_memory_bytes": peak}
    return _environment(model, report, options) | measured


def _record(document: dict[str, Any], report: FitReport, options: BenchOptions) -> None:
    if report.streaming is not None:  # the disk limits its speed
        return
    most = [row["tokens"] for row in document["prefill"]]
    most += [row["depth"] + options.tokens for row in document["decode"]]
    record = functools.partial(
        run_history.record,
        report,
        document["kernels"],
        options.kv_type,
        tokens=max(most),
        peak_bytes=document["peak_memory_bytes"],
    )
    for row in document["prefill"]:
        if row["tokens"] >= run_history.MIN_PREFILLED:
            rate = row["per_s"]["median"]
            tokens = row["tokens"]
            record(depth=tokens, decode_per_s=None, prefill_per_s=rate, prompt_tokens=tokens)
    for row in document["decode"]:
        if options.tokens >= run_history.MIN_DECODED:
            depth, rate = row["depth"] + options.tokens // 2, row["per_s"]["median"]
            record(depth=depth, decode_per_s=rate, prefill_per_s=None)


def _bandwidth_share(
    model: Model, report: FitReport, row: dict[str, Any], watch: Watch, options: BenchOptions
) -> dict[str, Any]:
    """Measure the share of this machine's read rate that decoding achieves.

    The read rate is measured by reading as many bytes as decoding moves per token.
    """
    from engine.fit.bandwidth import read_rates
    from engine.fit.speed import bytes_per_token
    from engine.gguf.reader import open_model

    assert report.config is not None
    device = report.verdict.machine.backend
    tensors = open_model(report.paths[0]).tensors
    kernels, depth = model.kernels.name, row["depth"]
    counted = bytes_per_token(report.config, tensors, device, kernels, depth, options.kv_type)
    moved = counted.total_bytes
    read = spread(watch(read_rates(moved, options.repeat, device)))
    return {
        "moved_bytes": moved,
        "read_bytes_per_s": read["per_s"],
        "bandwidth_share": round(moved * row["per_s"]["median"] / read["per_s"]["median"], 4),
    }


def _summary(runs: Iterable[Measured], watch: Watch) -> dict[str, Any]:
    """Return `spread`, and what the median run read if experts come from the disk."""
    done: list[Measured] = []

    def rates() -> Iterator[float]:
        for run in runs:
            done.append(run)
            yield run.per_s

    found = spread(watch(rates()))
    streamed = [run.experts for run in done if run.experts is not None]
    return found | ({"experts_from_disk": _from_disk(streamed)} if streamed else {})


def _from_disk(runs: list[StoreStats]) -> dict[str, Any]:
    """Return the hit rate of all runs together, and the medians of what they read and waited."""
    hits, misses = sum(run.hits for run in runs), sum(run.misses for run in runs)
    return {
        "hit_rate": round(hits / (hits + misses), 4) if hits + misses else None,
        "bytes_read": round(statistics.median(run.bytes_read for run in runs)),
        "wait_s": round(statistics.median(run.wait_s + run.prompt_wait_s for run in runs), 4),
    }


def spread(rates: Iterable[float]) -> dict[str, Any]:
    """Return the rates of all runs, with their median, minimum and maximum."""
    runs = [float(f"{rate:.5g}") for rate in rates]
    per_s = {"median": statistics.median(runs), "low": min(runs), "high": max(runs)}
    return {"per_s": per_s, "runs": runs}


def _watch(progress: Progress, total: int) -> Watch:
    """Return a function that wraps rate iterators to update the progress bar."""
    done = itertools.count(1)

    def watch(rates: Iterable[float]) -> Iterator[float]:
        for rate in rates:
            progress.update(next(done), total)
            yield rate

    return watch


def _environment(model: Model, report: FitReport, options: BenchOptions) -> dict[str, Any]:
    from engine.device import cores
    from engine.fit.bandwidth import read_method

    machine = report.verdict.machine
    return {
        "model": report.name if report.entry else Path(report.name).name,
        "architecture": model.config.architecture,
        "file_bytes": report.size_bytes,
        "kernels": model.kernels.name,
        "isa": model.kernels.isa,
        "kv_type": options.kv_type,
        "machine": machine.name,
        "backend": machine.backend,
        "threads": cores() if machine.backend == "cpu" else None,
        "versions": {name: installed_version(name) for name in ("conifer-cli", "mlx", "numpy")},
        "read_method": read_method(machine.backend),
        "streaming": _plan(report),
    }


def _plan(report: FitReport) -> dict[str, Any] | None:
    """Return how the memory is split if experts come from the disk."""
    if report.streaming is None:
        return None
    plan = report.streaming.plan
    return {
        "experts": plan.experts.total,
        "cached_experts": plan.cached,
        "resident_bytes": plan.resident_bytes,
        "store_bytes": plan.store_bytes,
    }


def _report(document: dict[str, Any]) -> list[Line]:
    streams = document["streaming"] is not None
    threads = f", {counted(document['threads'], 'thread')}" if document["threads"] else ""
    isa = f" ({document['isa']})" if document["isa"] else ""
    rows: list[tuple[str, ...]] = [
        (f"prefill {row['tokens']:,}", *_rates(row), *(_disk(row) if streams else ("", "", "")))
        for row in document["prefill"]
    ]
    rows += [
        (f"decode at {row['depth']:,}", *_rates(row), *(_disk(row) if streams else _shares(row)))
        for row in document["decode"]
    ]
    held = "the experts in memory" if streams else "mapped weights"
    return [
        f"{document['model']}: {document['architecture']}, {size(document['file_bytes'])}",
        f"{document['machine']}{threads}, {document['kernels']} kernels{isa}, "
        f"{document['kv_type']} KV cache",
        "",
        Grid(STREAMED if streams else COLUMNS, rows),
        "",
        f"peak memory: {gigabytes(document['peak_memory_bytes'])}, including {held}",
        "HITS: choices whose expert was in memory. READ, WAITED: from and for the disk, in a run."
        if streams
        else f"READ AT: how fast this machine reads that many bytes ({document['read_method']}). "
        "SHARE: how much of that speed decoding reaches.",
    ]


def _disk(row: dict[str, Any]) -> tuple[str, ...]:
    found = row["experts_from_disk"]
    hits = "-" if found["hit_rate"] is None else f"{found['hit_rate']:.0%}"
    return hits, size(found["bytes_read"]), f"{found['wait_s']:.2f} s"


def _rates(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row['per_s'][name]:,.1f}" for name in ("median", "low", "high"))


def _shares(row: dict[str, Any]) -> tuple[str, ...]:
    read = size(int(row["read_bytes_per_s"]["median"]))
    return size(row["moved_bytes"]), f"{read}/s", f"{row['bandwidth_share']:.0%}"
