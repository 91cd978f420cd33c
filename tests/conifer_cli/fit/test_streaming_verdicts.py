"""The verdict "streams" over the catalog and machines, and how it is forecast."""

from __future__ import annotations

import itertools
import json

import pytest

from catalog import entries
from conifer_cli.fit import run_history
from conifer_cli.fit.alternatives import estimate_of
from conifer_cli.fit.predict import Target
from conifer_cli.fit.streaming import forecast as forecasts
from conifer_cli.fit.streaming import records
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.serve.host import plan_lanes
from engine.fit import disk as disk_probe
from engine.fit.estimate import estimate_bytes_per_token, estimated_experts, judge_estimate
from engine.fit.machine import GIVEN, Machine, limited
from engine.fit.speed import MEASURED, PREDICTED, Bandwidth, Rate, seconds
from engine.fit.streaming import (
    ASSUMED_DISK,
    Curve,
    DiskSpeed,
    Forecast,
    Plan,
    RoutedExperts,
    forecast,
    published_curve,
)
from engine.generate import Stats
from engine.streaming import StoreStats

GB = 10**9
ORDER = ["too_large", "streams", "tight", "fits"]
BUDGETS = [GB * size for size in (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)]
KNOWN = [entry for entry in entries().values() if estimate_of(entry, entry.file())]
MIXTURES = [entry for entry in KNOWN if entry.experts and entry.parts]
MACHINE = Machine("test machine", "cpu", 16 * GB, 16 * GB, "available memory")
EXPERTS = RoutedExperts(48, 128, 8, 6144 * 2_650_000, 6144 * 2_700_000, 10**8, 10**8)


def machine(budget: int) -> Machine:
    return Machine("made up", "cpu", budget, budget, "available memory")


def verdicts(entry):
    estimate = estimate_of(entry, entry.file())
    context = min(8192, entry.context or 8192)
    for budget in BUDGETS:
        yield judge_estimate(estimate, machine(budget), context, kernels="native")


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.id)
def test_more_memory_never_has_a_worse_verdict(entry):
    kinds = [ORDER.index(verdict.kind) for verdict in verdicts(entry)]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.id)
def test_only_what_is_too_large_streams_and_only_if_the_rest_fits(entry):
    for verdict in verdicts(entry):
        assert (verdict.plan is not None) == (verdict.kind == "streams")
        if verdict.plan is None:
            continue
        plan = verdict.plan
        assert entry.experts
        assert verdict.need.total_bytes > verdict.budget_bytes
        assert plan.resident_bytes + plan.store_bytes <= verdict.budget_bytes
        assert plan.experts.least_bytes <= plan.store_bytes <= plan.experts.most_bytes
        assert 0 < plan.cached <= plan.experts.total


def test_most_mixtures_stream_somewhere():
    kinds = {entry.id: {verdict.kind for verdict in verdicts(entry)} for entry in MIXTURES}
    assert sum("streams" in found for found in kinds.values()) > 0.9 * len(kinds)
    dense = [entry for entry in KNOWN if not entry.experts]
    assert not any(verdict.kind == "streams" for entry in dense for verdict in verdicts(entry))


