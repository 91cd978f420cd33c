"""Rotary embedding and attention variants, with numbers that can be checked by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from engine.nn.attention import capped_attention
from engine.nn.config import RopeConfig
from engine.nn.mlp import geglu
from engine.nn.rope import Temperature, rope_periods


def test_plain_periods_are_powers_of_the_base():
    periods, magnitude = rope_periods(RopeConfig(dims=4, base=100.0))
    assert periods == [1.0, 10.0] and magnitude == 1.0


def test_linear_scaling_stretches_every_period():
    periods, magnitude = rope_periods(RopeConfig(4, 100.0, "linear", factor=8.0))
    assert periods == [8.0, 80.0] and magnitude == 1.0


@pytest.mark.parametrize("rounded", [True, False])
def test_yarn_of_gpt_oss_ramps_where_its_publisher_says(rounded: bool):
    # The published model: the ramp covers pairs 8.09 to 17.40, or 8 to 18 if rounded.
    config = RopeConfig(64, 150_000.0, "yarn", 32.0, 4096, rounded=rounded)
    periods, magnitude = rope_periods(config)
    plain = 150_000.0 ** (np.arange(32) / 32)
    stretch = periods / plain
    low, high = (8, 18) if rounded else (8.093, 17.398)
    assert np.allclose(stretch[:8], 1) and np.allclose(stretch[18:], 32)
    ramp = (12 - low) / (high - low)
    assert stretch[12] == pytest.approx(1 / (1 - ramp + ramp / 32), rel=1e-3)
    assert magnitude == pytest.approx(1.3466, abs=1e-4)


def test_a_log_multiplier_of_one_takes_yarns_magnitude_back():
    config = RopeConfig(64, 10_000.0, "yarn", 40.0, 4096, log_multiplier=1.0)
    assert rope_periods(config)[1] == 1.0
    config = RopeConfig(64, 10_000.0, "yarn", 40.0, 4096, attention_factor=2.0)
    assert rope_periods(config)[1] == pytest.approx(2 * (0.1 * math.log(40) + 1))


def test_temperature_rises_with_every_chunk():
    q = mx.ones((1, 2, 4, 3))
    rising = np.array(Temperature(0.1, length=2)(q, offset=1))[0, 0, :, 0]
    expected = [1 + 0.1 * math.log(n) for n in (1, 2, 2, 3)]  # positions 1 2 3 4
    assert np.allclose(rising, expected)
    shifted = np.array(Temperature(0.1, length=2, shift=1)(q, offset=1))[0, 1, :, 2]
    assert np.allclose(shifted, [1 + 0.1 * math.log(n) for n in (2, 2, 3, 3)])


def test_a_cap_bounds_scores_and_a_high_one_changes_nothing():
    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, heads, 5, 8)) for heads in (4, 2, 2))
    plain = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")
    loose = capped_attention(q, k, v, 0.3, 1e5, "causal")
    assert np.allclose(np.array(plain), np.array(loose), atol=1e-3)
    # A cap near 0 makes all scores equal: each token outputs the mean of the visible values.
    flat = np.array(capped_attention(q, k, v, 0.3, 1e-6, "causal"))
    means = np.cumsum(np.array(v), axis=2) / np.arange(1, 6)[:, None]
    assert np.allclose(flat, np.repeat(means, 2, axis=1), atol=1e-4)


def test_gelu_is_the_one_by_tanh():
    x = np.linspace(-3, 3, 7)
    exact = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.allclose(np.array(geglu(mx.array(x), mx.array(2.0))), 2 * exact, atol=1e-5)
