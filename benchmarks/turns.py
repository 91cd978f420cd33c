"""What the turns of compare.py share: the job that a turn is given, what it measures, its result.

A turn is one process and one program. The job comes as JSON in its only argument; its result goes
out as the last line of standard output. It imports nothing but the standard library, since every
program runs under a Python of its own.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = 16  # tokens of the prompt that the first answer token follows
WARM = 4  # tokens decoded before anything is timed

# Reads a prompt from nothing and decodes `count` tokens after the first one of the answer. Returns
# the seconds up to the first one, the seconds from there to the last, and the first one.
Answer = Callable[[list[int], int], tuple[float, float, int]]


@dataclass(frozen=True)
class Job:
    """What a turn has to do. spawned: `time.perf_counter()` of the parent when it started it."""

    model: str
    prompt: int
    tokens: int
    depths: tuple[int, ...]
    threads: int
    spawned: float
    settings: dict[str, Any]

    @property
    def context(self) -> int:
        """Say how much context all of it needs."""
        return max(self.prompt, max(self.depths) + self.tokens) + WARM + 2


def read_job() -> Job:
    """Read the job of this turn."""
    job = json.loads(sys.argv[1])
    return Job(**{**job, "depths": tuple(job["depths"])})


def measure(job: Job, vocab: int, answer: Answer) -> tuple[dict[str, float], list[int]]:
    """Measure: seconds from the start of the process to a first token, then rates in tokens/s.

    Gives also the first token of each answer: who computes the same says the same, nearly always.
    """
    _, _, token = answer(prompt(vocab, START), 0)
    figures = {"start_s": time.perf_counter() - job.spawned}
    answer(prompt(vocab, job.prompt), WARM)
    seconds, _, *tokens = answer(prompt(vocab, job.prompt), 0)
    figures[f"prefill_{job.prompt}"] = job.prompt / seconds
    for depth in job.depths:
        _, seconds, first = answer(prompt(vocab, depth + 1), job.tokens)
        figures[f"decode_{depth}"] = job.tokens / seconds
        tokens.append(first)
    return figures, [token, *tokens]


def prompt(vocab: int, length: int) -> list[int]:
    """Draw tokens at random, the same in every turn."""
    draw = random.Random(0)
    return [draw.randrange(vocab) for _ in range(length)]


def finish(
    figures: dict[str, float], said: list[int], about: dict[str, Any], peak_bytes: int | None
) -> None:
    """Print the result. about: versions and whatever else belongs to a measurement."""
    result = {"figures": figures, "said": said, "about": about, "peak_bytes": peak_bytes}
    print(json.dumps(result))


def peak_memory_bytes() -> int | None:
    """Say the most memory this process has held at a time, mapped files included."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
