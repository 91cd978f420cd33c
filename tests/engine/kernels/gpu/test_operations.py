"""Each kernel's numbers for every block type, in both texts, against NumPy's dequantisation."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.gpu.tensor import BlockTensor, Grouped
from engine.kernels.gpu.texts import TYPES, kernel_text
from engine.nn.mlp import clamped_silu, clamped_swiglu, geglu, swiglu
from support.gpu import (
    BOUNDS,
    FINITE,
    GROUPED_BOUNDS,
    NIGHT,
    cases,
    emulated,
    experts,
    needs_compiler,
    numbers,
    off,
    vectors,
    weight,
    width,
)
from support.tensors import gathered

pytestmark = [pytest.mark.process, needs_compiler]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("name", "cuda"), cases(TYPES))
def test_rows_are_the_dequantised_ones(name: str, cuda: bool):
    tensor, w = weight(name, (11, width(name)), emulated(cuda))
    ids = np.array([3, 7, 0, 3, 10])
    y = numbers(tensor.rows(mx.array(ids)))
    assert np.abs(y - w[ids]).max() <= 1e-6 * np.abs(w).max()


@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=NIGHT)])
@pytest.mark.parametrize("name", FINITE)
def test_rows_of_extreme_scales(name: str, cuda: bool):
    for scale in FINITE[name]:
        tensor, w = weight(name, (5, width(name)), emulated(cuda), scale=scale)
        rows = numbers(tensor.rows(mx.array([4, 0])))
        assert np.abs(rows - w[[4, 0]]).max() <= 1e-6 * np.abs(w).max()


@pytest.mark.parametrize(("name", "cuda"), cases(TYPES))
def test_a_product_of_whole_numbers_is_exact_to_the_bit(name: str, cuda: bool, rng):
    tensor, w = weight(name, (11, width(name)), emulated(cuda), whole=True)
    x = rng.integers(-2, 3, (2, w.shape[1])).astype(np.float64)
    assert (w == np.round(w)).all() and (np.abs(x) @ np.abs(w).T < 2**24).all()
    assert (numbers(tensor.matmul(mx.array(x, mx.float32))) == x @ w.T).all()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize(("name", "cuda"), cases())
def test_a_product(name: str, cuda: bool, dtype: mx.Dtype, rng):
    for shares, count, tokens, rows, simdgroups in [
        (1, 1, 1, 2, 2),
        (40, 21, 2, 4, 2),
        (64, 16, 1, 2, 4),
    ]:
        gpu = emulated(cuda, seed=shares, rows=rows, simdgroups=simdgroups)
        tensor, w = weight(name, (count, width(name, shares)), gpu)
        x = vectors(rng, tokens, w.shape[1], dtype=dtype)
        assert off(tensor.matmul(x), numbers(x), w) < BOUNDS[dtype]


@pytest.mark.parametrize(("name", "cuda"), cases())
def test_a_product_by_chosen_experts(name: str, cuda: bool, rng):
    tensor, w = weight(name, (12, 11, width(name)), emulated(cuda))
    for tokens, used, own in [(1, 4, 1), (3, 8, 1), (2, 4, 4)]:  # fewer than 8 ids are `constant`
        ids = np.stack([rng.permutation(12)[:used] for _ in range(tokens)])
        x = vectors(rng, tokens, own, w.shape[-1])
        y, size = numbers(tensor.gather_matmul(x, mx.array(ids))), np.abs(numbers(x))
        error = np.abs(y - gathered(numbers(x), ids, w)) / gathered(size, ids, np.abs(w))
        assert error.max() < BOUNDS[mx.float32]


@pytest.mark.parametrize("tokens", [2, 9])
def test_a_product_by_every_matrix_of_a_stack(tokens: int, rng):
    tensor, w = weight("Q8_0", (5, 7, 64), emulated(False))
    x = vectors(rng, tokens, 5, 64)
    expected = np.einsum("eoi,tei->teo", w, numbers(x))
    assert np.abs(numbers(tensor.stack_matmul(x)) - expected).max() < 1e-4


def test_a_product_of_many_vectors_is_made_of_pieces(rng, monkeypatch):
    monkeypatch.setattr("engine.kernels.gpu.tensor.PIECE_BYTES", 4 * 1280 * 8)
    tensor, w = weight("Q4_K", (21, 1280), emulated(False))
    x = vectors(rng, 9, 1280)
    assert off(tensor.matmul(x), numbers(x), w) < BOUNDS[mx.float32]


ACTIVATIONS = [swiglu, clamped_silu(0.5), clamped_swiglu, geglu]


def gated_experts(name: str, cuda: bool, activation=swiglu, biased=False, merged=False):
    """Experts of 10 hidden and 11 output values: a kernel for up to two experts of 3 tokens."""
    columns, hidden, gpu = width(name, 5), width(name, 3), emulated(cuda)
    gate, wg = weight(name, (6, hidden, columns), gpu, seed=1)
    up, wu = weight(name, (6, hidden, columns), gpu, seed=2)
    down, wd = weight(name, (6, 11, hidden), gpu, seed=3)
    rng, biases = np.random.default_rng(4), [np.zeros((6, n)) for n in (hidden, hidden, 11)]
    if biased:
        biases = [rng.standard_normal(bias.shape) for bias in biases]
    given = tuple(mx.array(bias, mx.float32) for bias in biases) if biased else None
    if merged:
        gate, up = (
            None,
            BlockTensor(
                mx.concatenate([gate.blocks, up.blocks], axis=1),
                (6, 2 * hidden, columns),
                *(up.type, gpu, up.dtype),
            ),
        )
    return experts(gate, up, down, given, activation, merged), (wg, wu, wd), biases


def check_experts(layer, weights, biases, tokens: int, used: int, bound: float) -> None:
    rng = np.random.default_rng(5)
    x = vectors(rng, tokens, weights[0].shape[-1])
    ids = np.stack([rng.permutation(6)[:used] for _ in range(tokens)])
    scores = rng.random((tokens, used))
    y = layer(x, mx.array(ids), mx.array(scores, mx.float32))

    def product(number: int, values: np.ndarray, size: bool = False) -> np.ndarray:
        w = weights[number]
        if size:
            return gathered(np.abs(values), ids, np.abs(w)) + np.abs(biases[number][ids])
        return gathered(values, ids, w) + biases[number][ids]

    own = numbers(x)[:, None, :]
    gate, up = product(0, own), product(1, own)
    hidden = numbers(layer.experts.activation(mx.array(gate, mx.float32), mx.array(up, mx.float32)))
    # The activations' slopes are below 1.2 of the other factor.
    blur = 1.2 * (
        product(0, own, True) * (np.abs(up) + 1) + product(1, own, True) * (np.abs(gate) + 1)
    )
    expected = (product(2, hidden) * scores[..., None]).sum(axis=1)
    error = (product(2, np.abs(hidden) + blur, True) * scores[..., None]).sum(axis=1)
    assert (np.abs(numbers(y) - expected) / error).max() < bound


@pytest.mark.parametrize(("name", "cuda"), cases())
def test_few_tokens_through_the_experts_of_a_layer(name: str, cuda: bool):
    check_experts(*gated_experts(name, cuda), tokens=3, used=2, bound=2e-6)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["swiglu", "clamped", "gpt-oss", "geglu"])
def test_activations_and_biases(activation, merged: bool):
    layer = gated_experts("Q4_0", False, activation, biased=not merged, merged=merged)
    assert layer[0].number is not None
    check_experts(*layer, tokens=3, used=2, bound=2e-6)


def test_experts_without_a_gate(rng):
    up, wu = weight("Q4_0", (6, 64, 96), emulated(False), seed=1)
    down, wd = weight("Q4_0", (6, 5, 64), emulated(False), seed=2)
    layer = experts(None, up, down, activation=mx.abs)
    layer.experts.hidden = lambda x, ids: mx.abs(up.gather_matmul(x, ids))
    x, ids = vectors(rng, 2, 96), np.array([[5, 0], [1, 2]])
    scores = rng.random((2, 2))
    hidden = np.abs(gathered(numbers(x)[:, None, :], ids, wu))
    expected = (gathered(hidden, ids, wd) * scores[..., None]).sum(axis=1)
    y = layer(x, mx.array(ids), mx.array(scores, mx.float32))
    assert np.abs(numbers(y) - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", GROUPED_BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "cuda"), cases())
def test_the_grouped_product(name: str, cuda: bool, dtype: mx.Dtype, rng, monkeypatch):
    counts = np.array([5, 0, 33, 0, 0, 7, 32, 0, 1])  # the last expert has one row
    ids = np.repeat(np.arange(len(counts)), counts)
    # The engine launches it on Metal alone; CUDA's text is held to the same numbers.
    tensor, w = weight(name, (len(counts), 70, width(name, 7)), emulated(False))
    x = vectors(rng, len(ids), w.shape[-1], dtype=dtype)
    groups = Grouped.of(mx.array(ids), len(counts))
    text = partial(kernel_text, cuda=cuda)
    monkeypatch.setattr("engine.kernels.gpu.tensor.kernel_text", lambda *given: text(*given[:2]))
    y = tensor.grouped_matmul(x, groups)
    for e in np.flatnonzero(counts):
        mine = np.flatnonzero(ids == e)
        assert off(y[mx.array(mine)], numbers(x)[mine], w[e]) < GROUPED_BOUNDS[dtype]


@pytest.mark.parametrize("cuda", [False, True])
def test_a_prompt_through_the_experts_of_a_layer(cuda: bool):
    bound = 2e-6 if cuda else 2.0**-10  # on CUDA, MLX multiplies float32
    check_experts(*gated_experts("Q4_0", cuda, biased=True), tokens=24, used=3, bound=bound)


def test_pairs_are_sorted_and_restored(rng):
    tensor, w = weight("Q8_0", (6, 9, 64), emulated(True))
    ids = np.stack([rng.permutation(6)[:4] for _ in range(20)])
    x = vectors(rng, 20, 4, 64)
    y = numbers(tensor.gather_matmul(x, mx.array(ids)))
    assert np.abs(y - gathered(numbers(x), ids, w)).max() < 1e-4


@pytest.mark.parametrize("name", ["Q4_K"])
def test_any_order_of_threads_gives_the_same_bits(name: str, rng):
    x = vectors(rng, 40, 256)
    made = []
    for seed in range(3):
        tensor, _ = weight(name, (3, 70, 256), emulated(False, seed))
        groups = Grouped.of(mx.array([0] * 20 + [2] * 20), 3)
        made.append(
            [
                tensor.grouped_matmul(x, groups),
                tensor.gather_matmul(x[:4, None], mx.array([[1]] * 4)),
            ]
        )
    for one, other in zip(made[0], made[-1], strict=True):
        assert mx.array_equal(one, other).item()
    assert mx.array_equal(made[0][0], made[1][0]).item()
