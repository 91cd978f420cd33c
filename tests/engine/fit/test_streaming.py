"""Forecasts of streamed experts, against arithmetic by hand and a cache that is played through."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.fit import streaming
from engine.fit.speed import MEASURED, PREDICTED, PRIOR, Rate
from engine.fit.streaming import ASSUMED_DISK, Curve, Disk, RoutedExperts

QWEN = RoutedExperts(48, 128, 8, 48 * 128 * 2_650_000, 2_900_000)
DISK = Disk(1.0e9, 0.8e9, 1.2e9, MEASURED)
IN_MEMORY = Rate(10.0, 8.0, 12.0, PREDICTED)


def test_the_published_repeats_are_a_fifth_of_the_experts():
    shares = streaming.working_set({1: 0.45, 8: 0.80}, 128, 8)
    assert shares[1] == 8 / 128
    # 8 x (1 + 0.55 + 0.433 + 0.365 + 0.317 + 0.279 + 0.248 + 0.222) = 27.3 of 128
    assert shares[8] == pytest.approx(0.213, abs=0.001)


def test_a_curve_holds_its_points_and_nothing_below_a_tokens_experts():
    curve = streaming.published_curve(128, 8)
    assert [curve.hit_rate(share) for share in (0.0625, 0.213, 0.4, 1.0)] == [0.45, 0.8, 0.9, 1.0]
    assert curve.hit_rate(0.0624) == 0
    assert curve.hit_rate((0.0625 + 0.213) / 2) == pytest.approx(0.625)
    assert "Qwen3-30B-A3B" in curve.source


def test_a_family_without_routes_is_taken_for_even():
    curve = streaming.published_curve(64, 6)
    assert curve.source == streaming.EVEN
    assert curve.hit_rate(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("family", [*streaming.PUBLISHED, (64, 6), (8, 2), (32, 4)])
def test_more_experts_in_memory_never_hit_less_and_never_below_even(family):
    curve, even = streaming.published_curve(*family), streaming.even_curve(*family)
    shares = np.linspace(0, 1, 400)
    hits = [curve.hit_rate(share) for share in shares]
    assert all(a <= b for a, b in itertools.pairwise(hits))
    assert all(hit >= even.hit_rate(share) for hit, share in zip(hits, shares, strict=True))
    assert hits[-1] == 1


def played(chosen: np.ndarray, slots: int) -> float:
    """The hit rate of a cache of the experts used last: chosen is (tokens, layers, used)."""
    cache: dict[tuple[int, int], None] = {}
    hits = total = 0
    for token, layers in enumerate(chosen):
        for layer, ids in enumerate(layers):
            for expert in ids:
                key = (layer, int(expert))
                found = key in cache
                cache.pop(key, None)
                cache[key] = None
                if len(cache) > slots:
                    del cache[next(iter(cache))]
                if token >= len(chosen) // 4:
                    hits, total = hits + found, total + 1
    return hits / total


def repeating(tokens: int, layers: int, stay: float) -> np.ndarray:
    """Choices of 8 of 64, of which each stays with a probability."""
    rng = np.random.default_rng(3)
    chosen = np.zeros((tokens, layers, 8), int)
    for layer in range(layers):
        now = rng.permutation(64)[:8]
        for token in range(tokens):
            others = rng.permutation(np.setdiff1d(np.arange(64), now))
            moved = rng.random(8) > stay
            now = np.where(moved, others[:8], now)
            chosen[token, layer] = now
    return chosen


@pytest.mark.parametrize("stay", [0.3, 0.7])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.75])
def test_distances_in_tokens_predict_the_hits_of_a_cache(stay, share):
    chosen = repeating(300, 3, stay)
    last: dict[tuple[int, int], int] = {}
    gaps = []
    for token, layers in enumerate(chosen):
        for layer, ids in enumerate(layers):
            for expert in ids:
                gaps.append(token - last.get((layer, int(expert)), -10_000))
                last[layer, int(expert)] = token
    within = {n: float(np.mean(np.array(gaps) <= n)) for n in (1, 2, 4, 8, 16, 32, 64)}
    curve = streaming.curve_of_reuse(within, 64, 8, MEASURED)
    wanted = played(chosen, int(share * 3 * 64))
    assert curve.hit_rate(share) == pytest.approx(wanted, abs=0.05)


def test_a_budget_is_split_into_what_stays_and_slots():
    slot = 2_900_000 + 6 * 4096
    assert QWEN.slot_bytes == slot
    split = streaming.plan(QWEN, 3_000_000_000, 10_000_000_000, 1_000_000_000)
    assert split.store_bytes == 6_000_000_000
    assert split.cached == 6_000_000_000 // slot - 16
    assert split.share == split.cached / 6144


def test_the_reserve_gives_way_before_the_verdict_does():
    least = streaming.least_store_bytes(QWEN)
    split = streaming.plan(QWEN, 10**9, 10**9 + least, 10**9)
    assert split is not None and split.cached == 8
    assert streaming.plan(QWEN, 10**9, 10**9 + least - 1, 0) is None


def test_a_store_is_no_larger_than_all_experts():
    split = streaming.plan(QWEN, 0, 1 << 40, 0)
    assert split.cached == 6144 and split.share == 1
    assert split.store_bytes == (6144 + 16) * QWEN.slot_bytes


def test_a_forecast_is_time_in_memory_and_missed_bytes():
    split = streaming.Plan(QWEN, 0, 0, cached=6144 * 4 // 10)
    curve = Curve(((0.0625, 0.45), (0.4, 0.9), (1, 1)), "published")
    found = streaming.forecast(split, IN_MEMORY, curve, DISK, prompt_in_memory_s=20)
    hit = curve.hit_rate(split.share)
    assert hit == pytest.approx(0.9, abs=1e-3)
    read = 48 * 8 * (1 - hit) * 2_650_000  # 102 MB: 0.1 s, as long as in memory
    assert found.read_bytes == int(read)
    assert found.rate.per_s == pytest.approx(1 / (1 / 10 + read / 1e9))
    assert found.rate.low == pytest.approx(1 / (1 / 8 + 48 * 8 * (1 - hit + 0.03) * 2.65e6 / 0.8e9))
    assert found.rate.high == pytest.approx(
        1 / (1 / 12 + 48 * 8 * (1 - hit - 0.03) * 2.65e6 / 1.2e9)
    )
    assert found.prompt_s == pytest.approx(20 + 48 * 128 * 2.65e6 / 1e9)
    assert found.rate.source == PREDICTED


def test_all_experts_in_memory_are_as_fast_as_in_memory():
    split = streaming.Plan(QWEN, 0, 0, cached=6144)
    rate = streaming.forecast(split, IN_MEMORY, streaming.published_curve(128, 8), DISK).rate
    assert (rate.per_s, rate.low, rate.high) == (10, 8, 12)


@pytest.mark.parametrize("family", [(128, 8), (64, 6)])
def test_more_memory_never_forecasts_slower(family):
    experts = RoutedExperts(48, *family, 10**10, 2_900_000)
    curve = streaming.published_curve(*family)
    before = 0.0
    for budget in range(2 * 10**9, 30 * 10**9, 10**8):
        split = streaming.plan(experts, 2 * 10**9, budget, 10**9)
        if split is None:
            assert before == 0
            continue
        rate = streaming.forecast(split, IN_MEMORY, curve, DISK).rate
        assert rate.low <= rate.per_s <= rate.high
        assert rate.per_s >= before
        before = rate.per_s


def test_an_assumed_disk_makes_a_prior_with_a_wide_range():
    split = streaming.plan(QWEN, 10**9, 5 * 10**9, 0)
    rate = streaming.forecast(
        split, IN_MEMORY, streaming.published_curve(128, 8), ASSUMED_DISK
    ).rate
    assert rate.source == PRIOR
    assert rate.high > 1.5 * rate.low


@pytest.mark.parametrize(
    ("per_s", "said"),
    [
        (4.1, "about 4.1 tokens/s; 200 words take a minute"),
        (0.07, "about 0.07 tokens/s; 200 words take 63 minutes"),
        (0.02, "about 0.02 tokens/s; 200 words take 4 hours"),
        (13.3, "about 13 tokens/s; 200 words take 20 seconds"),
    ],
)
def test_a_rate_is_a_sentence_about_text(per_s, said):
    assert streaming.sentence(per_s) == said