@pytest.mark.parametrize("entry", MIXTURES, ids=lambda entry: entry.id)
def test_more_memory_never_forecasts_slower(entry):
    estimate, bandwidth = estimate_of(entry, entry.file()), Bandwidth(16e9, MEASURED)
    moved = estimate_bytes_per_token(estimate, "cpu", "native", 0, "f16")
    per_s = 1 / seconds(moved, estimate.layers or 48, bandwidth, "cpu", "native")
    plain = Rate(per_s, 0.8 * per_s, 1.2 * per_s, PREDICTED)
    rates = []
    for verdict in verdicts(entry):
        if verdict.plan:
            experts = verdict.plan.experts
            curve = published_curve(experts.count, experts.used)
            disk = DiskSpeed(1e9, 0.8e9, 1.25e9, MEASURED)
            rates.append(forecast(verdict.plan, plain, curve, disk).rate.per_s)
        elif verdict.kind != "too_large":
            rates.append(plain.per_s)
    assert all(a <= b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("backend", "kernels"), [("cpu", "stock"), ("metal", "auto"), ("cuda", "auto")]
)
def test_macs_cards_and_stock_kernels_stream_too(backend, kernels):
    estimate = estimate_of(entries()["qwen3-30b-a3b"], entries()["qwen3-30b-a3b"].file())
    some = Machine("made up", backend, 16 * GB, 10 * GB, "available memory")
    verdict = judge_estimate(estimate, some, 8192, kernels=kernels)
    assert verdict.kind == "streams" and verdict.plan.experts.joins
    assert verdict.plan.resident_bytes + verdict.plan.store_bytes <= 10 * GB
    assert 0 < verdict.plan.cached < 6144
    little = Machine("made up", backend, 3 * GB, 2 * GB, "available memory")
    assert judge_estimate(estimate, little, 8192, kernels=kernels).kind == "too_large"
    assert not estimated_experts(estimate, "cpu", "native").joins


def test_a_given_budget_is_a_limit_without_a_reserve():
    estimate = estimate_of(entries()["qwen3-30b-a3b"], entries()["qwen3-30b-a3b"].file())
    given = limited(machine(64 * GB), 10 * GB)
    assert (given.budget_bytes, given.limited_by) == (10 * GB, GIVEN)
    assert limited(machine(8 * GB), 10 * GB) == machine(8 * GB)
    plans = [
        judge_estimate(estimate, each, 8192, kernels="native").plan
        for each in (given, machine(10 * GB))
    ]
    assert plans[0].store_bytes - plans[1].store_bytes == 512 << 20
    assert plans[0].resident_bytes + plans[0].store_bytes == 10 * GB


def test_without_c_a_model_that_streams_has_a_context_of_8192():
    estimate = estimate_of(entries()["qwen3-30b-a3b"], entries()["qwen3-30b-a3b"].file())
    verdict = judge_estimate(estimate, machine(10 * GB), kernels="native")
    assert (verdict.kind, verdict.context) == ("streams", 8192)
    assert verdict.largest_context > 8192
    assert judge_estimate(estimate, machine(10 * GB), 16_384, kernels="native").context == 16_384


@pytest.mark.parametrize(
    ("kind", "options", "may_run"),
    [
        ("fits", {}, True),
        ("tight", {}, True),
        ("streams", {}, False),
        ("streams", {"stream": True}, True),
        ("streams", {"budget_bytes": GB}, True),
        ("streams", {"force": True}, True),
        ("too_large", {"stream": True}, False),
        ("too_large", {"budget_bytes": GB}, False),
        ("too_large", {"force": True}, True),
    ],
)
def test_what_may_run_depends_on_what_was_asked(kind, options, may_run):
    assert FitRequest(**options).accepts(kind) is may_run


# The ledger


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path / "conifer"))
    return tmp_path


class Models:
    """A store that holds these files."""

    def __init__(self, folder, *paths):
        self.hub_cache, self.paths = folder / "hub", paths

    def installed(self):
        return [self] if self.paths else []


def report_of(path=None, size_bytes=17 * GB) -> FitReport:
    estimate = estimate_of(entries()["qwen3-30b-a3b"], entries()["qwen3-30b-a3b"].file())
    verdict = judge_estimate(estimate, MACHINE, 8192, kernels="native")
    paths = (path,) if path else ()
    return FitReport("qwen3-30b-a3b", entries()["qwen3-30b-a3b"], verdict, size_bytes, paths=paths)


def test_the_disk_is_measured_on_the_models_file_and_kept(home, monkeypatch):
    path = home / "model.gguf"
    path.write_bytes(bytes(4 << 20))
    asked = []

    def measure(path, read_bytes, on_read):
        asked.append((path, read_bytes))
        return 1e9

    monkeypatch.setattr(disk_probe, "random_read_rate", measure)
    for _ in range(2):
        found = records.disk_of(MACHINE, report_of(path), EXPERTS, Models(home), True)
    assert asked == [(path, 883_334)]  # a third of an expert; the second time it is known
    assert found == DiskSpeed(1e9, 1e9 / 1.25, 1.25e9, MEASURED)


