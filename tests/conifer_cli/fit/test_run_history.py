"""What runs leave behind on this machine, and what `list --speeds` and `fit` make of it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from pathlib import Path

import pytest

from catalog import resolve
from conifer_cli.acquire import locate
from conifer_cli.commands.list import _speed_row
from conifer_cli.fit import run_history, view
from conifer_cli.fit.predict import Target, bytes_per_token
from conifer_cli.fit.quant_matrix import quant_matrix
from conifer_cli.fit.run_history import Run
from conifer_cli.fit.verdict import FitRequest, judge_disk
from conifer_cli.run_options import RunOptions
from conifer_cli.session.open import open_session
from conifer_cli.terminal.layout import text_of
from engine.fit.machine import Machine
from engine.fit.speed import MEASURED, PREDICTED, Bandwidth, BytesPerToken, predict, seconds
from support.program import MODELS, run_unplugged

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
MACHINE = Machine("test machine", "cpu", 1 << 34, 1 << 34, "available memory")
BANDWIDTH = Bandwidth(1e10, MEASURED)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path / "conifer"))
    return tmp_path


def run_of(file: str = "a.gguf", **changes) -> Run:
    facts = {
        "date": "2026-11-22T10:00:00+00:00",
        "machine": run_history.machine_key(MACHINE),
        "model": "a",
        "file": file,
        "size_bytes": 10**9,
        "kernels": "native",
        "backend": "cpu",
        "kv_type": "f16",
        "layers": 10,
        "depth": 100,
        "weights_bytes": 10**8,
        "kv_bytes": 10**6,
        "decode_per_s": 20.0,
        "prefill_per_s": 100.0,
        "peak_bytes": 10**9,
        "predicted_bytes": 2 * 10**9,
    }
    return Run(**(facts | changes))


def keep(*runs: Run) -> None:
    for run in runs:
        run_history.append("run", dataclasses.asdict(run))


@pytest.fixture
def measured(monkeypatch) -> list[float]:
    """What measuring the memory gives, one after the other; what is left of it was not measured."""
    rates = [5e9, 9e9, 7e9, 8e9]
    monkeypatch.setattr("engine.fit.bandwidth.bandwidth", lambda *_: rates.pop(0))
    return rates


def at(monkeypatch, hour: float) -> None:
    """Set the clock."""
    now = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC) + datetime.timedelta(hours=hour)
    monkeypatch.setattr(run_history, "now", now.isoformat)


@pytest.mark.process
def test_a_run_is_kept_and_listed_beside_its_prediction(home):
    done = run_unplugged(
        *("run", QWEN, "-p", "word " * 80, "--max-tokens", "20", "--temperature", "0"), home=home
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (run,) = run_history.runs()
    assert run.file == "model.gguf"
    assert run.depth > 64 and run.weights_bytes > 0 and run.kv_bytes > 0
    assert run.decode_per_s is not None and run.prefill_per_s is not None
    assert run.peak_bytes > 40 << 20
    listed = run_unplugged("list", "--speeds", "--json", home=home)
    (shown,) = json.loads(listed.stdout)
    assert (shown["decode_per_s"], shown["runs"]) == (run.decode_per_s, 1)
    assert shown["predicted_decode_per_s"] > 0
    text = run_unplugged("list", "--speeds", home=home).stdout.decode()
    assert "model.gguf" in text and "PREDICTED" in text


@pytest.mark.process
def test_what_ran_here_is_measured_and_corrects_the_others(home):
    arguments = ("run", QWEN, "-p", "word", "--max-tokens", "32", "--temperature", "0")
    before = json.loads(run_unplugged("fit", QWEN, "--json", home=home).stdout)
    assert before["speed"]["at_start"]["source"] == "predicted"
    for _ in range(2):
        assert run_unplugged(*arguments, home=home).returncode == 0
    rates = [run.decode_per_s for run in run_history.runs()]
    after = json.loads(run_unplugged("fit", QWEN, "--json", home=home).stdout)["speed"]["at_start"]
    assert after["source"] == "measured"
    assert min(rates) * 0.9 <= after["low"] <= after["per_s"] <= after["high"] <= max(rates) * 1.1


def test_a_measurement_is_carried_to_another_depth():
    shallow, deep = (BytesPerToken(0, 10**8, 0, 0, kv) for kv in (0, 10**8))
    by_priors = seconds(shallow, 10, BANDWIDTH, "cpu", "native")
    rate = predict(shallow, 10, BANDWIDTH, "cpu", "native", own=[2.0, 2.5, 1.5])
    assert (rate.per_s, rate.source) == (pytest.approx(1 / (2 * by_priors)), MEASURED)
    assert (rate.low, rate.high) == pytest.approx((rate.per_s * 0.8, rate.per_s / 0.75))
    there = predict(deep, 10, BANDWIDTH, "cpu", "native", own=[2.0])
    assert there.per_s == pytest.approx(1 / (2 * seconds(deep, 10, BANDWIDTH, "cpu", "native")))
    other = predict(shallow, 10, BANDWIDTH, "cpu", "native", others=[2.0])
    assert (other.per_s, other.source) == (pytest.approx(rate.per_s), PREDICTED)


def test_ratios_are_of_this_machine_and_these_kernels():
    keep(run_of(), run_of(), run_of("b.gguf", kernels="stock"), run_of("c.gguf", machine="other"))
    found = run_history.run_ratios(MACHINE, "native", BANDWIDTH)
    assert list(found) == [("a.gguf", 10**9)]
    by_priors = run_history.by_priors(run_of(), BANDWIDTH)
    assert found["a.gguf", 10**9] == pytest.approx([by_priors / 20] * 2)


@pytest.mark.parametrize("size_bytes", [300_000, 98_362_432, 511 << 20])  # the starter is one
def test_a_file_that_a_cache_may_hold_says_nothing_of_others(size_bytes: int, measured):
    keep(run_of(), run_of("small.gguf", size_bytes=size_bytes, decode_per_s=0.1))
    there = Target(MACHINE, "native", MACHINE)
    assert len(there.ratios) == 2
    by_priors = run_history.by_priors(run_of(), there.bandwidth)
    assert there.median_ratios == pytest.approx([by_priors / 20])


@pytest.mark.parametrize("slowed", [0.05, 1.0, 3.0])
def test_the_rows_of_one_table_can_be_compared(measured, slowed: float):
    report = judge_disk(QWEN, resolve(QWEN), Path(QWEN), FitRequest(), MACHINE)
    sizes = {"Q2_K": report.size_bytes // 2, "Q8_0": 2 * report.size_bytes}
    there = Target(MACHINE, "native", MACHINE)
    moved = bytes_per_token(report, there, FitRequest(), 100)
    facts = {"weights_bytes": moved.weights_bytes, "kv_bytes": moved.kv_bytes, "layers": 2}
    slow = run_of("model.gguf", size_bytes=report.size_bytes, **facts)
    plain = run_history.by_priors(slow, there.bandwidth)
    keep(dataclasses.replace(slow, decode_per_s=slowed * plain))
    rows = quant_matrix(report, there, FitRequest(), sizes)
    for column in zip(*(row.steps for row in rows), strict=True):
        rates = [rate for _, _, rate in column]
        assert [rate.source for rate in rates] == [PREDICTED, MEASURED, PREDICTED]
        assert rates[0].per_s > rates[1].per_s > rates[2].per_s  # by size, and nothing else
    text = text_of(view._matrix(rows, report.verdict))
    assert "\nthis file *  " in text and "\n* measured on this machine; the other" in text
    unmeasured = quant_matrix(dataclasses.replace(report, paths=()), there, FitRequest(), sizes)
    assert "*" not in text_of(view._matrix(unmeasured, report.verdict))


def test_the_best_of_three_measurements_an_hour_apart_counts(measured, monkeypatch):
    seen = []
    for hour in (0, 0.9, 1.1, 1.5, 2.2, 9, 99):
        at(monkeypatch, hour)
        seen.append(run_history.bandwidth_of(MACHINE).bytes_per_s)
    assert seen == [5e9, 5e9, 9e9, 9e9, 9e9, 9e9, 9e9]
    assert measured == [8e9]


def test_a_rate_from_a_buffer_that_a_cache_may_hold_is_not_kept(home, measured, monkeypatch):
    small = dataclasses.replace(MACHINE, budget_bytes=1 << 30)
    at(monkeypatch, 0)
    assert [run_history.bandwidth_of(small).bytes_per_s for _ in range(2)] == [5e9, 9e9]
    assert not (home / "conifer").exists()
    assert run_history.bandwidth_of(MACHINE).bytes_per_s == 7e9
    at(monkeypatch, 2)
    assert run_history.bandwidth_of(small).bytes_per_s == 7e9  # what was kept is better
    assert measured == [8e9]


@pytest.mark.parametrize("date", ["soon", None, "2026-11-22T00:00:00"])
def test_a_measurement_without_a_date_is_no_reason_not_to_measure(date, measured):
    known = {"machine": run_history.machine_key(MACHINE), "bytes_per_s": 6e9, "date": date}
    run_history.append("bandwidth", known)
    assert run_history.bandwidth_of(MACHINE).bytes_per_s == 6e9
    assert measured == [9e9, 7e9, 8e9]


@pytest.mark.parametrize(("budget_bytes", "kept"), [(1 << 34, 1), (40 << 20, 0)])
def test_what_was_forced_to_run_from_the_disk_is_not_kept(budget_bytes: int, kept: int):
    machine = dataclasses.replace(MACHINE, budget_bytes=budget_bytes)
    report = judge_disk("m", resolve(QWEN), Path(QWEN), FitRequest(force=True), machine)
    run_history.record(report, "stock", "f16", 100, 50, decode_per_s=10.0, prefill_per_s=None)
    assert len(run_history.runs()) == kept


def test_an_answer_that_waited_for_the_disk_is_not_kept(monkeypatch):
    faults = iter([7, 7 + 10_000, 10_007, 10_007 + 5])  # before and after each answer
    monkeypatch.setattr(run_history, "disk_faults", lambda: next(faults))
    options = RunOptions(max_tokens=20, temperature=0.0)
    session = open_session(locate(QWEN), options)
    tokens = session.encode([{"role": "user", "content": " ".join(["word"] * 80)}])
    for kept in (0, 1):
        assert list(session.answer(tokens)) and len(run_history.runs()) == kept


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        '{"format": 1, "kind": "run"}',
        json.dumps({"format": 1, "kind": "run"} | dataclasses.asdict(run_of(layers=-1))),
        json.dumps({"format": 1, "kind": "run"} | dataclasses.asdict(run_of(decode_per_s="fast"))),
        json.dumps({"format": 2, "kind": "run"} | dataclasses.asdict(run_of())),
        "\ud800 \u0000",
    ],
)
def test_a_line_that_is_not_ours_is_passed_over(home, line):
    path = home / "conifer" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_bytes(line.encode("utf-8", "surrogatepass") + b"\n")
    keep(run_of())
    assert run_history.runs() == [run_of()]


def test_a_ledger_stays_small(home, monkeypatch):
    monkeypatch.setattr(run_history, "MAX_BYTES", 10_000)
    keep(*(run_of(depth=depth) for depth in range(100)))
    assert (home / "conifer" / "ledger.jsonl").stat().st_size < 11_000
    assert run_history.runs()[-1].depth == 99
    assert os.listdir(home / "conifer") == ["ledger.jsonl"]


def test_a_ledger_is_written_by_its_owner_alone(home):
    before = os.umask(0)
    try:
        keep(run_of())
    finally:
        os.umask(before)
    assert (home / "conifer" / "ledger.jsonl").stat().st_mode & 0o777 == 0o644


@pytest.mark.process
def test_a_home_that_takes_nothing_is_no_failure(home):
    (home / "conifer").write_text("a file, not a folder")
    keep(run_of())
    greedy = ("--max-tokens", "20", "--temperature", "0")
    done = run_unplugged("run", QWEN, "-p", "word", *greedy, home=home)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.process
def test_two_lists_at_once_exit_2(home):
    done = run_unplugged("list", "--catalog", "--speeds", home=home)
    assert done.returncode == 2
    assert run_unplugged("list", "--speeds", home=home).returncode == 0


def test_rates_have_one_form():
    rates = {"decode_per_s": 33.254, "predicted_decode_per_s": None, "prefill_per_s": 17298.0}
    named = {"model": "m", "kernels": "native", "kv_type": "f16", "runs": 1, "last": ""}
    row = _speed_row({**named, **rates, "peak_bytes": 1, "predicted_peak_bytes": 2})
    assert row[3:6] == ("33.3", "-", "17,298.0")
