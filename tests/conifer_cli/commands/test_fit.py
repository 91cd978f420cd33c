"""`conifer fit`: one arithmetic, for a person and as JSON, with an exit code for a script."""

from __future__ import annotations

import json
import re

import pytest

from engine.fit.speed import DECODE_COSTS
from support.program import MODELS, run_conifer, run_unplugged

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


def document(*arguments, home, memory_bytes=16 << 30):
    done = run_unplugged("fit", *arguments, "--json", home=home, memory_bytes=memory_bytes)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("memory_bytes", "kind", "code"),
    [(4 << 30, "fits", 0), (500 << 20, "tight", 0), (40 << 20, "too_large", 4)],
)
def test_a_local_file_is_judged_by_its_header(tmp_path, memory_bytes, kind, code):
    got, fit = document(QWEN, home=tmp_path, memory_bytes=memory_bytes)
    assert (got, fit["verdict"], fit["estimated"]) == (code, kind, False)
    parts = fit["need_bytes"]
    assert parts["total"] == sum(parts[name] for name in ("weights", "kv", "buffers", "program"))
    assert fit["machine"]["budget_bytes"] == memory_bytes


def test_kv_grows_with_context_and_shrinks_with_q8(tmp_path):
    kv = {
        name: document(QWEN, *more, home=tmp_path)[1]["need_bytes"]["kv"]
        for name, more in {
            "1k": ("-c", "1k"),
            "2k": ("-c", "2k"),
            "2k f32": ("-c", "2k", "--kv-type", "f32"),
            "2k q8": ("-c", "2k", "--kv-type", "q8"),
        }.items()
    }
    assert kv["2k"] == 2 * kv["1k"]
    assert kv["2k f32"] == 2 * kv["2k"]
    assert kv["2k q8"] < kv["2k"]


def test_a_verdict_is_a_labelled_table_in_both_units(tmp_path):
    done = run_unplugged("fit", QWEN, home=tmp_path)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for label in ("weights", "KV cache", "buffers", "program", "total", "reserve", "budget"):
        assert f"\n{label} " in text
    assert "GB" in text and "GiB" in text
    assert "verdict: fits" in text and "largest that fits: 2,048" in text


def test_a_catalog_size_over_the_budget_is_an_estimate_and_exits_4(tmp_path):
    done = run_unplugged("fit", "qwen3-30b-a3b:Q4_K_M", home=tmp_path, memory_bytes=1 << 30)
    assert done.returncode == 4
    assert b"verdict: too large (estimated)" in done.stdout


