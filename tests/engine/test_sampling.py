"""Drawing tokens: what each setting keeps, and that a NaN is never drawn from."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from engine.sampling import NOT_FINITE, Sampler, Settings, discourage, penalize

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at temperature 1.
PROBS = [0.5, 0.25, 0.125, 0.0625, 0.0625]
LOGITS = mx.array([math.log(p) for p in PROBS])


def drawn(count: int = 400, **settings: object) -> list[int]:
    sampler = Sampler(Settings(**{"temperature": 1.0, "seed": 7} | settings), [0])
    return [int(sampler.choose(LOGITS).item()) for _ in range(count)]


def test_greedy_takes_the_likeliest():
    assert set(drawn(5, temperature=0)) == {0}


def test_a_tiny_temperature_takes_the_likeliest():
    likeliest = mx.array([1.0, 30.0, -5.0])
    for settings in (Settings(temperature=1e-40), Settings(temperature=1e-40, top_p=0.9)):
        assert int(Sampler(settings, [0]).choose(likeliest).item()) == 1


def test_presence_penalty_lowers_what_was_seen_once():
    lowered = discourage(mx.array([2.0, -2.0, 1.0]), mx.array([0, 1, 0]), 1.5)
    assert lowered.tolist() == [0.5, -3.5, 1.0]


def test_draws_follow_the_probabilities():
    tokens = drawn(4000)
    for token, probability in enumerate(PROBS):
        deviation = math.sqrt(probability * (1 - probability) / 4000)
        assert abs(tokens.count(token) / 4000 - probability) < 5 * deviation


def test_temperature_sharpens():
    # At 0.5 the probabilities are squared: 0.25 of 0.25 + 0.0625 + 0.015625 + 2 * 0.00390625.
    share = drawn(4000, temperature=0.5).count(0) / 4000
    assert abs(share - 0.25 / 0.3359375) < 0.04


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1}),
        ({"top_k": 3, "min_p": 0.5}, {0, 1}),
        ({"temperature": 0.5, "top_p": 0.9}, {0, 1}),
    ],
)
def test_cuts_keep_the_right_candidates(settings: dict, kept: set[int]):
    assert set(drawn(**settings)) == kept


def test_top_p_after_top_k_counts_what_is_left():
    # Of three candidates the shares are 4/7, 2/7, 1/7: two of them reach 0.8.
    assert set(drawn(top_k=3, top_p=0.8)) == {0, 1}


def test_the_same_seed_draws_the_same_tokens():
    assert drawn(50, seed=3) == drawn(50, seed=3)
    assert drawn(50, seed=3) != drawn(50, seed=4)


def test_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = mx.array([2.0, -2.0, 1.0])
    penalized = penalize(logits, mx.array([0, 1, 0, 1]), 2.0)
    assert penalized.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_penalty_sees_what_was_drawn():
    sampler = Sampler(Settings(temperature=0, repetition_penalty=4.0), [4])
    logits = mx.array([1.0, 0.9, 0.8, 0.0, 0.0])
    assert [int(sampler.choose(logits).item()) for _ in range(4)] == [0, 1, 2, 0]


def test_processors_change_the_logits():
    def forbid_zero(recent: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.size) == 0, -mx.inf, logits)

    assert set(drawn(20, temperature=0, processors=(forbid_zero,))) == {1}


@pytest.mark.parametrize("bad", [[math.nan, 0, 0, 0, 0], [math.inf, 0, 0, 0, 0], [math.nan] * 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repetition_penalty": 1.3},
    ],
)
def test_logits_that_are_not_finite_give_no_token(settings: dict, bad: list[float]):
    sampler = Sampler(Settings(seed=0, **settings), [0])
    assert int(sampler.choose(mx.array(bad)).item()) == NOT_FINITE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 2),
        ("min_p", 1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("seed", -1),
        ("seed", 1 << 70),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: object):
    with pytest.raises(ValueError, match=f"{name} is"):
        Settings(**{name: value})
