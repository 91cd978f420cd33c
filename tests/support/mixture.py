"""A mixture of 256 experts of 1.9 MB, and of much else in memory: a budget decides what it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.benchmarks import program

synthesize = program("synthesize")
REAL = synthesize.SHAPES["qwen3-30b-a3b"]
SHAPE = dataclasses.replace(
    REAL, layers=2, vocab=4096, keys={**REAL.keys, "expert_feed_forward_length": 512}
)


def write_mixture(folder: Path) -> Path:
    """Write the file, the same each time, and return its path."""
    path = folder / "mixture.gguf"
    synthesize.synthesize(SHAPE, path, seed=1)
    return path
