"""What runs leave behind on this machine, and what `list --speeds` and `fit` make of it."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from conifer_cli import ledger
from conifer_cli.ledger import Run
from conifer_cli.survey import Place
from engine.machine import Machine
from engine.speed import MEASURED, PREDICTED, Bandwidth, Traffic, predict, seconds
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
        "machine": ledger.machine_key(MACHINE),
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
        ledger._append("run", dataclasses.asdict(run))


def test_a_run_is_kept_and_listed_beside_its_prediction(home):
    done = run_unplugged(
        *("run", QWEN, "-p", "word " * 80, "--max-tokens", "20", "--temperature", "0"), home=home
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (run,) = ledger.runs()
    assert run.file == "model.gguf"
    assert run.depth > 64 and run.weights_bytes > 0 and run.kv_bytes > 0
    assert run.decode_per_s is not None and run.prefill_per_s is not None
    assert run.peak_bytes > 50 << 20
    listed = run_unplugged("list", "--speeds", "--json", home=home)
    (shown,) = json.loads(listed.stdout)
    assert (shown["decode_per_s"], shown["runs"]) == (run.decode_per_s, 1)
    assert shown["predicted_decode_per_s"] > 0
    text = run_unplugged("list", "--speeds", home=home).stdout.decode()
    assert "model.gguf" in text and "PREDICTED" in text


def test_what_ran_here_is_measured_and_corrects_the_others(home):
    arguments = ("run", QWEN, "-p", "word", "--max-tokens", "32", "--temperature", "0")
    before = json.loads(run_unplugged("fit", QWEN, "--json", home=home).stdout)
    assert before["speed"]["at_start"]["source"] == "predicted"
    for _ in range(2):
        assert run_unplugged(*arguments, home=home).returncode == 0
    rates = [run.decode_per_s for run in ledger.runs()]
    after = json.loads(run_unplugged("fit", QWEN, "--json", home=home).stdout)["speed"]["at_start"]
    assert after["source"] == "measured"
    assert min(rates) * 0.9 <= after["low"] <= after["per_s"] <= after["high"] <= max(rates) * 1.1


def test_a_measurement_is_carried_to_another_depth():
    shallow, deep = (Traffic(0, 10**8, 0, 0, kv) for kv in (0, 10**8))
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
    found = ledger.ratios(MACHINE, "native", BANDWIDTH)
    assert list(found) == [("a.gguf", 10**9)]
    by_priors = ledger.by_priors(run_of(), BANDWIDTH)
    assert found["a.gguf", 10**9] == pytest.approx([by_priors / 20] * 2)


def test_a_tiny_file_says_nothing_of_others():
    keep(run_of(), run_of("tiny.gguf", size_bytes=300_000, decode_per_s=0.1))
    there = Place(MACHINE, "native", MACHINE)
    assert len(there.ratios) == 2
    by_priors = ledger.by_priors(run_of(), there.bandwidth)
    assert there.telling == pytest.approx([by_priors / 20])


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
    assert ledger.runs() == [run_of()]


def test_a_ledger_stays_small(home, monkeypatch):
    monkeypatch.setattr(ledger, "MAX_BYTES", 10_000)
    keep(*(run_of(depth=depth) for depth in range(100)))
    assert (home / "conifer" / "ledger.jsonl").stat().st_size < 11_000
    assert ledger.runs()[-1].depth == 99
    assert os.listdir(home / "conifer") == ["ledger.jsonl"]


def test_a_home_that_takes_nothing_is_no_failure(home):
    (home / "conifer").write_text("a file, not a folder")
    keep(run_of())
    done = run_unplugged("run", QWEN, "-p", "word", "--max-tokens", "20", home=home)
    assert (done.returncode, done.stderr) == (0, b"")


def test_two_lists_at_once_exit_2(home):
    done = run_unplugged("list", "--catalog", "--speeds", home=home)
    assert done.returncode == 2
    assert run_unplugged("list", "--speeds", home=home).returncode == 0
