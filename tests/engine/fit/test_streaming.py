"""Forecasts of streamed experts, against arithmetic by hand and a cache that is played through."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine import streaming as store
from engine.fit import streaming
from engine.fit.speed import MEASURED, PREDICTED, PRIOR, Rate
from engine.fit.streaming import ASSUMED_DISK, Curve, DiskSpeed, RoutedExperts
from support.benchmarks import header, program

SLOT = 2_700_000  # 2.65 MB in whole pages
QWEN = RoutedExperts(
    *(48, 128, 8, 6144 * 2_650_000), 6144 * SLOT, 8 * 3_000_000 + 2 * 2 * 10**6, 16 * 10**6
)
DISK = DiskSpeed(1.0e9, 0.8e9, 1.2e9, MEASURED)
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
    split = streaming.plan(QWEN, 3_000_000_000, 10_000_000_000, 1_000_000_000)
    assert split.store_bytes == 6_000_000_000
    assert split.cached == (6_000_000_000 - 16_000_000) // SLOT
    assert split.share == split.cached / 6144


def test_the_reserve_gives_way_before_the_verdict_does():
    split = streaming.plan(QWEN, 10**9, 10**9 + QWEN.least_bytes, 10**9)
    assert split is not None and split.cached == (QWEN.least_bytes * 7 // 8) // SLOT
    assert streaming.plan(QWEN, 10**9, 10**9 + QWEN.least_bytes - 1, 0) is None


def test_a_store_is_no_larger_than_all_experts():
    split = streaming.plan(QWEN, 0, 1 << 40, 0)
    assert split.cached == 6144 and split.share == 1
    assert split.store_bytes == QWEN.most_bytes == 6144 * SLOT + 16_000_000


def test_slots_are_counted_as_the_store_counts_them():
    config, tensors = header(program("synthesize").SHAPES["qwen3-30b-a3b"])
    experts = streaming.routed_experts(config, tensors, "native")
    assert experts.size_bytes == pytest.approx(17.5e9, rel=0.03)
    assert experts.most_bytes == store.most_bytes(config, tensors)
    for budget in (0.5e9, 2e9, 7e9, 12e9, 17e9, 30e9):
        split = streaming.plan(experts, 0, int(budget), 0)
        wanted = store.plan_store(config, tensors, split.store_bytes).slots
        assert split.cached == pytest.approx(wanted, abs=2)


def test_a_guess_from_the_catalog_is_no_better_than_the_header():
    config, tensors = header(program("synthesize").SHAPES["qwen3-30b-a3b"])
    known = streaming.routed_experts(config, tensors, "native")
    guess = streaming.guessed_experts(48, 128, 8, known.size_bytes, "native")
    assert known.least_bytes <= guess.least_bytes < 1.5 * known.least_bytes
    for budget in (2 * 10**9, 10**10):
        cached = [streaming.plan(each, 0, budget, 0).cached for each in (guess, known)]
        assert cached[0] <= cached[1] < 1.02 * cached[0]


@pytest.mark.parametrize(
    ("kernels", "device"), [("blocks", "metal"), ("blocks", "cuda"), ("stock", "cpu")]
)
def test_kernels_that_join_experts_count_as_their_store_does(kernels, device):
    config, tensors = header(program("synthesize").SHAPES["qwen3-30b-a3b"])
    experts = streaming.routed_experts(config, tensors, kernels, device)
    facts = kernels, device
    largest = max(store.loaded_sizes(config, tensors, *facts).values())
    assert experts.least_bytes == store.least_bytes(config, tensors, *facts) + 8 * largest
    assert experts.file_bytes == pytest.approx(17.5e9, rel=0.03)
    assert (experts.size_bytes > 1.2 * experts.file_bytes) == (kernels == "stock")
    assert (experts.joins, experts.chunk) == (True, 512)
    for budget in (1e9, 2e9, 7e9, 12e9):
        split = streaming.plan(experts, 0, int(budget), 0)
        _, room = store.divide_bytes(config, tensors, split.store_bytes, *facts)
        mean = experts.size_bytes / experts.total
        assert split.cached == pytest.approx(room / mean, abs=8)
        assert split.missed_bytes(0.0) == pytest.approx(
            48 * 8 * experts.file_bytes / 6144, rel=0.01
        )


def test_joining_costs_a_sync_and_two_copies_for_each_layer_and_is_a_prior():
    config, tensors = header(program("synthesize").SHAPES["qwen3-30b-a3b"])
    joins = streaming.routed_experts(config, tensors, "blocks", "metal")
    rate = streaming.joining(IN_MEMORY, joins, 10**9, 100e9)
    assert 1 / rate.per_s == pytest.approx(1 / 10 + 48 * streaming.HOST_S + 2 * 10**9 / 100e9)
    assert rate.low < rate.per_s < rate.high and rate.source == PRIOR
    native = streaming.routed_experts(config, tensors, "native")
    assert streaming.joining(IN_MEMORY, native, 10**9, 100e9) == IN_MEMORY
    assert streaming.prompt_bytes(joins) == pytest.approx(2 * streaming.prompt_bytes(native))


def test_recorded_distances_are_the_hits_of_a_cache():
    # One layer of 8 chooses 2: it finds half of its choices among the 2 used last, the rest among
    # the 4 used last, and chose 4 for the first time.
    curve = streaming.curve_of_distances((30, 30, 20, 20, 0, 0, 0, 0, 4), 8, 2, layers=1)
    assert curve.source == MEASURED
    # At 3 others and more, no first choice was yet in sight: 100 choices and those 4 that were.
    assert curve.hit_rate(4 / 8) == 1
    assert 0.55 < curve.hit_rate(2 / 8) < 0.60


@pytest.mark.parametrize("tokens", [40, 80, 400])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_few_tokens_of_even_routers_show_that_they_are_even(tokens, share):
    rng = np.random.default_rng(5)
    layers, count = 24, 64
    distances = np.zeros(count + 1, int)
    for _ in range(layers):
        recent = []
        for _ in range(tokens):
            for expert in rng.permutation(count)[:6].tolist():
                distances[recent.index(expert) if expert in recent else count] += 1
                recent = [expert, *(other for other in recent if other != expert)]
    curve = streaming.curve_of_distances(distances.tolist(), count, 6, layers)
    assert curve.hit_rate(share) == pytest.approx(share, abs=0.06)


def test_a_forecast_is_time_in_memory_and_missed_bytes():
    split = streaming.Plan(QWEN, 0, 0, cached=6144 * 4 // 10)
    curve = Curve(((0.0625, 0.45), (0.4, 0.9), (1, 1)), "published")
    found = streaming.forecast(split, IN_MEMORY, curve, DISK, prompt_in_memory_s=20)
    hit = curve.hit_rate(split.share)
    assert hit == pytest.approx(0.9, abs=1e-3)
    read = 48 * 8 * (1 - hit) * 2_650_000  # 102 MB: 0.1 s, as long as in memory
    assert found.read_bytes == int(read)
    assert found.rate.per_s == pytest.approx(1 / (1 / 10 + read / 1e9))
    even = split.share  # what may be true of a model that has not run here
    assert found.rate.low == pytest.approx(1 / (1 / 8 + 48 * 8 * (1 - even) * 2.65e6 / 0.8e9))
    assert found.rate.high == pytest.approx(
        1 / (1 / 12 + 48 * 8 * (1 - hit - 0.03) * 2.65e6 / 1.2e9)
    )
    assert found.prompt_s == pytest.approx(20 + 48 * 128 * 2.65e6 / 1e9)
    assert found.rate.source == PREDICTED


def test_a_curve_measured_here_has_no_worse_and_no_better_one():
    split = streaming.Plan(QWEN, 0, 0, cached=6144 * 4 // 10)
    curve = Curve(((0.0625, 0.45), (0.4, 0.9), (1, 1)), MEASURED)
    rate = streaming.forecast(split, IN_MEMORY, curve, DISK).rate
    missed = 48 * 8 * (1 - curve.hit_rate(split.share)) * 2.65e6
    assert rate.low == pytest.approx(1 / (1 / 8 + missed / 0.8e9))
    assert rate.high == pytest.approx(1 / (1 / 12 + missed / 1.2e9))


def test_all_experts_in_memory_are_as_fast_as_in_memory():
    split = streaming.Plan(QWEN, 0, 0, cached=6144)
    rate = streaming.forecast(split, IN_MEMORY, streaming.published_curve(128, 8), DISK).rate
    assert (rate.per_s, rate.low, rate.high) == (10, 8, 12)


@pytest.mark.parametrize("family", [(128, 8), (64, 6)])
def test_more_memory_never_forecasts_slower(family):
    layers = 48 * family[0]
    experts = RoutedExperts(48, *family, 10**10, layers * 2_000_000, 10**8, 10**8)
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