def test_a_verdict_that_needs_an_unreachable_hub_exits_5(tmp_path):
    done = run_conifer("fit", "hf:org/repo", home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")


def test_the_catalog_is_judged_as_a_whole(tmp_path):
    code, fit = document(home=tmp_path, memory_bytes=16 << 30)
    verdicts = {model["id"]: model["verdict"] for model in fit["models"]}
    assert (code, fit["estimated"]) == (0, True)
    assert verdicts["smollm2-135m"] == "fits"
    assert verdicts["qwen3-coder-next"] == "streams"
    assert verdicts["llama-3.3-70b"] == "too_large"
    chosen = {model["id"]: model["quant"] for model in fit["models"]}
    assert (chosen["qwen3-30b-a3b"], verdicts["qwen3-30b-a3b"]) == ("Q2_K", "fits")
    assert (chosen["smollm2-135m"], chosen["qwen3.5-35b-a3b"]) == ("Q4_1", "Q4_K_M")


def test_a_larger_machine_never_fits_less(tmp_path):
    order = ["too_large", "streams", "tight", "fits", None]
    before: dict[str, int] = {}
    for gib in (2, 8, 24, 64, 512):
        _, fit = document(home=tmp_path, memory_bytes=gib << 30)
        now = {model["id"]: order.index(model["verdict"]) for model in fit["models"]}
        assert all(now[name] >= before.get(name, 0) for name in now)
        before = now


def test_the_table_says_that_it_is_estimated(tmp_path):
    done = run_unplugged("fit", home=tmp_path)
    assert done.returncode == 0
    assert b"fits ~" in done.stdout and b"\n~ estimated from the file size" in done.stdout
    assert b"\nqwen3-30b-a3b " in done.stdout


def test_a_bar_shows_the_need_within_the_budget_or_the_budget_within_the_need(tmp_path):
    roomy = run_unplugged("fit", QWEN, home=tmp_path, memory_bytes=1 << 30).stdout.decode()
    drawn = next(line for line in roomy.splitlines() if line.startswith("["))
    assert len(drawn) == 64 + 2
    assert set(drawn) == set("[P.r]")  # all else is less than half a character
    small = run_unplugged("fit", QWEN, home=tmp_path, memory_bytes=40 << 20).stdout.decode()
    drawn = next(line for line in small.splitlines() if line.startswith("["))
    assert (len(drawn), drawn.count("|")) == (64 + 3, 1)


def test_speed_is_what_is_moved_over_the_bandwidth(tmp_path):
    _, fit = document(QWEN, "--kernels", "stock", home=tmp_path)
    moved, pace = fit["moved_bytes_per_token"], DECODE_COSTS["cpu, stock"]
    weights = sum(moved.values()) - moved["kv_bytes"]
    expected = 10**10 / (pace.weights * weights + 2 * pace.layer_bytes)
    rate = fit["speed"]["at_start"]
    assert rate["per_s"] == pytest.approx(expected, rel=0.01)
    assert (rate["source"], moved["kv_bytes"]) == ("predicted", 0)
    assert rate["low"] < rate["per_s"] < rate["high"]
    assert fit["speed"]["at_context"]["per_s"] < rate["per_s"]
    assert fit["machine"]["bandwidth"] == {"bytes_per_s": 10**10, "source": "measured"}


def test_another_machine_is_judged_by_priors_and_without_a_socket(tmp_path):
    code, fit = document("qwen3-30b-a3b", "--machine", "m4-max-64gb", home=tmp_path)
    assert (code, fit["verdict"], fit["estimated"]) == (0, "fits", True)
    machine = fit["machine"]
    assert (machine["backend"], machine["kernels"]) == ("metal", "blocks")
    assert machine["bandwidth"] == {"bytes_per_s": 546 * 10**9, "source": "prior"}
    assert fit["speed"]["at_start"]["source"] == "prior"
    assert fit["need_bytes"]["kv"] == 3 << 30  # 32,768 tokens, by the catalog's facts
    small, _ = document("qwen3-30b-a3b", "--machine", "m4-16gb", home=tmp_path)
    assert small == 4


def test_another_size_of_memory_is_judged_for_this_machine(tmp_path):
    for text, budget in (("32GB", 32 * 10**9), ("32GiB", 32 << 30)):
        _, fit = document(QWEN, "--memory", text, home=tmp_path)
        kept = max(512 << 20, int(0.05 * budget))
        assert fit["machine"]["budget_bytes"] == budget - kept
        assert fit["machine"]["bandwidth"]["source"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--machine", "m4-max"), "add the memory size: m4-max-64gb"),
        (("--machine", "m7-max-64gb"), "unknown machine 'm7-max-64gb'; did you mean"),
        (("--machine", "rtx-4090", "--memory", "64GB"), "is sold with 24 GB, not 64 GB"),
        (("--memory", "32"), "--memory must be a memory size"),
        (("--memory", "1MB"), "--memory must be a memory size"),
    ],
)
def test_a_machine_that_makes_no_sense_exits_2(tmp_path, arguments, said):
    done = run_unplugged("fit", *arguments, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()


def test_the_ladder_goes_down_with_context_and_up_with_the_quantisation(tmp_path):
    _, fit = document("qwen3-30b-a3b", "--machine", "m4-pro-48gb", home=tmp_path)
    order = ["too_large", "streams", "tight", "fits"]
    assert [row["quant"] for row in fit["ladder"]] == ["Q2_K", "Q3_K_M", "Q4_K_M", "Q8_0"]
    for row in fit["ladder"]:
        kinds = [order.index(step["verdict"]) for step in row["contexts"]]
        rates = [step["speed"]["per_s"] for step in row["contexts"] if step["speed"]]
        assert kinds == sorted(kinds, reverse=True)
        assert rates == sorted(rates, reverse=True)
        assert len(rates) == sum(kind > 0 for kind in kinds)


def test_what_fit_says_run_does_to_the_byte(tmp_path):
    _, fit = document(QWEN, "-c", "256", home=tmp_path)
    need = fit["need_bytes"]["total"]
    asked = ("run", QWEN, "-p", "word", "-c", "256", "--max-tokens", "2", "--temperature", "0")
    runs = run_unplugged(*asked, home=tmp_path, memory_bytes=need)
    assert (runs.returncode, runs.stdout.strip() != b"") == (0, True)
    assert b"is a tight fit" in runs.stderr
    refused = run_unplugged(*asked, home=tmp_path, memory_bytes=need - 1)
    assert (refused.returncode, refused.stdout) == (4, b"")
    assert b"does not fit this machine" in refused.stderr
    assert document(QWEN, "-c", "256", home=tmp_path, memory_bytes=need)[0] == 0
    assert document(QWEN, "-c", "256", home=tmp_path, memory_bytes=need - 1)[0] == 4
    forced = run_unplugged(*asked, "--force", home=tmp_path, memory_bytes=need - 1)
    assert (forced.returncode, forced.stdout) == (0, runs.stdout)


def test_what_is_too_large_comes_with_commands_that_would_fit(tmp_path):
    code, fit = document("qwen3-30b-a3b:Q4_K_M", home=tmp_path, memory_bytes=1 << 30)
    assert (code, fit["verdict"], fit["speed"]["at_start"]) == (4, "too_large", None)
    assert "Run `conifer fit` to list every model" in "\n".join(fit["ways_out"])
    code, fit = document(
        *("qwen3-30b-a3b:Q4_K_M", "--machine", "cpu-16gb", "--bandwidth", "50"), home=tmp_path
    )
    assert (code, fit["verdict"]) == (4, "streams")
    ways = "\n".join(fit["ways_out"])
    assert "`conifer run qwen3-30b-a3b:Q4_K_M --stream`" in fit["ways_out"][0]
    assert "`conifer run qwen3-30b-a3b:Q2_K`" in ways  # a smaller quantisation
    assert "The best model that fits now: `conifer run " in ways
    _, long = document(
        "qwen3-coder-30b-a3b", "-c", "256k", "--machine", "m4-max-48gb", home=tmp_path
    )
    ways = "\n".join(long["ways_out"])
    assert long["verdict"] == "streams"
    fits = re.search(r"tokens fits: `conifer run qwen3-coder-30b-a3b -c (\d+)`", ways)
    assert fits and 65_536 < int(fits[1]) < long["largest_context"]
    assert "`conifer run qwen3-coder-30b-a3b --kv-type q8`" in ways
