"""Measure this machine's read bandwidth, which limits decoding speed, and peak memory use.

NumPy and MLX are imported inside the functions, so importing this module stays fast.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from engine.device import backend, cores

if TYPE_CHECKING:
    import numpy as np

WORD_BYTES = 8
BANDWIDTH_BYTES = 512 << 20  # larger than any CPU cache
BANDWIDTH_S = 1.5
MAX_READS = 1000
PIECE_BYTES = 8 << 20  # the unit of work for one thread


def bandwidth(
    device: str, budget_bytes: int, on_read: Callable[[int, int | None], None] | None = None
) -> float:
    """Measure this machine's read bandwidth in bytes per second. Takes about two seconds.

    budget_bytes: available memory, of which at most a quarter is used. on_read: receives (reads
    done, None).
    """
    size_bytes = buffer_bytes(budget_bytes)
    rates, started = [], time.perf_counter()
    for rate in read_rates(size_bytes, MAX_READS, device):
        rates.append(rate)
        if on_read is not None:
            on_read(len(rates), None)
        if len(rates) > 3 and time.perf_counter() - started > BANDWIDTH_S:
            break
    return statistics.quantiles(rates, n=4)[-1]  # other programs can only slow reads down


def buffer_bytes(budget_bytes: int) -> int:
    """Return the size of the buffer that `bandwidth` reads.

    A buffer smaller than BANDWIDTH_BYTES may fit in a CPU cache, which would inflate the rate.
    """
    return max(1 << 20, min(BANDWIDTH_BYTES, budget_bytes // 4))


def read_rates(size_bytes: int, repeat: int, device: str) -> Iterator[float]:
    """Read a buffer `repeat` times after a warm-up. Yields each read's rate in bytes per second."""
    count = max(1, size_bytes // WORD_BYTES)
    runs = _read_cpu(count) if device == "cpu" else _read_gpu(count)
    for run, read in zip(range(repeat + 1), runs, strict=False):
        started = time.perf_counter()
        read()
        if run > 0:
            yield count * WORD_BYTES / (time.perf_counter() - started)


def read_method(device: str) -> str:
    """Describe how `read_rates` reads memory."""
    if device == "cpu":
        return f"NumPy's maximum over 64-bit words, one thread per core ({cores()})"
    return "MLX's maximum over 64-bit words, on the GPU"


def _read_cpu(count: int) -> Iterator[Callable[[], object]]:
    """Endlessly yield a function that reads the buffer. NumPy's `maximum` is as fast as plain C."""
    import numpy as np

    buffer = np.ones(count, np.uint64)
    parts = np.array_split(buffer, max(cores(), count * WORD_BYTES // PIECE_BYTES))

    # Idle threads take the next piece, as in decoding, so a slow core does not hold up the rest.
    def read_some(left: Iterator[np.ndarray]) -> None:
        for part in left:
            np.maximum.reduce(part)

    with ThreadPoolExecutor(cores()) as pool:
        while True:
            yield lambda: list(pool.map(read_some, [iter(parts)] * cores()))


def _read_gpu(count: int) -> Iterator[Callable[[], object]]:
    import mlx.core as mx

    buffer = mx.ones(count, dtype=mx.uint64)
    mx.eval(buffer)
    while True:
        yield lambda: mx.eval(buffer.max())


def peak_memory_bytes() -> int:
    """Return this process's peak memory use, including mapped files.

    On a GPU, return MLX's peak allocation instead.
    """
    if backend() != "cpu":
        import mlx.core as mx

        return int(mx.get_peak_memory())
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
