"""The stock kernels against NumPy: every block type, four operations, random bytes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.errors import BackendError
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.select import select
from engine.kernels.sizes import resident_bytes
from engine.kernels.stock import StockKernels
from support.tensors import loss, random_tensor

# Relative root mean square loss of holding a type at 8 bits; none for the others.
LOSS = {"Q2_K": 3e-3, "Q6_K": 6e-3, "IQ1_M": 6e-3}
LOSS |= {"IQ2_XS": 1.1e-2, "IQ2_S": 1.1e-2}
NAMES = list(TYPE_BY_NAME)
pytestmark = pytest.mark.float32


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_reference_rows(name: str):
    blocks, info, reference = random_tensor(name, (6, 512))
    rows = select("stock").load(blocks, info).rows(mx.array([4, 0, 4]))
    assert loss(rows, reference[[4, 0, 4]]) <= LOSS.get(name, 0)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_matmul_is_the_reference_product(name: str, rows: int):
    blocks, info, reference = random_tensor(name, (24, 512))
    x = np.random.default_rng(1).normal(size=(rows, 512)).astype(np.float32)
    y = select("stock").load(blocks, info).matmul(mx.array(x))
    assert loss(y, x @ reference.T) <= LOSS.get(name, 0) + 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_gather_matmul_runs_the_chosen_experts(name: str):
    blocks, info, reference = random_tensor(name, (5, 24, 256))
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(3, 1, 256)).astype(np.float32)
    own = rng.normal(size=(3, 2, 256)).astype(np.float32)
    ids = np.array([[0, 4], [3, 3], [1, 0]])
    weight = select("stock").load(blocks, info)
    for x in (shared, own):
        expected = np.einsum("tki,tkoi->tko", np.broadcast_to(x, own.shape), reference[ids])
        y = weight.gather_matmul(mx.array(x), mx.array(ids))
        assert y.shape == (3, 2, 24)
        assert loss(y, expected) <= LOSS.get(name, 0) + 2e-6


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_stack_matmul_gives_every_matrix_its_own_rows(name: str, tokens: int):
    blocks, info, reference = random_tensor(name, (5, 24, 256))
    x = np.random.default_rng(2).normal(size=(tokens, 5, 256)).astype(np.float32)
    y = select("stock").load(blocks, info).stack_matmul(mx.array(x))
    assert y.shape == (tokens, 5, 24)
    expected = np.einsum("tei,eoi->teo", x, reference)
    assert loss(y, expected) <= LOSS.get(name, 0) + 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_resident_bytes_are_what_loading_keeps(name: str):
    blocks, info, _ = random_tensor(name, (64, 512))
    kernels = select("stock")
    mx.clear_cache()
    before = mx.get_active_memory()
    weight = kernels.load(blocks, info)
    kept = mx.get_active_memory() - before
    assert weight.shape == (64, 512)
    assert abs(kept - resident_bytes(info, "cpu", "stock")) <= 0.01 * kept + 4096  # whole pages


@pytest.mark.parametrize("tokens", [1, 40])  # 40: in tiles, if the processor has them
def test_a_weight_is_multiplied_by_its_scale(kernels: str, tokens: int):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(tokens, 256)).astype(np.float32)
    tolerance = {"native": 2e-2, "stock": 2e-6}[kernels]
    blocks, info, reference = random_tensor("NVFP4", (24, 256))
    weight = select(kernels).load(blocks, info, mx.array([0.25]))
    assert loss(weight.matmul(mx.array(x)), 0.25 * x @ reference.T) <= tolerance
    assert loss(weight.rows(mx.array([3])), 0.25 * reference[3:4]) <= 1e-6

    blocks, info, reference = random_tensor("NVFP4", (5, 24, 256))
    scales = np.array([1, 2, -3, 0.5, 100], np.float32)
    weight = select(kernels).load(blocks, info, mx.array(scales))
    ids, scaled = rng.integers(0, 5, (tokens, 2)), reference * scales[:, None, None]
    expected = np.einsum("ti,tkoi->tko", x, scaled[ids])
    assert loss(weight.gather_matmul(mx.array(x[:, None]), mx.array(ids)), expected) <= tolerance
    own = rng.normal(size=(tokens, 5, 256)).astype(np.float32)
    expected = np.einsum("tei,eoi->teo", own, scaled)
    assert loss(weight.stack_matmul(mx.array(own)), expected) <= tolerance


def test_a_large_product_shared_among_streams_is_the_same():
    blocks, info, reference = random_tensor("Q4_1", (4099, 512))
    x = np.random.default_rng(1).normal(size=(9, 512)).astype(np.float32)
    one = StockKernels("cpu", threads=1).load(blocks, info).matmul(mx.array(x))
    three = StockKernels("cpu", threads=3).load(blocks, info).matmul(mx.array(x))
    assert one.shape == three.shape == (9, 4099)
    assert np.array_equal(np.array(one), np.array(three))
    assert loss(three, x @ reference.T) <= 2e-6


def test_a_constant_group_is_reencoded_without_dividing_by_zero():
    kind = TYPE_BY_NAME["Q6_K"]
    blocks = np.zeros(kind.size_bytes, dtype=np.uint8)
    info = TensorInfo("w", (1, 256), kind, 0, blocks.nbytes)
    rows = select("stock").load(blocks, info).rows(mx.array([0]))
    assert np.array_equal(np.array(rows), np.zeros((1, 256)))


@pytest.mark.parametrize(
    ("name", "threads", "message"),
    [
        ("fast", None, "kernels must be one of auto, native, blocks, stock, got 'fast'"),
        ("stock", 0, "0"),
    ],
)
def test_kernels_that_are_not_there_are_refused(name: str, threads: int | None, message: str):
    with pytest.raises(BackendError, match=message):
        select(name, threads)
