"""A seeded sample of one-token mistakes in the texts: the checks and the numbers must see them.

MUTATIONS=600 chooses the size of the sample. Survivors are printed: each is equivalent, or a gap.
"""

from __future__ import annotations

import dataclasses
import os
import random

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import Grouped
from engine.kernels.gpu.texts import TEXT, TYPES, KernelText, read_text
from support.emulator.mutate import Mistake, mistakes
from support.emulator.run import Fault, run
from support.gpu import GROUPED_BOUNDS, needs_compiler, numbers, off, vectors, weight, width
from support.tensors import gathered

pytestmark = [pytest.mark.process, pytest.mark.nightly, needs_compiler]
SAMPLE, SEED = int(os.environ.get("MUTATIONS", "600")), 7
# Mistakes that change nothing: arrays one larger than needed, and the like.
EQUIVALENT = 0.04
HELPERS = {"codebook": "IQ4_NL", "k_scales": "Q5_K"}


def check(mistake: Mistake) -> None:
    """Run the operations that a file is in, with a mistake. Raises Fault or AssertionError."""
    path = TEXT / mistake.file
    whole, stem = read_text(mistake.file), path.stem
    changed = f'#line 1 "{mistake.file}"\n{mistake.text}'

    def launch(kernel: KernelText, *given):
        parts = (text.replace(whole, changed) for text in (kernel.header, kernel.source))
        header, source = parts
        return run(dataclasses.replace(kernel, header=header, source=source), *given)

    gpu, rng = Gpu(cuda=False, launch=launch), np.random.default_rng(3)
    of_type = path.parent.name == "types"
    names = [HELPERS.get(stem, stem.upper())] if of_type else ["Q4_K", "IQ2_XS"]
    for name in names:
        if of_type or stem in ("words", "dot", "product"):
            check_product(name, gpu, rng)
        if of_type or stem in ("words", "rows"):
            tensor, w = weight(name, (5, width(name)), gpu, seed=1)
            assert (
                np.abs(numbers(tensor.rows(mx.array([4, 0]))) - w[[4, 0]]).max()
                <= 1e-6 * np.abs(w).max()
            )
        if stem == "chosen":
            check_chosen(name, gpu, rng)
        if stem in ("grouped", "prelude"):
            check_grouped(name, gpu, rng)


def check_product(name: str, gpu: Gpu, rng: np.random.Generator) -> None:
    for whole in (True, False):
        tensor, w = weight(name, (11, width(name)), gpu, whole=whole)
        x = rng.integers(-2, 3, (2, w.shape[1])).astype(np.float64)
        y = tensor.matmul(mx.array(x, mx.float32))
        assert (numbers(y) == x @ w.T).all() if whole else off(y, x, w) < 2e-6


def check_chosen(name: str, gpu: Gpu, rng: np.random.Generator) -> None:
    tensor, w = weight(name, (5, 11, width(name, 9)), gpu)
    ids = np.array([[4, 0], [2, 4]])
    for own in (1, 2):
        x = vectors(rng, 2, own, w.shape[-1])
        y = numbers(tensor.gather_matmul(x, mx.array(ids)))
        size = gathered(np.abs(numbers(x)), ids, np.abs(w))
        assert (np.abs(y - gathered(numbers(x), ids, w)) / size).max() < 2e-6


def check_grouped(name: str, gpu: Gpu, rng: np.random.Generator) -> None:
    counts = np.array([5, 0, 33, 0, 7, 32, 0, 0, 1])
    ids = np.repeat(np.arange(len(counts)), counts)
    tensor, w = weight(name, (len(counts), 70, 512), gpu)
    x = vectors(rng, len(ids), 512)
    y = tensor.grouped_matmul(x, Grouped.of(mx.array(ids), len(counts)))
    for e in np.flatnonzero(counts):
        mine = np.flatnonzero(ids == e)
        assert off(y[mx.array(mine)], numbers(x)[mine], w[e]) < GROUPED_BOUNDS[mx.float32]


def survives(mistake: Mistake) -> bool:
    try:
        check(mistake)
    except (Fault, AssertionError):
        return False
    return True


def test_nearly_all_mistakes_are_seen():
    folder = TEXT / "operations"
    files = [TEXT / f"{name}.metal" for name in ("dot", "words", "prelude")]
    files += [folder / f"{name}.metal" for name in ("product", "chosen", "rows", "grouped")]
    files += sorted((TEXT / "types").glob("*.metal"))
    assert len(files) >= len(TYPES)
    every = [mistake for file in files for mistake in mistakes(file)]
    sample = random.Random(SEED).sample(every, min(SAMPLE, len(every)))
    left = [str(mistake) for mistake in sample if survives(mistake)]
    print("\n".join(left))
    assert len(left) <= (0.02 + EQUIVALENT) * len(sample)
