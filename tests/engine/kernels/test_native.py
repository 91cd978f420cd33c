"""The native kernels against NumPy: every block type, four operations, and whole layers.

Where this build has none, because there was no compiler, only the refusal is tested.
"""

from __future__ import annotations

import gc
import mmap
import shutil
import sys
import weakref
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.device import backend
from engine.errors import BackendError
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels import native
from engine.kernels.base import Rows
from engine.kernels.select import select, selected
from engine.kernels.sizes import resident_bytes
from support.models import HERE
from support.tensors import gathered, product_error, random_tensor

NAMES = list(TYPE_BY_NAME)
FLOATS = ("F32", "F16", "BF16")
# Rounding of activations to 8 bits, as a share of the size of a product; four times the usual one,
# as products of few numbers may be unlucky.
ROUNDING = 2e-2
missing = None if backend() != "cpu" else native.unavailable_reason()
needs_native = pytest.mark.skipif(
    backend() != "cpu" or missing is not None, reason=missing or "no CPU backend"
)


@pytest.mark.skipif(
    sys.platform != "linux" or backend() != "cpu" or shutil.which("c++") is None,
    reason="no compiler, or not for this machine",
)
def test_the_kernels_were_built_where_there_is_a_compiler():
    """Also fails where the source tree is imported in place of the installed package."""
    assert missing is None, missing


def tolerance(name: str) -> float:
    return 2e-6 if name in FLOATS else ROUNDING


def load(name: str, shape: tuple[int, ...], seed: int = 0):
    blocks, info, reference = random_tensor(name, shape, seed)
    return select("native").load(blocks, info), reference


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_reference_rows_exactly(name: str):
    weight, reference = load(name, (6, 512))
    rows = weight.rows(mx.array([4, 0, 4, -1]))
    assert rows.dtype == mx.float32
    assert np.array_equal(np.array(rows), reference[[4, 0, 4, 5]])


