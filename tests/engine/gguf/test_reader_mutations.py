"""Mutated files: whatever is done to a sound file, it is read or refused, fast and cheaply.

A failure names its number, which is also the random seed: `mutated(random.Random(number))`.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from engine.errors import GGUFError, UnsupportedError
from engine.gguf.reader import read_header
from support.gguf_writer import Tensor, gguf_bytes, split_bytes

LIMIT_S = 0.250
LIMIT_BYTES = 1 << 20

W = Tensor("w", (32,))
SEEDS = [
    gguf_bytes({"general.architecture": "llama", "f": 0.5, "b": True, "n": -1}, [W]),
    gguf_bytes({"tokens": ["a", "é", "日本"] * 9, "scores": np.ones(9, np.float32)}),
    gguf_bytes({"bools": np.array([True, False] * 8), "u64": np.uint64(2**40)}, [W], version=2),
    gguf_bytes({"x": "y" * 200}, [Tensor(f"t{i}", (2, 32), "Q4_0") for i in range(9)]),
    gguf_bytes({"x": 1}, [Tensor("w", (3, 256), "Q4_K"), Tensor("e", (0, 4))], alignment=64),
    split_bytes({"general.architecture": "llama"}, [[W], [Tensor("v", (1,))]])[0],
]


def mutated(rng: random.Random) -> bytes:
    """Take a seed and do one to four unkind things to it."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def flip_bit(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def change_field(rng: random.Random, data: bytearray) -> None:
    """Add or subtract a power of two, or 0, at a place where a 32- or 64-bit field may lie."""
    width = rng.choice([4, 8])
    if len(data) >= width:
        at = rng.randrange(len(data) - width + 1)
        value = int.from_bytes(data[at : at + width], "little")
        value += rng.choice([1, -1]) << rng.randrange(8 * width)
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(SEEDS)
    start = rng.randrange(len(other))
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(64)]


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def duplicate(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randrange(64)]


MUTATIONS = [flip_bit, set_byte, change_field, splice, truncate, duplicate]


def outcomes(numbers: range) -> Counter[str]:
    """Read a mutated file for each number and count how it ends."""
    counts: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for number in numbers:
            blob = mutated(random.Random(number))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                read_header(blob)
                outcome = "read"
            except (GGUFError, UnsupportedError) as error:
                outcome = type(error).__name__
            assert time.perf_counter() - start <= LIMIT_S, number
            assert tracemalloc.get_traced_memory()[1] - before <= LIMIT_BYTES, number
            counts[outcome] += 1
    finally:
        tracemalloc.stop()
    return counts


def test_mutated_files_are_read_or_refused() -> None:
    counts = outcomes(range(2_000))
    # Every outcome is met, so the mutations do not all die at the door.
    assert set(counts) == {"read", "GGUFError", "UnsupportedError"}


@pytest.mark.nightly
def test_many_mutated_files_are_read_or_refused() -> None:
    assert outcomes(range(2_000, 22_000)).total() == 20_000
