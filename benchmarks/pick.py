"""Time the choice of a token from random logits: the native kernels and stock MLX in turn.

python benchmarks/pick.py --out results/pick.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.fit.machine import this_machine
from engine.kernels.select import select
from engine.sampling import Sample, Settings

RUNS = 21
SPREAD = 2.5  # of the logits
VOCABULARIES = {"SmolLM2": 49_152, "Qwen3": 151_936}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.6, top-k 20, top-p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature 0.7, min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
}


def main() -> None:
    """Time every way on both vocabularies, print the medians, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    samplers = {name: select(name).sample for name in ("stock", "native")}
    cases = []
    for model, size in VOCABULARIES.items():
        logits = mx.array(np.random.default_rng(0).normal(0, SPREAD, size).astype(np.float32))
        for way, wishes in WAYS.items():
            taken: dict[str, list[float]] = {name: [] for name in samplers}
            for run in range(RUNS):
                for name, sample in samplers.items():
                    taken[name].append(milliseconds(sample, logits, Settings(**wishes), run))
            medians = {name: round(statistics.median(times), 3) for name, times in taken.items()}
            cases.append({"vocabulary": f"{model}, {size:,}", "settings": way, "ms": medians})
            print(json.dumps(cases[-1]), flush=True)
    if options.out:
        document = {"cpu": this_machine().name, "runs": RUNS, "cases": cases}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def milliseconds(sample: Sample, logits: mx.array, settings: Settings, bits: int) -> float:
    """Time one choice, from the call until the token is read."""
    started = time.perf_counter()
    sample(logits, settings, bits).item()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