@needs_native
@pytest.mark.parametrize("tokens", [1, 2, 5, 33, 130])
@pytest.mark.parametrize("shape", [(24, 512), (67, 256), (1, 768)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_matmul_is_the_reference_product(name: str, shape: tuple[int, int], tokens: int):
    weight, reference = load(name, shape)
    x = np.random.default_rng(1).normal(size=(tokens, shape[1])).astype(np.float32)
    y = weight.matmul(mx.array(x))
    assert y.shape == (tokens, shape[0])
    assert product_error(y, x @ reference.T, x, reference) <= tolerance(name)


@needs_native
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", NAMES)
def test_gather_matmul_runs_the_chosen_experts(name: str, tokens: int):
    weight, reference = load(name, (5, 24, 256))
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 5, (tokens, 2))
    for choices in (1, 2):  # one input for both experts, or one for each
        x = rng.normal(size=(tokens, choices, 256)).astype(np.float32)
        y = weight.gather_matmul(mx.array(x), mx.array(ids))
        assert y.shape == (tokens, 2, 24)
        assert product_error(y, gathered(x, ids, reference), x, reference) <= tolerance(name)


@needs_native
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", NAMES)
def test_stack_matmul_gives_every_matrix_its_own_rows(name: str, tokens: int):
    weight, reference = load(name, (5, 24, 256))
    x = np.random.default_rng(2).normal(size=(tokens, 5, 256)).astype(np.float32)
    y = weight.stack_matmul(mx.array(x))
    assert y.shape == (tokens, 5, 24)
    expected = np.einsum("tei,eoi->teo", x, reference)
    assert product_error(y, expected, x, reference) <= tolerance(name)


@needs_native
@pytest.mark.parametrize(
    ("q", "rows", "value_dim"),
    [
        ((1, 4, 80), (9, 64), 64),
        ((4, 80), (9, 80), 64),
        ((1, 4, 80), (9, 80), 81),
        ((1, 4, 80), (9, 80), 0),
        ((10, 4, 80), (9, 80), 64),
    ],
    ids=str,
)
def test_latent_attention_refuses_shapes_that_do_not_fit(q, rows, value_dim):
    with pytest.raises(ValueError, match="latent_attention"):
        select("native").latent_attention(mx.zeros(q), Rows(mx.zeros(rows)), value_dim)


@needs_native
@pytest.mark.parametrize("scales", [mx.zeros((9, 4), mx.float16), mx.zeros((9, 5))])
def test_latent_attention_refuses_scales_that_do_not_fit(scales: mx.array):
    rows = Rows(mx.zeros((9, 80), mx.int8), scales)
    with pytest.raises(ValueError, match="latent_attention"):
        select("native").latent_attention(mx.zeros((1, 4, 80)), rows, 64)


@needs_native
def test_inputs_with_gaps_and_of_other_types_are_taken():
    weight, reference = load("Q8_0", (24, 512))
    x = np.random.default_rng(3).normal(size=(512, 6)).astype(np.float32)
    turned = mx.array(x).T
    assert (
        product_error(weight.matmul(turned[::2]), x.T[::2] @ reference.T, x.T[::2], reference)
        <= ROUNDING
    )
    half = turned.astype(mx.float16)
    assert (
        product_error(
            weight.matmul(half),
            np.array(half, np.float32) @ reference.T,
            np.array(half, np.float32),
            reference,
        )
        <= ROUNDING
    )
    ids = mx.arange(12, dtype=mx.uint32)[::3]
    assert np.array_equal(np.array(weight.rows(ids)), reference[[0, 3, 6, 9]])


@needs_native
def test_numbers_that_are_not_finite_are_not_made_finite():
    for name in ("F32", "Q4_K", "Q8_0"):
        weight, _ = load(name, (24, 512))
        for bad in (np.nan, np.inf):
            x = np.ones((2, 512), np.float32)
            x[1, 300] = bad
            y = np.array(weight.matmul(mx.array(x)))
            assert np.isfinite(y[0]).all()
            assert not np.isfinite(y[1]).any(), (name, bad)


WRONG = [
    *[((24, 512), "matmul", (shape,)) for shape in [(512,), (2, 511), (2, 513), (1, 2, 512), ()]],
    *[((24, 512), "matmul", (shape,)) for shape in [(512, 2), (2, 1), (2, 0), (0, 0), (512, 24)]],
    *[((5, 24, 512), "matmul", (shape,)) for shape in [(2, 512), (5, 512), (5, 24, 512)]],
    *[
        ((5, 24, 512), "stack_matmul", (s,))
        for s in [(2, 4, 512), (2, 5, 511), (5, 512), (5, 1, 1)]
    ],
    *[((24, 512), "stack_matmul", (shape,)) for shape in [(2, 24, 512), (2, 512)]],
    *[((24, 512), "gather_matmul", (shape, (2, 2))) for shape in [(2, 1, 512), (2, 512), (512,)]],
    *[
        ((5, 24, 512), "gather_matmul", shapes)
        for shapes in [
            ((2, 1, 511), (2, 2)),
            ((2, 3, 512), (2, 2)),
            ((2, 0, 512), (2, 2)),
            ((2, 4, 512), (2, 2)),
            ((3, 1, 512), (2, 2)),
            ((1, 1, 512), (2, 2)),
            ((2, 512), (2, 2)),
            ((2, 1, 1, 512), (2, 2)),
            ((2, 1, 512), (2,)),
            ((2, 1, 512), (2, 2, 1)),
            ((2, 1, 512), (4,)),
            ((2, 1, 512), ()),
            ((2, 2, 512), (4, 1)),
            ((512, 1, 2), (2, 2)),
            ((24, 1, 24), (24, 2)),
        ]
    ],
    *[((24, 512), "rows", (shape,)) for shape in [(), (2, 2), (1, 1), (2, 1, 1), (0, 1)]],
    *[((5, 24, 512), "rows", (shape,)) for shape in [(2,), (1,), (2, 2)]],
]
DTYPES = [
    ("matmul", ((2, 512),), (dtype,)) for dtype in (mx.int32, mx.uint8, mx.bool_, mx.complex64)
]
DTYPES += [("rows", ((2,),), (dtype,)) for dtype in (mx.float32, mx.bool_, mx.float16)]


@needs_native
@pytest.mark.parametrize(("shape", "operation", "shapes"), WRONG, ids=str)
def test_wrong_shapes_are_refused(
    shape: tuple[int, ...], operation: str, shapes: tuple[tuple[int, ...], ...]
):
    weight, _ = load("Q8_0", shape)
    dtypes = [mx.int32 if operation == "rows" else mx.float32, mx.int32]
    inputs = [mx.zeros(size, dtype=dtype) for size, dtype in zip(shapes, dtypes, strict=False)]
    with pytest.raises(ValueError, match=operation):
        getattr(weight, operation)(*inputs)


@needs_native
@pytest.mark.parametrize(("operation", "shapes", "dtypes"), DTYPES, ids=str)
def test_wrong_types_are_refused(operation: str, shapes: tuple, dtypes: tuple):
    weight, _ = load("Q8_0", (24, 512))
    inputs = [mx.zeros(size, dtype=dtype) for size, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(ValueError, match=r"must be .*, got mlx"):
        getattr(weight, operation)(*inputs)


@needs_native
@pytest.mark.parametrize(
    ("shape", "lost"), [((24, 500), 0), ((24, 512), 34), ((24, 512), 1), ((2, 2, 24, 512), 0)]
)
def test_blocks_that_are_not_the_weight_are_refused(shape: tuple[int, ...], lost: int):
    blocks, info, _ = random_tensor("Q8_0", (24, 512))
    wrong = TensorInfo("w", shape, info.type, 0, info.size_bytes)
    with pytest.raises(ValueError, match="'w'"):
        select("native").load(blocks[: blocks.size - lost], wrong)


def test_fifty_wrong_calls_are_listed():
    assert len(WRONG) + len(DTYPES) + 4 >= 50


@needs_native
@pytest.mark.parametrize("id", [24, -25, 1 << 20])
def test_an_id_outside_the_weight_is_an_error_and_no_crash(id: int):
    weight, reference = load("Q8_0", (24, 512))
    with pytest.raises(RuntimeError, match=f"index {id} is out of range"):
        mx.eval(weight.rows(mx.array([0, id])))
    assert np.array_equal(np.array(weight.rows(mx.array([1]))), reference[[1]])  # and goes on


@needs_native
def test_blocks_are_read_where_they_are_mapped_and_kept_as_long_as_needed(tmp_path: Path):
    blocks, info, reference = random_tensor("Q4_K", (4096, 2048))
    path = tmp_path / "blocks"
    path.write_bytes(blocks.tobytes())
    before = mx.get_active_memory()
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = np.frombuffer(mapping, np.uint8)
    alive = weakref.ref(mapping)
    weight = select("native").load(mapped, info)
    assert mx.get_active_memory() - before < 1000
    x = mx.random.normal((4, 2048))
    y = weight.matmul(x)  # not computed yet
    del mapping, mapped, weight
    gc.collect()
    assert alive() is not None
    assert product_error(y, np.array(x) @ reference.T, np.array(x), reference) <= ROUNDING
    del y
    mx.synchronize()
    gc.collect()
    for _ in range(1000):  # the interpreter looks for what other threads have left to it
        pass
    assert alive() is None


@needs_native
def test_dropped_outputs_are_no_harm():
    weight, reference = load("Q4_0", (512, 512))
    x = mx.random.normal((64, 512))
    for _ in range(200):
        mx.async_eval(weight.matmul(x))
    assert (
        product_error(weight.matmul(x), np.array(x) @ reference.T, np.array(x), reference)
        <= ROUNDING
    )


@needs_native
def test_any_number_of_threads_gives_the_same():
    results = []
    for threads in (1, 2, 3, 5):
        model = engine.load(HERE / "qwen3moe" / "model.gguf", kernels="native", threads=threads)
        results.append(np.array(model.logits(list(range(3, 40)))))
    select("native")
    for result in results[1:]:
        assert np.abs(result - results[0]).max() < 1e-4 * results[0].std()


def test_native_weights_take_their_blocks_and_no_more():
    blocks, info, _ = random_tensor("Q4_K", (64, 512))
    assert (
        resident_bytes(info, "cpu", "native")
        == blocks.nbytes
        < resident_bytes(info, "cpu", "stock")
    )


@needs_native
def test_auto_is_native_where_that_loads():
    assert (select().name, select().fallback_reason) == ("native", None)
    assert selected("auto", "cpu") == "native"
    assert selected("stock", "cpu") == selected("stock", "cuda") == "stock"
    assert selected("auto", "cuda") == selected("auto", "metal") == "blocks"


@pytest.mark.skipif(backend() != "cpu", reason="no CPU backend")
@pytest.mark.parametrize(
    ("version", "message"), [(None, "not part of this build"), ("0.1.2", "built for MLX 0.1.2")]
)
def test_without_an_extension_for_this_mlx_auto_is_stock_and_says_why(
    version: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    built_for = tmp_path / "mlx-version"
    if version is not None:
        built_for.write_text(version + "\n")
    monkeypatch.setattr(native, "BUILT_FOR", built_for)
    unremembered = native.unavailable_reason.__wrapped__
    monkeypatch.setattr(native, "unavailable_reason", unremembered)
    kernels = select("auto")
    assert kernels.name == selected("auto", "cpu") == "stock"
    assert message in (kernels.fallback_reason or "")
    assert select("stock").fallback_reason is None
    with pytest.raises(BackendError, match=message):
        select("native")


def test_native_is_refused_where_mlx_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.kernels.select.backend", lambda: "cuda")
    with pytest.raises(BackendError, match="only run on a CPU"):
        select("native")
