"""The server's metrics for Prometheus, and as a live line in the server's terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

from conifer_cli.serve.host import Host
from conifer_cli.serve.metrics import Metrics
from conifer_cli.terminal import console

EVERY_S = 0.5
CLEAR = "\r\x1b[K"


def prometheus(metrics: Metrics, host: Host) -> str:
    """Return the metrics in Prometheus' text format."""
    lines = []
    for name, kind, help, samples in _families(metrics, host):
        lines += [f"# HELP conifer_{name} {help}", f"# TYPE conifer_{name} {kind}"]
        lines += [f"conifer_{name}{labels} {value:g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


Family = tuple[str, str, str, list[tuple[str, float]]]


def _families(metrics: Metrics, host: Host) -> Iterator[Family]:
    requests = [
        (f'{{path="{path}",status="{status}"}}', float(count))
        for (path, status), count in sorted(metrics.requests.items())
    ]
    finishes = [(f'{{finish="{n}"}}', float(c)) for n, c in sorted(metrics.finishes.items())]
    yield "requests_total", "counter", "Requests by path and status.", requests
    yield "answers_total", "counter", "Answers by how they ended.", finishes
    counters: tuple[tuple[str, str, float], ...] = (
        ("prompt_tokens_total", "Tokens of prompts.", metrics.prompt_tokens),
        ("cached_tokens_total", "Tokens of prompts found in the cache.", metrics.cached_tokens),
        ("decoded_tokens_total", "Tokens of answers.", metrics.decoded_tokens),
        ("cache_hits_total", "Answers whose prompt began in the cache.", metrics.cache_hits),
        ("queued_answers_total", "Answers that had to wait.", metrics.queued_answers),
        ("prefill_seconds_total", "Time spent on reading prompts.", metrics.prefill_s),
        ("decode_seconds_total", "Time spent on decoding.", metrics.decode_s),
        ("wait_seconds_total", "Time spent in the queue.", metrics.waited_s),
    )
    for name, help, value in counters:
        yield name, "counter", help, [("", float(value))]
    served = host.current
    experts = served.experts if served else None
    streamed = metrics.experts.plus(experts)
    counters = (
        ("expert_hits_total", "Choices whose expert was in memory.", streamed.hits),
        ("expert_misses_total", "Choices whose expert was on the disk.", streamed.misses),
        ("expert_read_bytes_total", "Read from the disk for experts.", streamed.bytes_read),
        ("expert_wait_seconds_total", "Time spent waiting for the disk.", streamed.wait_s),
    )
    for name, help, value in counters:
        yield name, "counter", help, [("", float(value))]
    gauges = (
        ("queue_length", "Answers that wait.", host.scheduler.queued),
        ("running", "Answers that run.", host.scheduler.running),
        ("parallel", "Answers that may run at once.", host.scheduler.parallel),
        ("prompt_tokens_per_second", "In the last answers.", metrics.prompt_per_s),
        ("decoded_tokens_per_second", "In the last answers.", metrics.decode_per_s),
        ("prefix_cache_bytes", "Stored prefixes.", served.prefixes.stored_bytes if served else 0),
        ("experts_in_memory", "Of a model that streams.", experts.held if experts else 0),
        ("expert_slots", "Experts that the memory has room for.", experts.slots if experts else 0),
        ("expert_hit_rate", "Since the model was loaded.", experts.hit_rate if experts else 0),
        ("uptime_seconds", "Since the start.", time.time() - metrics.started_s),
    )
    for name, help, value in gauges:
        yield name, "gauge", help, [("", float(value))]


async def show_status(host: Host) -> None:
    """Rewrite the line while something changes, if standard error is a terminal."""
    if not console.is_terminal(sys.stderr):
        return
    shown = ""
    try:
        while True:
            columns, _ = console.dimensions()
            line = status_line(host, columns - len("^C") - 1)
            if line != shown:
                console.write_stderr(CLEAR + line)
                shown = line
            await asyncio.sleep(EVERY_S)
    finally:
        console.write_stderr(CLEAR)


def status_line(host: Host, width: int) -> str:
    """Return what the server does now, or has done, as far as a width in columns allows."""
    scheduler, metrics = host.scheduler, host.metrics
    answered = sum(metrics.finishes.values())
    parts = [f"{scheduler.running} running", f"{scheduler.queued} waiting", f"{answered} answered"]
    if metrics.recent:
        parts.append(f"{metrics.decode_per_s:.1f} tokens/s")
    if metrics.prompt_tokens:
        parts.append(f"{100 * metrics.cached_tokens // metrics.prompt_tokens} % from the cache")
    if host.current and (experts := host.current.experts) is not None:
        parts.append(f"{100 * experts.hit_rate:.0f} % of experts in memory")
    name = host.current.name if host.current else "no model"
    while parts and len(line := f"{name}: {', '.join(parts)}") > width:
        parts.pop()
    return line if parts else name[:width]
