"""How fast a prompt is read, by numbers that a reader can check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from catalog import entries
from conifer_cli.fit.alternatives import estimate_of
from engine.fit.machine_specs import simulate
from engine.fit.prefill import PromptWork, estimated_work, predict_prompt, prompt_seconds
from engine.fit.prefill import prompt_work as work_of
from engine.fit.speed import MEASURED, PRIOR, Bandwidth
from engine.gguf.reader import open_model
from engine.nn.config import read_config
from support.models import HERE

WORK = PromptWork(always=10**9, experts=10**9, head=10**8, scores=10**5, read_bytes=10**9)
NAMES = sorted(path.parent.name for path in HERE.glob("*/model.gguf"))

# Prompts that other programs read: machine, model, tokens, tokens per second, source.
REPORTS = [
    ("m1-ultra-128gb", "llama-3.2-3b", 512, 2142.6, "geerlingguy/ai-benchmarks/issues/48"),
    ("m1-max-64gb", "llama-3.1-8b", 512, 499.6, "brand-o/normiebench/issues/40"),
    ("m4-16gb", "llama-3.1-8b", 512, 224.8, "brand-o/normiebench/issues/3"),
    ("m3-pro-18gb", "qwen3-4b", 2048, 615.3, "ml-explore/mlx-lm/pull/1569"),
    ("m5-max-128gb", "qwen3.5-35b-a3b", 1479, 2756.6, "magicnight/Mac-MLX/issues/24"),
    ("ryzen-7950x-64gb", "llama-3.1-8b", 512, 258.8, "ikawrakow/ik_llama.cpp/pull/182"),
]


def test_a_prompt_is_multiplications_and_one_read_of_the_weights_for_each_chunk():
    bandwidth = Bandwidth(1e10, PRIOR, flops=1e12)
    products, scores = 2 * 1024 * 2e9 + 2e8, 1e5 * 1024**2
    found = prompt_seconds(WORK, 1024, bandwidth, "cpu")
    assert found == pytest.approx((products + 3 * scores) / 1e12)  # which hides the reads
    slow = replace(bandwidth, bytes_per_s=1e8)
    assert prompt_seconds(WORK, 1024, slow, "cpu") == pytest.approx(20)
    experts = 2 * 1024 * 2e9  # on a GPU they cost three times as much
    found = prompt_seconds(WORK, 1024, bandwidth, "metal")
    assert found == pytest.approx((products + experts + scores) / 1e12 + 0.2)


def test_without_a_rate_of_multiplying_there_is_no_prediction():
    assert predict_prompt(WORK, 512, Bandwidth(1e10, MEASURED), "cuda") is None


def test_own_prompts_are_a_measurement():
    rate = predict_prompt(WORK, 512, Bandwidth(1e10, MEASURED), "cpu", own=[90, 100, 120])
    assert rate is not None
    assert (rate.per_s, rate.low, rate.high, rate.source) == (100, 90, 120, MEASURED)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"{report[0]} {report[1]}")
def test_reports_of_other_programs_are_inside_the_range(report: tuple[str, str, int, float, str]):
    name, model, tokens, per_s, _ = report
    machine, bandwidth = simulate(name)
    entry = entries()[model]
    estimate = estimate_of(entry, entry.file())
    assert estimate is not None
    work = estimated_work(estimate, estimate.size_bytes)
    assert work is not None
    rate = predict_prompt(work, tokens, bandwidth, machine.backend)
    assert rate is not None
    assert rate.low < per_s < rate.high
    assert rate.source == PRIOR


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_prompt_takes_longer(name: str):
    file = open_model(HERE / name / "model.gguf")
    config = read_config(file.metadata)
    work = work_of(config, file.tensors, 10**6)
    bandwidth = Bandwidth(1e13, PRIOR, flops=1e12)  # reading is hidden
    taken = [prompt_seconds(work, tokens, bandwidth, "cpu") or 0 for tokens in (64, 512, 4096)]
    assert 0 < taken[0] < taken[1] < taken[2]
    assert work.always > 0 and work.head > 0
    assert (work.experts > 0) == (config.experts is not None)
