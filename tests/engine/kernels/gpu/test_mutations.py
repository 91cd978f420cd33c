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
from engine.kernels.gpu.tensor import BlockTensor, Grouped
from engine.kernels.gpu.texts import TEXT, TYPES, KernelText, read_text
from support.emulator.mutate import Mistake, mistakes
from support.emulator.run import Fault, run
from support.gpu import FINITE, GROUPED_BOUNDS, needs_compiler, numbers, off, vectors, weight, width
from support.tensors import gathered

pytestmark = [pytest.mark.process, pytest.mark.nightly, needs_compiler]
SAMPLE, SEED = int(os.environ.get("MUTATIONS", "600")), 7
# The types that check a file which no type has for itself. Together they call all of its helpers.
CHECKED_BY = {
    "codebook": ("IQ4_NL",),
    "k_scales": ("Q5_K",),
    "words": ("IQ2_XS", "IQ3_XXS", "MXFP4"),
}
# What the changed line has where a mistake changes no number.
EQUIVALENT = {
    # A longer array; a bit far below what is added; both ways give the same.
    "dot.metal": ("scaled[5 * WORDS", "0xff000010", "<= last_row"),
    # Bits that no digit reaches.
    "words.metal": ("& 0x1010111", "0xf001f", "0x3030313"),
    "types/iq3_xxs.metal": ("0x1010111",),
    "types/q4_k.metal": ("[5]",),
    "types/q5_k.metal": ("[5]",),
    "types/tq1_0.metal": ("[6]",),
    # Any lane has the sum.
    "operations/product.metal": ("simdgroup == 1",),
    "operations/chosen.metal": ("simdgroup == 1",),
    "operations/rows.metal": ("(33 /",),
    "operations/grouped.metal": (
        *("weights, 65 *", "tokens, 33 *", "* (65 +", "+ 9)", "sums[5]"),  # longer arrays
        *("from = 1", "<= TOKENS ?", "(33 /", "<= TOKENS * ROWS"),  # both ways give the same
        *(
            "<= shares ? own",
            "<= shares ? float",
            "<= shares ? weight",
            "0.0f -> 1.0f",
        ),  # times zero
        *("i < 5; i++) mma", "i <= 4; i++) mma"),  # AddressSanitizer sees these, not the numbers
    ),
}
OPERATIONS = "Q4_K", "IQ2_XS", "Q8_0"  # of Q8_0, a row may have an odd number of shares


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
    alone = (stem.upper(),) if of_type else OPERATIONS
    for name in CHECKED_BY.get(stem, alone):
        if of_type or stem in ("words", "dot", "product"):
            check_product(name, gpu, rng)
        if of_type or stem in ("words", "rows"):
            check_rows(weight(name, (5, width(name)), gpu, seed=1))
        for scale in FINITE.get(name, ()) if of_type else ():
            check_rows(weight(name, (5, width(name)), gpu, scale=scale))
        if stem == "chosen":
            check_chosen(name, gpu, rng)
        if stem in ("grouped", "prelude"):
            check_grouped(name, gpu, rng)


def check_rows(of: tuple[BlockTensor, np.ndarray]) -> None:
    tensor, w = of
    rows = numbers(tensor.rows(mx.array([4, 0])))
    assert np.abs(rows - w[[4, 0]]).max() <= 1e-6 * np.abs(w).max()


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
    for counts in ([5, 0, 33, 0, 7, 32, 0, 0, 1], [31] * 9):
        check_groups(name, gpu, rng, np.array(counts))


def check_groups(name: str, gpu: Gpu, rng: np.random.Generator, counts: np.ndarray) -> None:
    ids = np.repeat(np.arange(len(counts)), counts)
    tensor, w = weight(name, (len(counts), 70, width(name, 7)), gpu)
    x = vectors(rng, len(ids), w.shape[-1])
    y = tensor.grouped_matmul(x, Grouped.of(mx.array(ids), len(counts)))
    for e in np.flatnonzero(counts):
        mine = np.flatnonzero(ids == e)
        assert off(y[mx.array(mine)], numbers(x)[mine], w[e]) < GROUPED_BOUNDS[mx.float32]


def changes_nothing(mistake: Mistake) -> bool:
    changed = f"{mistake.text.splitlines()[mistake.line - 1]} {mistake.old} -> {mistake.new}"
    return any(part in changed for part in EQUIVALENT.get(mistake.file, ()))


def outcome(mistake: Mistake) -> str:
    try:
        check(mistake)
    except AssertionError:
        return "seen"
    except Fault as fault:
        return "refused" if "does not compile" in str(fault) else "seen"
    return "missed"


def test_nearly_all_mistakes_are_seen():
    folder = TEXT / "operations"
    files = [TEXT / f"{name}.metal" for name in ("dot", "words", "prelude")]
    files += [folder / f"{name}.metal" for name in ("product", "chosen", "rows", "grouped")]
    files += sorted((TEXT / "types").glob("*.metal"))
    assert len(files) >= len(TYPES)
    every = [mistake for file in files for mistake in mistakes(file)]
    sample = random.Random(SEED).sample(every, min(SAMPLE, len(every)))
    outcomes = [(outcome(mistake), mistake) for mistake in sample if not changes_nothing(mistake)]
    missed = [mistake for seen, mistake in outcomes if seen == "missed"]
    run = sum(seen != "refused" for seen, _ in outcomes)
    print(f"{len(missed)} of {run} missed", *missed, sep="\n")
    assert len(missed) <= 0.02 * run