def test_one_question_measures_the_disk_once(home, monkeypatch):
    asked = []
    monkeypatch.setattr(records, "disk_of", lambda *_: asked.append(1) or ASSUMED_DISK)
    monkeypatch.setattr(forecasts, "speed", lambda *_: Rate(9.0, 8.0, 10.0, PREDICTED))
    report, target = report_of(), Target(MACHINE, "native", MACHINE)
    of = forecasts.forecaster(report, target, FitRequest(), Models(home), True)
    assert of(report.verdict.plan, None, False) and of(report.verdict.plan, None, True)
    assert asked == [1]


def test_nothing_is_measured_without_leave(home):
    assert records.disk_of(MACHINE, report_of(), EXPERTS, Models(home), False) == ASSUMED_DISK


def test_before_a_download_a_large_file_or_a_temporary_one_is_read(home, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(disk_probe, "TEMPORARY_BYTES", 1 << 20)
    monkeypatch.setattr(
        disk_probe, "random_read_rate", lambda path, *_, **__: used.append(path) or 1e9
    )
    monkeypatch.setattr(
        disk_probe, "temporary_read_rate", lambda path, *_, **__: used.append(path) or 2e9
    )
    (home / "hub").mkdir()
    records.disk_of(MACHINE, report_of(), EXPERTS, Models(home), True)
    assert used == [home / "hub"]
    assert "with a temporary file of 1 GB" in capsys.readouterr().err
    (home / "conifer" / "ledger.jsonl").unlink()
    other = home / "other.gguf"
    other.write_bytes(bytes(2 << 20))
    records.disk_of(MACHINE, report_of(), EXPERTS, Models(home, other), True)
    assert used[1:] == [other]


def test_a_disk_that_cannot_be_read_is_assumed(home, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_probe, "random_read_rate", fail)
    path = home / "model.gguf"
    path.write_bytes(b"x")
    assert records.disk_of(MACHINE, report_of(path), EXPERTS, Models(home), True) == ASSUMED_DISK


def test_the_last_three_rates_count_and_others_disks_do_not(home):
    path = home / "model.gguf"
    path.write_bytes(b"x")
    key, device = run_history.machine_key(MACHINE), records._device(path)
    for rate in (9e9, 1e9, 2e9, 1.5e9):
        run_history.append("disk", records._rate(key, device, 883_334, rate))
    run_history.append("disk", records._rate(key, "9:9", 883_334, 7e9))
    run_history.append("disk", records._rate(key, device, 20_000, 7e9))
    found = records.disk_of(MACHINE, report_of(path), EXPERTS, Models(home), True)
    assert (found.bytes_per_s, found.low, found.high) == (1.5e9, 1e9 / 1.25, 1.25 * 2e9)


def streamed_report(path) -> FitReport:
    plain = Rate(10.0, 8.0, 12.0, PREDICTED)
    plan = Plan(EXPERTS, 0, 7 * GB, 2500)
    curve = published_curve(128, 8)
    found = Forecast(plan, 0.9, curve, 10**8, ASSUMED_DISK, plain, plain, None)
    report = report_of(path)
    return FitReport(
        **{name: getattr(report, name) for name in ("name", "entry", "verdict", "size_bytes")},
        paths=report.paths,
        streaming=found,
    )


def test_an_answer_corrects_the_disk_and_the_curve(home):
    path = home / "model.gguf"
    path.write_bytes(b"x")
    distances = [0] * 129
    distances[3], distances[60], distances[128] = 60_000, 20_000, 48 * 128
    before = StoreStats(distances=(0,) * 129)
    after = StoreStats(
        bytes_read=12 * GB, prompt_bytes_read=2 * GB, wait_s=10.0, distances=tuple(distances)
    )
    # 101 tokens in 20 s, of which 10 s were waited for 10 GB.
    stats = Stats(decoded_tokens=101, decode_s=20.0)
    records.keep_stream(streamed_report(path), before, after, stats, "native", "f16")
    found = records.disk_of(MACHINE, report_of(path), EXPERTS, Models(home), False)
    assert found.bytes_per_s == 1e9
    curve = records.curve_of(report_of(path), EXPERTS)
    assert curve.source == MEASURED
    assert curve.hit_rate(0.3) == pytest.approx(60 / 86, abs=0.02)
    assert curve.hit_rate(0.6) > 0.95


def test_a_short_answer_corrects_nothing(home):
    path = home / "model.gguf"
    path.write_bytes(b"x")
    after = StoreStats(bytes_read=10**6, distances=(5, *[0] * 128))
    stats = Stats(decoded_tokens=3, decode_s=1.0)
    records.keep_stream(streamed_report(path), StoreStats(), after, stats, "native", "f16")
    assert not (home / "conifer" / "ledger.jsonl").exists()


def test_another_quantisation_of_a_model_has_the_same_curve(home):
    mine, other = home / "a-Q4_K_M.gguf", home / "a-Q8_0.gguf"
    for path in (mine, other):
        path.write_bytes(b"x")
    curve = Curve(((0.1, 0.5), (1.0, 1.0)), MEASURED)
    records.keep_routes(report_of(mine), EXPERTS, curve, 10**6)
    assert records.curve_of(report_of(other, 30 * GB), EXPERTS).hit_rate(0.1) == 0.5
    few = RoutedExperts(*(48, 64, 6), GB, GB, GB, GB)
    assert records.curve_of(report_of(mine), few).source != MEASURED


@pytest.mark.parametrize("points", [[], [[0.5]], [[0.5, 1.5]], [[-1, 0.5]], [["a", 1]]])
def test_a_curve_that_is_none_is_passed_over(points, home):
    facts = {"model": "qwen3-30b-a3b", "file": "a", "size_bytes": 1, "experts": 128, "used": 8}
    run_history.append("routes", {**facts, "points": points, "chosen": 10**6})
    assert records.curve_of(report_of(), EXPERTS).source != MEASURED
    lines = (home / "conifer" / "ledger.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["kind"] == "routes"


# What a server divides further


def served(memory_bytes, parallel):
    made = Machine("made up", "cpu", memory_bytes, memory_bytes, GIVEN)
    estimate = estimate_of(entries()["qwen3-30b-a3b"], entries()["qwen3-30b-a3b"].file())
    verdict = judge_estimate(estimate, made, 8192, kernels="native")
    assert verdict.plan is not None
    plain = Rate(10.0, 8.0, 12.0, PREDICTED)
    found = forecast(verdict.plan, plain, published_curve(128, 8), ASSUMED_DISK, 20.0)
    report = FitReport("qwen3-30b-a3b", None, verdict, 17 * GB, streaming=found)
    return verdict, found, plan_lanes(report, parallel)


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("memory_bytes", [4 * GB, 10 * GB, 17 * GB])
def test_caches_and_prefixes_take_the_place_of_experts(memory_bytes, parallel):
    verdict, found, lanes = served(memory_bytes, parallel)
    plan, kv_bytes = lanes.streaming.plan, verdict.need.kv_bytes
    needed = lanes.need_bytes + lanes.prefix_bytes
    assert needed == plan.resident_bytes + plan.store_bytes <= memory_bytes
    taken = plan.resident_bytes - found.plan.resident_bytes
    more = 1.02 * (lanes.lanes - 1) * kv_bytes
    assert taken == pytest.approx(more + lanes.prefix_bytes, abs=2)
    assert 0 < lanes.prefix_bytes <= kv_bytes
    assert plan.cached < found.plan.cached
    assert lanes.streaming.rate.per_s <= found.rate.per_s
    assert lanes.streaming.prompt_s == pytest.approx(found.prompt_s)


def test_no_more_answers_run_at_once_than_leave_room_for_experts():
    *_, all_four = served(10 * GB, 4)
    *_, fewer = served(4 * GB, 4)
    assert all_four.lanes == 4
    assert 1 <= fewer.lanes < 4
    assert fewer.streaming.plan.store_bytes >= fewer.streaming.plan.experts.least_bytes
