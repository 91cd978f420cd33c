"""`conifer fit`: one arithmetic, for a person and as JSON, with an exit code for a script."""

from __future__ import annotations

import json

import pytest

from support.program import MODELS, run_conifer, run_unplugged

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


def document(*arguments, home, memory_bytes=16 << 30):
    done = run_unplugged("fit", *arguments, "--json", home=home, memory_bytes=memory_bytes)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("memory_bytes", "kind", "code"),
    [(4 << 30, "fits", 0), (500 << 20, "tight", 0), (100 << 20, "too_large", 4)],
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
    assert "verdict: fits" in text and "the largest that fits: 2,048" in text


def test_a_catalog_size_over_the_budget_is_an_estimate_and_exits_4(tmp_path):
    done = run_unplugged("fit", "qwen3-30b-a3b", home=tmp_path, memory_bytes=8 << 30)
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
    assert verdicts["qwen3-30b-a3b"] == "too_large"


def test_a_larger_machine_never_fits_less(tmp_path):
    order = ["too_large", "tight", "fits", None]
    before: dict[str, int] = {}
    for gib in (2, 8, 24, 64, 512):
        _, fit = document(home=tmp_path, memory_bytes=gib << 30)
        now = {model["id"]: order.index(model["verdict"]) for model in fit["models"]}
        assert all(now[name] >= before.get(name, 0) for name in now)
        before = now


def test_the_table_says_that_it_is_estimated(tmp_path):
    done = run_unplugged("fit", home=tmp_path)
    assert done.returncode == 0
    assert b"(estimated)" in done.stdout and b"qwen3-30b-a3b" in done.stdout
