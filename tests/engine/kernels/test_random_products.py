"""Random products of every block type against NumPy in float64: all kernels, shapes and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.device import backend
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.native import unavailable_reason
from engine.kernels.select import select
from support.tensors import gathered, product_error, random_tensor

NAMES = list(TYPE_BY_NAME)
FLOATS = ("F32", "F16", "BF16")
CASES = 2000  # in the nightly run
SAMPLE = 100  # in every run
TOKENS = [1, 1, 1, 2, 3, 4, 7, 16, 17, 33, 64, 100, 300, 512]
# Rounding of activations to 8 bits, and of weights by the stock kernels, as a share of the size of
# a product: four times the usual, as products of few numbers may be unlucky.
ROUNDING = 2e-2
LOSSES = {"Q2_K": 1.2e-2, "Q6_K": 2.4e-2, "IQ1_M": 2.4e-2, "IQ2_XS": 4.4e-2, "IQ2_S": 4.4e-2}

pytestmark = pytest.mark.float32


@pytest.fixture
def kernel_sets() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The arguments of `select` for the stock kernels and each instruction set of the native."""
    sets: list[tuple[str, dict[str, Any]]] = [("stock", {})]
    native = backend() == "cpu" and unavailable_reason() is None
    if native:
        sets += [("native", {"isa": isa}) for isa in select("native").native.isas()]
    yield sets
    if native:
        select("native")  # the best instruction set again


def tolerance(kernels: str, name: str) -> float:
    exact = 2e-6
    if kernels == "stock":
        return LOSSES.get(name, exact)
    return exact if name in FLOATS else ROUNDING


def random_width(name: str, rng: np.random.Generator) -> int:
    """Return a width of whole blocks, of up to 1280 weights or 5 blocks."""
    weights = TYPE_BY_NAME[name].weights
    return (
        int(rng.integers(1, 600))
        if weights == 1
        else weights * int(rng.integers(1, 1281 // weights + 1))
    )


def check(seed: int, kernel_sets: list[tuple[str, dict[str, Any]]]) -> None:
    """One product of random type, shape, number of tokens and of chosen experts, by all kernels."""
    rng = np.random.default_rng(seed)
    name = NAMES[seed % len(NAMES)]
    width, rows, tokens = (
        random_width(name, rng),
        int(rng.integers(1, 200)),
        int(rng.choice(TOKENS)),
    )
    chosen, experts = int(rng.integers(0, 5)), int(rng.integers(4, 9))  # chosen 0: a matrix
    shape = (experts, rows, width) if chosen else (rows, width)
    blocks, info, reference = random_tensor(name, shape, seed)
    reference = reference.astype(np.float64)
    inputs = rng.choice([1, chosen])
    x = rng.normal(size=(tokens, inputs, width) if chosen else (tokens, width)).astype(np.float32)
    ids = rng.integers(0, experts, (tokens, chosen))
    lookups = rng.integers(0, rows, 5)
    expected = gathered(x, ids, reference) if chosen else x @ reference.T
    for kernels, options in kernel_sets:
        where = (kernels, options, name, seed, shape, tokens)
        weight = select(kernels, **options).load(blocks, info)
        if chosen:
            y = weight.gather_matmul(mx.array(x), mx.array(ids))
        else:
            y = weight.matmul(mx.array(x))
            found = weight.rows(mx.array(lookups)).astype(mx.float32)
            slack = tolerance(kernels, name) if kernels == "stock" and name in LOSSES else 0
            size = np.abs(reference).max()
            assert np.abs(np.array(found) - reference[lookups]).max() <= slack * size, where
        assert y.shape == expected.shape, where
        assert product_error(y, expected, x, reference) <= tolerance(kernels, name), where


@pytest.mark.parametrize("start", range(0, SAMPLE, 10))
def test_random_products_are_the_references(start: int, kernel_sets):
    for seed in range(start, start + 10):
        check(seed, kernel_sets)


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(SAMPLE, CASES, 50))
def test_many_random_products_are_the_references(start: int, kernel_sets):
    for seed in range(start, start + 50):
        check(seed, kernel_sets)
