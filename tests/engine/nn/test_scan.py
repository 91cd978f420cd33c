"""Each kernel set's operations for recurrent layers equal a sequential NumPy implementation."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.select import select
from engine.limits import SCAN_CHUNK
from engine.nn.scan import decayed_products, scan, segment_sums, unit_lower_inverse

# (A, B) heads with keys of (A, 1), (1, B) or (A, B); N key width, P value width.
HEADS = [
    ((1, 3), (1, 1)),
    ((2, 2), (2, 1)),
    ((3, 2), (1, 2)),
    ((2, 3), (2, 3)),
]
EPS = 1e-6
LENGTHS = (1, 2, 7, SCAN_CHUNK, SCAN_CHUNK + 1, 3 * SCAN_CHUNK - 5)


def sequential(q, k, v, log_decay, state, beta=None):
    """Compute S = decay S + k u^T, y = S^T q for one token at a time in float64."""
    q, k, v, log_decay, state = (np.asarray(x, np.float64) for x in (q, k, v, log_decay, state))
    heads = v.shape[1:3]
    if beta is not None:
        q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + EPS) for x in (q, k))
        q = q / np.sqrt(q.shape[-1])
    q, k = (np.broadcast_to(x, (len(x), *heads, x.shape[-1])) for x in (q, k))
    ys = []
    for t in range(len(v)):
        state = state * np.exp(log_decay[t]).reshape(*heads, -1, 1)
        u = v[t]
        if beta is not None:
            u = beta[t][..., None] * (v[t] - np.einsum("abnp,abn->abp", state, k[t]))
        state = state + k[t][..., None] * u[..., None, :]
        ys.append(np.einsum("abnp,abn->abp", state, q[t]))
    return np.stack(ys), state


def inputs(length: int, heads, shared, n: int = 6, p: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    q, k = (rng.standard_normal((length, *shared, n)) for _ in range(2))
    k *= n**-0.5
    v = rng.standard_normal((length, *heads, p))
    log_decay = -np.exp(rng.standard_normal((length, *heads)))
    beta = rng.uniform(0, 1, (length, *heads))
    state = rng.standard_normal((*heads, n, p))
    return [x.astype(np.float32) for x in (q, k, v, log_decay, state, beta)]


def run(kernels: str, arrays):
    y, state = select(kernels).scan(*map(mx.array, arrays), *([EPS] if len(arrays) == 6 else []))
    return np.array(y), np.array(state)


@pytest.mark.parametrize(("n", "p"), [(6, 5), (33, 70)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(("heads", "shared"), HEADS)
def test_a_prompt_equals_one_token_after_the_other(
    heads, shared, delta: bool, length: int, n: int, p: int, kernels: str
):
    arrays = inputs(length, heads, shared, n, p)[: 6 if delta else 5]
    y, state = run(kernels, arrays)
    expected_y, expected_state = sequential(*arrays)
    np.testing.assert_allclose(y, expected_y, atol=2e-5)
    np.testing.assert_allclose(state, expected_state, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 2, 16, SCAN_CHUNK])
@pytest.mark.parametrize("delta", [False, True])
def test_chunks_of_any_size_give_the_same(delta: bool, chunk: int):
    arrays = inputs(3 * SCAN_CHUNK - 5, (2, 2), (2, 1))[: 6 if delta else 5]
    y, state = scan(*map(mx.array, arrays), *([EPS] if delta else []), chunk=chunk)
    expected_y, expected_state = sequential(*arrays)
    np.testing.assert_allclose(np.array(y), expected_y, atol=2e-5)
    np.testing.assert_allclose(np.array(state), expected_state, atol=2e-5)


@pytest.mark.parametrize("cut", [1, 7, SCAN_CHUNK, SCAN_CHUNK + 3])
@pytest.mark.parametrize("delta", [False, True])
def test_two_runs_equal_one(delta: bool, cut: int, kernels: str):
    q, k, v, log_decay, state, beta = inputs(2 * SCAN_CHUNK + 9, (2, 3), (2, 1))
    betas = [beta] if delta else []
    y, end = run(kernels, [q, k, v, log_decay, state, *betas])
    first, middle = run(
        kernels, [x[:cut] for x in (q, k, v, log_decay)] + [state] + [b[:cut] for b in betas]
    )
    rest, last = run(
        kernels, [x[cut:] for x in (q, k, v, log_decay)] + [middle] + [b[cut:] for b in betas]
    )
    np.testing.assert_allclose(np.concatenate([first, rest]), y, atol=2e-5)
    np.testing.assert_allclose(last, end, atol=2e-5)


def test_the_same_key_over_and_over_stays_exact(kernels: str):
    """With one repeated token, a power series for the inverse would reach 1e17."""
    q, k, v, log_decay, state, beta = inputs(2 * SCAN_CHUNK, (1, 2), (1, 1))
    k[:] = k[:1]
    log_decay[:], beta[:] = -1e-4, 0.999
    y, end = run(kernels, [q, k, v, log_decay, state, beta])
    expected_y, expected_end = sequential(q, k, v, log_decay, state, beta)
    np.testing.assert_allclose(y, expected_y, atol=5e-5)
    np.testing.assert_allclose(end, expected_end, atol=5e-5)


def test_a_strong_decay_does_not_blur_what_follows_it(kernels: str):
    q, k, v, log_decay, state, beta = inputs(SCAN_CHUNK, (1, 2), (1, 1))
    log_decay[:] = -1e-3
    log_decay[3:20] = -3e4
    y, _ = run(kernels, [q, k, v, log_decay, state, beta])
    np.testing.assert_allclose(y, sequential(q, k, v, log_decay, state, beta)[0], atol=2e-5)


def by_channel(length: int, n: int = 6, p: int = 5):
    """Return inputs whose decays differ from channel to channel, some strong, some almost none."""
    q, k, v, _, state, beta = inputs(length, (3, 1), (3, 1), n, p)
    log_decay = -np.exp(3 * np.random.default_rng(5).standard_normal((length, 3, 1, n)))
    return [q, k, v, log_decay.astype(np.float32), state, beta]


@pytest.mark.parametrize(("n", "p"), [(6, 5), (33, 70)])
@pytest.mark.parametrize("length", LENGTHS)
def test_channels_may_decay_differently(length: int, n: int, p: int, kernels: str):
    arrays = by_channel(length, n, p)
    y, state = run(kernels, arrays)
    expected_y, expected_state = sequential(*arrays)
    np.testing.assert_allclose(y, expected_y, atol=2e-5)
    np.testing.assert_allclose(state, expected_state, atol=2e-5)


def test_decays_of_channels_need_the_delta_rule(kernels: str):
    with pytest.raises((AssertionError, ValueError)):
        run(kernels, by_channel(3)[:5])


def test_decayed_products_do_not_overflow():
    a, b, log_decay = np.random.default_rng(6).standard_normal((3, 2, 16, 4)).astype(np.float32)
    log_decay = -1e3 * np.abs(log_decay)
    log_decay[..., 1] = 0
    products = np.array(decayed_products(*map(mx.array, (a, b, log_decay))))
    sums = np.cumsum(log_decay.astype(np.float64), axis=-2)
    decay = np.exp(np.minimum(sums[:, :, None] - sums[:, None], 0))
    expected = np.tril(np.einsum("ctn,cin,ctin->cti", a, b, decay))
    np.testing.assert_allclose(products, expected, atol=1e-5)


def test_segment_sums_add_the_tokens_after_the_first_up_to_the_last():
    sums = np.array(segment_sums(mx.array([1.0, 2.0, 4.0])))
    assert sums.tolist() == [[0, -np.inf, -np.inf], [2, 0, -np.inf], [6, 4, 0]]


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_the_inverse_of_a_unit_lower_matrix(size: int):
    lower = np.tril(np.random.default_rng(1).uniform(-1, 1, (2, 3, size, size)), -1)
    inverse = np.array(unit_lower_inverse(mx.array(lower.astype(np.float32))))
    expected = np.linalg.inv(np.eye(size) + lower)
    np.testing.assert_allclose(inverse, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("length", [1, 2, 5, 70])
@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("full", [False, True])
def test_a_convolution_sees_the_tokens_before(full: bool, taps: int, length: int, kernels: str):
    rng = np.random.default_rng(2)
    channels = 150
    shapes = ((length, channels), (taps - 1, channels), (taps, channels), (channels,))
    x, tail, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    given = mx.array(bias) if full else None
    wide = mx.array(np.concatenate([x, x], axis=1))  # x is a view with gaps between its rows
    y, new_tail = select(kernels).convolve(
        wide[:, channels:], mx.array(tail), mx.array(w), given, full
    )
    joined = np.concatenate([tail, x])
    expected = np.stack([(joined[t : t + taps] * w).sum(axis=0) for t in range(length)])
    expected = silu(expected + bias) if full else expected
    np.testing.assert_allclose(np.array(y), expected, atol=1e-5)
    np.testing.assert_array_equal(np.array(new_tail), joined[-(taps - 1) :])


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_gated_norm(groups: int, gate_first: bool, kernels: str):
    rng = np.random.default_rng(4)
    y, gate = (rng.standard_normal((5, 3, 70)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal((groups, 70)).astype(np.float32)
    found = select(kernels).gated_norm(*map(mx.array, (y, gate, weight)), 1e-3, gate_first)
    z = y * silu(gate) if gate_first else y
    z = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(np.array(found), z if gate_first else z * silu(gate), atol=1e-5)
