"""Measure a loaded model: how fast it reads a prompt, how fast it decodes at a depth, and how fast
this machine reads memory, which no decoding on it can beat.

Everything runs through `generate`, as an answer does. Every function that yields rates yields one
for each run, after a run that is not counted: it touches the weights for the first time.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.fit.machine import backend, cores
from engine.sampling import Settings

if TYPE_CHECKING:
    import numpy as np

    from engine.model import Model

SEED = 0
WORD_BYTES = 8
BANDWIDTH_BYTES = 512 << 20  # more than any cache
BANDWIDTH_S = 1.5
MAX_READS = 1000
PIECE_BYTES = 8 << 20  # what a thread reads at a time


def prefill_rates(model: Model, length: int, repeat: int, kv_type: str) -> Iterator[float]:
    """Yield the tokens per second at which a prompt of `length` tokens is read, its first answer
    token included."""
    tokens = prompt(model.config.vocab, length)
    settings = Settings(max_tokens=1, temperature=0, ignore_end=True)
    for run in range(repeat + 1):
        stream = model.generate(tokens, settings, model.new_cache(length + 1, kv_type))
        for _ in stream:
            pass
        if run > 0:
            yield stream.stats.prompt_per_s


def decode_rates(
    model: Model, depth: int, count: int, repeat: int, kv_type: str
) -> Iterator[float]:
    """Yield the tokens per second at which `count` tokens follow the first one at `depth`.

    The `depth` tokens are read once; the cache holds them for the later runs.
    """
    tokens = prompt(model.config.vocab, depth + 1)
    settings = Settings(max_tokens=count + 1, temperature=0, ignore_end=True)
    cache = model.new_cache(decode_context(depth, count), kv_type)
    for run in range(repeat + 1):
        stream = model.generate(tokens, settings, cache)
        for _ in stream:
            pass
        if run > 0:
            yield stream.stats.decode_per_s


def decode_context(depth: int, count: int) -> int:
    """Say how much context `decode_rates` takes."""
    return depth + 1 + count + 1


def prompt(vocab: int, length: int) -> list[int]:
    """Draw tokens at random, always the same: with experts, they should not all want the same."""
    draw = random.Random(SEED)
    return [draw.randrange(vocab) for _ in range(length)]


def read_rates(size_bytes: int, repeat: int, device: str) -> Iterator[float]:
    """Yield the bytes per second at which a buffer is read, in the way that `read_method` says."""
    count = max(1, size_bytes // WORD_BYTES)
    runs = _read_cpu(count) if device == "cpu" else _read_gpu(count)
    for run, read in zip(range(repeat + 1), runs, strict=False):
        started = time.perf_counter()
        read()
        if run > 0:
            yield count * WORD_BYTES / (time.perf_counter() - started)


def read_method(device: str) -> str:
    """Say how `read_rates` reads."""
    if device == "cpu":
        return f"NumPy's maximum over 64-bit words, {cores()} threads"
    return "MLX's maximum over 64-bit words, on the GPU"


def _read_cpu(count: int) -> Iterator[Callable[[], object]]:
    """Yield one and the same read; the maximum keeps up with plain C.

    Whichever thread is free takes the next piece, as decoding does: one that a neighbour holds up
    does not hold up the others.
    """
    import numpy as np  # not with the module: a conversation asks only for `peak_memory_bytes`

    buffer = np.ones(count, np.uint64)
    parts = np.array_split(buffer, max(cores(), count * WORD_BYTES // PIECE_BYTES))

    def read_some(left: Iterator[np.ndarray]) -> None:
        for part in left:
            np.maximum.reduce(part)

    with ThreadPoolExecutor(cores()) as pool:
        while True:
            yield lambda: list(pool.map(read_some, [iter(parts)] * cores()))


def _read_gpu(count: int) -> Iterator[Callable[[], object]]:
    buffer = mx.ones(count, dtype=mx.uint64)
    mx.eval(buffer)
    while True:
        yield lambda: mx.eval(buffer.max())


def bandwidth(
    device: str, budget_bytes: int, on_read: Callable[[int, int | None], None] | None = None
) -> float:
    """Measure at how many bytes a second this machine reads memory, in about two seconds.

    budget_bytes: what may be used; a quarter of it at most is. on_read is told (reads done, None).
    """
    size_bytes = buffer_bytes(budget_bytes)
    rates, started = [], time.perf_counter()
    for rate in read_rates(size_bytes, MAX_READS, device):
        rates.append(rate)
        if on_read is not None:
            on_read(len(rates), None)
        if len(rates) > 3 and time.perf_counter() - started > BANDWIDTH_S:
            break
    return statistics.quantiles(rates, n=4)[-1]  # what else ran only ever slowed a read


def buffer_bytes(budget_bytes: int) -> int:
    """Say how much `bandwidth` reads: less than BANDWIDTH_BYTES may lie in a cache."""
    return max(1 << 20, min(BANDWIDTH_BYTES, budget_bytes // 4))


def peak_memory_bytes() -> int:
    """Say the most memory that this process has held at a time, mapped files included.

    On a GPU, that which MLX has held there.
    """
    if backend() != "cpu":
        return int(mx.get_peak_memory())
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
