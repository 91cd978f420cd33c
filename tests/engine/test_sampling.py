"""Drawing tokens: what each setting keeps, against NumPy, and that a NaN is never drawn from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.select import select
from engine.sampling import (
    NOT_FINITE,
    Sample,
    Sampler,
    Settings,
    apply_presence_penalty,
    apply_repetition_penalty,
)

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at temperature 1.
PROBS = [0.5, 0.25, 0.125, 0.0625, 0.0625]
LOGITS = mx.array([math.log(p) for p in PROBS])


Drawn = Callable[..., list[int]]


@pytest.fixture(scope="module")
def sample(kernels: str) -> Sample:
    return select(kernels).sample


@pytest.fixture
def drawn(sample: Sample) -> Drawn:
    def draw(count: int = 400, **settings: object) -> list[int]:
        sampler = Sampler(Settings(**{"temperature": 1.0, "seed": 7} | settings), [0], sample)
        return [int(sampler.choose(LOGITS).item()) for _ in range(count)]

    return draw


def kept(logits: np.ndarray, settings: Settings) -> dict[int, float]:
    """What may be drawn, and how probably, as the settings' definitions say."""
    probs = np.exp((logits - logits.max()) / settings.temperature)
    order = np.argsort(-logits)[: settings.top_k or None]
    probs = probs[order] / probs[order].sum()
    keep = np.cumsum(probs) - probs < settings.top_p
    keep &= probs >= settings.min_p * probs[0]
    return dict(zip(order[keep].tolist(), (probs[keep] / probs[keep].sum()).tolist(), strict=True))


def test_greedy_takes_the_likeliest(drawn: Drawn):
    assert set(drawn(5, temperature=0)) == {0}


def test_a_tiny_temperature_takes_the_likeliest(sample: Sample):
    likeliest = mx.array([1.0, 30.0, -5.0])
    for settings in (Settings(temperature=1e-40), Settings(temperature=1e-40, top_p=0.9)):
        assert int(Sampler(settings, [0], sample).choose(likeliest).item()) == 1


def test_presence_penalty_lowers_what_was_seen_once():
    lowered = apply_presence_penalty(mx.array([2.0, -2.0, 1.0]), mx.array([0, 1, 0]), 1.5)
    assert lowered.tolist() == [0.5, -3.5, 1.0]


def test_draws_follow_the_probabilities(drawn: Drawn):
    tokens = drawn(4000)
    for token, probability in enumerate(PROBS):
        deviation = math.sqrt(probability * (1 - probability) / 4000)
        assert abs(tokens.count(token) / 4000 - probability) < 5 * deviation


def test_temperature_sharpens(drawn: Drawn):
    # At 0.5 the probabilities are squared: 0.25 of 0.25 + 0.0625 + 0.015625 + 2 * 0.00390625.
    share = drawn(4000, temperature=0.5).count(0) / 4000
    assert abs(share - 0.25 / 0.3359375) < 0.04


@pytest.mark.parametrize(
    ("settings", "left"),
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
def test_cuts_keep_the_right_candidates(drawn: Drawn, settings: dict, left: set[int]):
    assert set(drawn(**settings)) == left


def test_top_p_after_top_k_counts_what_is_left(drawn: Drawn):
    # Of three candidates the shares are 4/7, 2/7, 1/7: two of them reach 0.8.
    assert set(drawn(top_k=3, top_p=0.8)) == {0, 1}


def test_the_same_seed_draws_the_same_tokens(drawn: Drawn):
    assert drawn(50, seed=3) == drawn(50, seed=3)
    assert drawn(50, seed=3) != drawn(50, seed=4)


def test_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = mx.array([2.0, -2.0, 1.0])
    penalized = apply_repetition_penalty(logits, mx.array([0, 1, 0, 1]), 2.0)
    assert penalized.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_penalty_sees_what_was_drawn(sample: Sample):
    sampler = Sampler(Settings(temperature=0, repetition_penalty=4.0), [4], sample)
    logits = mx.array([1.0, 0.9, 0.8, 0.0, 0.0])
    assert [int(sampler.choose(logits).item()) for _ in range(4)] == [0, 1, 2, 0]


def test_processors_change_the_logits(drawn: Drawn):
    def forbid_zero(recent: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.size) == 0, -mx.inf, logits)

    assert set(drawn(20, temperature=0, processors=(forbid_zero,))) == {1}


@pytest.mark.parametrize("place", [0, 3, 20, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
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
def test_logits_that_are_not_finite_give_no_token(
    sample: Sample, settings: dict, bad: float, place: int
):
    logits = [0.0] * 41
    logits[place] = bad
    sampler = Sampler(Settings(seed=0, **settings), [0], sample)
    assert int(sampler.choose(mx.array(logits)).item()) == NOT_FINITE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 10**20),  # more than the kernels can be given
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
    with pytest.raises(ValueError, match=f"{name} must be"):
        Settings(**{name: value})


@pytest.mark.parametrize("size", [5, 1000, 5003])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 20},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.02},
        {"top_p": 0.5, "min_p": 0.3},
        {"temperature": 0.3, "top_k": 400, "top_p": 0.99},
        {"temperature": 2.0, "top_p": 0.999},
    ],
)
def test_draws_are_those_of_numpy(sample: Sample, settings: dict, size: int):
    logits = np.random.default_rng(size).normal(0, 2.5, size).astype(np.float32)
    wishes = Settings(**{"temperature": 1.0} | settings)
    likely = kept(logits.astype(np.float64), wishes)
    array, chance, count = mx.array(logits), random.Random(1), 600
    drawn = [int(sample(array, wishes, chance.getrandbits(64)).item()) for _ in range(count)]
    assert set(drawn) <= set(likely)
    for token in sorted(likely, key=lambda token: -likely[token])[:3]:
        deviation = math.sqrt(likely[token] * (1 - likely[token]) / count)
        assert abs(drawn.count(token) / count - likely[token]) <= 5 * deviation


def test_what_a_mask_forbids_is_never_drawn(sample: Sample):
    allowed = np.random.default_rng(0).random(5000) < 0.01
    for wishes in ({"temperature": 0}, {"temperature": 2.0}, {"top_p": 0.9}, {"top_k": 500}):
        sampler = Sampler(Settings(**{"seed": 1} | wishes), [0], sample)
        for _ in range(50):
            token = sampler.choose(mx.zeros(5000), mx.array(allowed))
            assert allowed[int(token.item())]


def test_a_mask_does_not_hide_what_is_not_finite(sample: Sample):
    logits = mx.array([0.0, math.nan, 1.0])
    token = Sampler(Settings(), [0], sample).choose(logits, mx.array([True, False, True]))
    assert int(token.item()) == NOT_FINITE


def test_the_first_of_equals_is_the_greedy_one(sample: Sample):
    logits = np.zeros(9000, np.float32)
    logits[[4099, 4100, 8999]] = 1.0
    assert int(sample(mx.array(logits), Settings(temperature=0), 0).item()) == 4099
