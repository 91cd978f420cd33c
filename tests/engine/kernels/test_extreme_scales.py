"""Scales that are zero, subnormal, largest, infinite or NaN: products are those of NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.device import backend
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.native import unavailable_reason
from engine.kernels.select import select
from support.tensors import EXTREME_HALVES, EXTREMES, extreme_tensor, random_tensor

ROWS, WIDTH, EXPERTS = 5, 512, 3
NAMES = list(TYPE_BY_NAME)
needs_native = pytest.mark.skipif(
    backend() != "cpu" or unavailable_reason() is not None, reason="no native kernels"
)
pytestmark = pytest.mark.float32


@pytest.fixture
def isas():
    yield select("native").native.isas()
    select("native")  # the best again, for the tests that follow


def tensors(name: str):
    """Yield stacks of a type, whose first or all blocks in a row have one of the extreme scales."""
    for scale in EXTREMES.get(name, EXTREME_HALVES):
        for everywhere in (False, True):
            yield hex(scale), *extreme_tensor(name, (EXPERTS, ROWS, WIDTH), scale, everywhere)


def slack(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bound the error of rounding activations to 8 bits, or both sides to bfloat16: (T, E, rows).

    Subnormal weights may count as zero.
    """
    size = np.where(np.isfinite(w), np.abs(w), 0)
    steps = size.sum(axis=-1) * np.abs(x).max() / 250
    return steps + np.einsum("ti,eoi->teo", np.abs(x), size) / 120 + 1.2e-38 * np.abs(x).sum()


def differs(got: mx.array, want: np.ndarray, slack: np.ndarray) -> bool:
    """True if numbers are further away than `slack`, or NaN or infinities are elsewhere."""
    y, rounded = np.array(got), want.astype(np.float32)
    same = (y == rounded) | (np.isnan(y) & np.isnan(rounded)) | (np.abs(y - want) <= slack)
    return not same.all()


@needs_native
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_native_products_are_numpys(name: str, isas):
    x = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
    for isa in isas:
        kernels = select("native", isa=isa)
        for scale, blocks, info, w in tensors(name):
            weight = kernels.load(blocks, info)
            ids = np.broadcast_to(np.arange(EXPERTS), (40, EXPERTS))
            want, room = np.einsum("ti,eoi->teo", x, w), slack(x, w)
            for tokens in (1, 40):
                y = weight.gather_matmul(mx.array(x[:tokens, None]), mx.array(ids[:tokens]))
                assert not differs(y, want[:tokens], room[:tokens]), (isa, scale, tokens)
            first, info = blocks[: blocks.size // EXPERTS], random_tensor(name, w.shape[1:])[1]
            matrix = kernels.load(first, info)
            assert not differs(matrix.matmul(mx.array(x)), want[:, 0], room[:, 0]), (isa, scale)
            rows = matrix.rows(mx.arange(ROWS))
            assert not differs(rows, w[0].astype(np.float32), np.zeros(1)), (isa, scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_stock_products_are_finite_where_numpys_are(name: str):
    """What is not finite may be NaN or infinite, as may sums that overflow."""
    x = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    for scale, blocks, info, w in tensors(name):
        y = np.array(
            select("stock")
            .load(blocks, info)
            .stack_matmul(mx.broadcast_to(mx.array(x)[:, None], (3, EXPERTS, WIDTH)))
        )
        want, room = np.einsum("ti,eoi->teo", x, w), slack(x, w)
        largest = np.einsum("ti,eoi->teo", np.abs(x), np.abs(w))
        overflows = ~(largest <= np.finfo(np.float32).max) | ((name, scale) == ("NVFP4", "0xff"))
        assert (np.where(np.isfinite(y), np.abs(y - want) <= room, overflows)).all(), scale


@pytest.mark.parametrize("factor", [0.0, -0.0, 1e-42, -1.0, 3e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_factor_of_a_matrix_may_be_any_number(factor: float, tokens: int, kernels: str):
    x = np.random.default_rng(1).normal(size=(tokens, WIDTH)).astype(np.float32)
    blocks, info, reference = random_tensor("NVFP4", (ROWS, WIDTH))
    weight = select(kernels).load(blocks, info, mx.array([factor]))
    want = x @ reference.T.astype(np.float64) * np.float32(factor)
    room = slack(x, reference[None])[:, 0] * abs(factor) + 1e-44
    assert not differs(weight.matmul(mx.array(x)), want, room)
    assert not differs(weight.rows(mx.arange(ROWS)), reference * np.float32(factor), np.zeros(1))
