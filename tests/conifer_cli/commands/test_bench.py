"""`conifer bench`: a table for people, one line of JSON at the end, and figures that agree."""

from __future__ import annotations

import json

import pytest

from conifer_cli import app, errors
from conifer_cli.commands import bench
from engine import benchmark
from engine.fit.bandwidth import read_rates
from engine.fit.speed import bytes_per_token
from engine.gguf.reader import open_model
from engine.kernels.sizes import resident_bytes
from engine.model import load
from support.program import MODELS, run_unplugged

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
SMALL = ("--prompt", "3,8", "--depth", "0,5", "--tokens", "4")


def run_bench(*arguments, home):
    return run_unplugged("bench", QWEN, *arguments, home=home)


@pytest.mark.process
def test_the_last_line_is_the_whole_as_json(tmp_path):
    done = run_bench(*SMALL, home=tmp_path)
    *table, last = done.stdout.decode().splitlines()
    document = json.loads(last)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [row["tokens"] for row in document["prefill"]] == [3, 8]
    assert [(row["depth"], row["tokens"]) for row in document["decode"]] == [(0, 4), (5, 4)]
    assert document["kernels"] in ("native", "stock")
    assert (document["isa"] is None) == (document["kernels"] == "stock")
    assert document["threads"] >= 1 and document["peak_memory_bytes"] > 10**6
    labels = [line.partition("  ")[0] for line in table]
    for label in ("prefill 3", "prefill 8", "decode at 0", "decode at 5"):
        assert label in labels


@pytest.mark.process
def test_every_median_lies_within_its_five_runs(tmp_path):
    document = json.loads(run_bench(*SMALL, "--json", home=tmp_path).stdout)
    for row in document["prefill"] + document["decode"]:
        per_s, runs = row["per_s"], row["runs"]
        assert len(runs) == 5 and min(runs) > 0
        assert (per_s["low"], per_s["median"], per_s["high"]) == (
            min(runs),
            sorted(runs)[2],
            max(runs),
        )


@pytest.mark.process
def test_the_share_of_the_bandwidth_follows_from_the_other_figures(tmp_path):
    document = json.loads(run_bench(*SMALL, "--json", home=tmp_path).stdout)
    for row in document["decode"]:
        share = row["moved_bytes"] * row["per_s"]["median"] / row["read_bytes_per_s"]["median"]
        assert row["bandwidth_share"] == pytest.approx(share, abs=1e-4)


@pytest.mark.process
def test_json_alone_is_one_line(tmp_path):
    done = run_bench(*SMALL, "--json", home=tmp_path)
    assert done.stdout.count(b"\n") == 1 and done.stdout.endswith(b"}\n")


@pytest.mark.process
def test_a_usual_depth_beyond_the_context_is_left_out(tmp_path):
    document = json.loads(
        run_bench("--prompt", "3", "--tokens", "2", "--json", home=tmp_path).stdout
    )
    assert [row["depth"] for row in document["decode"]] == [0]  # the model has 2,048 tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--depth", "4k"), "2,048 tokens"),
        (("--prompt", "2048"), "2,048 tokens"),
        (("--prompt", "8", "--depth", "0", "--tokens", "2047"), "2,048 tokens"),
        (("--repeat", "4"), "5 to 1,000"),
        (("--tokens", "0"), "1 to 16,777,216"),
        (("--prompt", "0"), "--prompt"),
        (("--prompt", "128,"), "--prompt"),
        (("--depth", "-1"), "--depth"),
        (("--depth", ""), "--depth"),
    ],
)
def test_what_cannot_be_measured_exits_2(capsys, arguments, said):
    code = app._outcome(["bench", QWEN, *arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (errors.USAGE, "")
    assert said in captured.err


def test_the_lengths_are_read_in_rising_order(capsys):
    from conifer_cli.options import parse_depths, parse_prompts

    assert parse_prompts("1k, 128,128").tokens == (128, 1024)
    assert parse_depths("4k,0").tokens == (0, 4096)


def test_spread_is_the_median_the_lowest_and_the_highest():
    assert bench.spread([3.0, 1.0, 2.0]) == {
        "per_s": {"median": 2.0, "low": 1.0, "high": 3.0},
        "runs": [3.0, 1.0, 2.0],
    }


def test_a_token_moves_what_it_uses_and_the_cache():
    model, tensors = load(QWEN, "stock"), open_model(MODELS / "qwen3moe" / "model.gguf").tensors
    config = model.config
    share = config.experts.used / config.experts.count
    expected = 0.0
    for name, info in tensors.items():
        size_bytes = resident_bytes(info, "cpu", "stock")
        if name == "token_embd.weight" and "output.weight" in tensors:
            size_bytes /= config.vocab
        expected += size_bytes * share if "_exps" in name else size_bytes
    at_0 = bytes_per_token(config, tensors, "cpu", "stock", 0, "f16").total_bytes
    assert at_0 == pytest.approx(expected, abs=4)
    per_token = 2 * 2 * config.layers * config.kv_heads[0] * config.key_dim
    at_10 = bytes_per_token(config, tensors, "cpu", "stock", 10, "f16").total_bytes
    assert at_10 == at_0 + 10 * per_token


def test_a_measured_answer_goes_on_past_its_end():
    model = load(QWEN, "stock")
    model.tokenizer.eog_ids = frozenset(range(model.config.vocab))  # whatever comes ends it
    rates = [run.per_s for run in benchmark.decode_runs(model, 0, 3, 2, "f16")]
    assert len(rates) == 2 and min(rates) > 0


def test_a_plain_read_reads_at_some_rate():
    rates = list(read_rates(1 << 20, 3, "cpu"))
    assert len(rates) == 3 and min(rates) > 0
