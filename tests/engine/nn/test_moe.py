"""Routing and experts, with numbers that can be checked by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from engine.architectures.registry import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN, SPARSE_MIXER
from engine.nn.config import ExpertConfig
from engine.nn.mlp import clamped_swiglu
from engine.nn.moe import route


def chosen(logits: list[float], config: ExpertConfig, bias: list[float] | None = None) -> dict:
    """Return the weight of each expert chosen for one token."""
    weights, ids = route(
        mx.array([logits], dtype=mx.float32), config, None if bias is None else mx.array(bias)
    )
    assert weights.shape == ids.shape == (1, config.used)
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


def test_softmax_weighs_among_all_experts_unless_renormalised():
    logits = [math.log(4), math.log(3), math.log(2), 0.0]  # probabilities .4 .3 .2 .1
    config = ExpertConfig(4, 2, 8, SOFTMAX, renormalize=False)
    assert chosen(logits, config) == pytest.approx({0: 0.4, 1: 0.3})
    config = ExpertConfig(4, 2, 8, SOFTMAX, renormalize=True)
    assert chosen(logits, config) == pytest.approx({0: 4 / 7, 1: 3 / 7})
    config = ExpertConfig(4, 2, 8, SOFTMAX_OF_CHOSEN)
    assert chosen(logits, config) == pytest.approx({0: 4 / 7, 1: 3 / 7})


def test_weights_are_scaled_after_they_are_renormalised():
    config = ExpertConfig(4, 2, 8, SIGMOID, scale=2.5)
    weights = chosen([0.0, 0.0, -9.0, -9.0], config)
    assert weights == pytest.approx({0: 1.25, 1: 1.25})


def test_a_bias_chooses_and_does_not_weigh():
    config = ExpertConfig(4, 2, 8, SIGMOID, renormalize=False)
    weights = chosen([2.0, 1.0, 0.0, -1.0], config, bias=[0.0, 0.0, 0.0, 1.0])
    assert weights == pytest.approx({0: 1 / (1 + math.exp(-2)), 3: 1 / (1 + math.exp(1))})


def test_groups_are_chosen_by_their_two_best():
    # Groups (0 1) (2 3) (4 5) (6 7): expert 0 is the best, but its group is not in the top two.
    logits = [3.0, -9.0, 1.0, 1.0, 1.5, 1.5, -9.0, -9.0]
    config = ExpertConfig(8, 2, 8, SIGMOID, groups=4, groups_used=2)
    assert set(chosen(logits, config)) == {4, 5}
    config = ExpertConfig(8, 3, 8, SIGMOID, groups=4, groups_used=2)
    assert {4, 5} < set(chosen(logits, config)) <= {2, 3, 4, 5}


def test_groups_chosen_by_softmax_count_their_best_alone():
    # DeepSeek-V2: expert 0's group is now the best, although its second expert is the worst.
    logits = [3.0, -9.0, 1.0, 1.0, 1.5, 1.5, -9.0, -9.0]
    config = ExpertConfig(8, 3, 8, SOFTMAX, groups=4, groups_used=2)
    assert set(chosen(logits, config)) == {0, 4, 5}


def test_a_group_left_out_loses_even_to_negative_scores():
    config = ExpertConfig(4, 2, 8, SIGMOID, groups=2, groups_used=1)
    bias = [-5.0, -5.0, -9.0, -9.0]
    assert set(chosen([0.0, 0.0, 5.0, 5.0], config, bias)) == {0, 1}


def test_saturated_scores_are_told_apart_by_their_logits():
    config = ExpertConfig(4, 1, 8, SIGMOID, renormalize=False)  # all sigmoids are 1 in float32
    assert chosen([40.0, 60.0, 50.0, 30.0], config) == pytest.approx({1: 1.0})


def test_the_sparse_mixer_weighs_among_those_close_to_the_one_it_takes():
    config = ExpertConfig(4, 2, 8, SPARSE_MIXER)
    # 1.00 and 0.99 are within 2 % of each other, 0.5 is not. Without 1.00, 0.99 is on its own.
    weights = chosen([1.0, 0.99, 0.5, -1.0], config)
    assert weights == pytest.approx({0: 1 / (1 + math.exp(-0.01)), 1: 1.0})
    assert chosen([2.0, 1.0, -1.0, -2.0], config) == pytest.approx({0: 1.0, 1: 1.0})


def test_gpt_oss_clamps_what_it_gates():
    gate, up = mx.array([9.0, -9.0, 1.0]), mx.array([20.0, -20.0, 0.5])
    expected = [
        7 / (1 + math.exp(-1.702 * 7)) * 8,
        -9 / (1 + math.exp(1.702 * 9)) * -6,
        1 / (1 + math.exp(-1.702)) * 1.5,
    ]
    assert np.allclose(np.array(clamped_swiglu(gate, up)), expected, rtol=1e-5)
