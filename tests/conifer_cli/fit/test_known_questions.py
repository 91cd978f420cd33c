"""What people ask, and what they report: verdicts with 8,192 tokens on machines elsewhere."""

from __future__ import annotations

import itertools

import pytest

from catalog import entries
from conifer_cli.fit.alternatives import estimate_of
from conifer_cli.fit.best import Contender, best
from engine.fit.estimate import estimate_bytes_per_token, judge_estimate
from engine.fit.machine import Machine
from engine.fit.machine_specs import machine_specs, models_of, raised_limit, simulate
from engine.fit.memory import Verdict
from engine.fit.speed import Bandwidth, seconds

CONTEXT = 8192
ORDER = ["too_large", "streams", "tight", "fits"]

# Model, file, machine, verdict. Users report that what streams here swaps or fails there.
QUESTIONS = [
    ("qwen3-30b-a3b", "Q4_K_M", "m4-16gb", "streams"),
    ("qwen3-30b-a3b", "Q4_K_M", "m4-24gb", "streams"),
    ("qwen3-30b-a3b", "Q4_K_M", "m3-32gb", "fits"),
    ("qwen3-30b-a3b", "Q4_K_M", "m3-pro-36gb", "fits"),
    ("gpt-oss-20b", "MXFP4", "m4-16gb", "streams"),
    ("gpt-oss-20b", "MXFP4", "m3-pro-18gb", "tight"),
    ("gpt-oss-120b", "MXFP4", "m3-max-64gb", "streams"),
    ("gpt-oss-120b", "MXFP4", "m2-max-96gb", "fits"),
    ("gpt-oss-120b", "MXFP4", "rtx-4090", "streams"),
    ("glm-4.5-air", "Q4_K_M", "m3-max-64gb", "streams"),
    ("glm-4.5-air", "Q4_K_M", "m3-max-96gb", "tight"),
    ("glm-4.5-air", "Q3_K_M", "m3-max-64gb", "streams"),
    ("glm-4.5-air", "Q3_K_M", "m3-max-96gb", "fits"),
    ("glm-4.5-air", "Q3_K_M", "m4-max-128gb", "fits"),
    ("llama-4-scout", "Q4_K_M", "m3-max-64gb", "streams"),
    ("llama-4-scout", "Q3_K_S", "m3-max-64gb", "tight"),
    ("llama-4-scout", "Q2_K", "m3-max-64gb", "fits"),
    ("qwen3-235b-a22b-instruct-2507", "Q4_K_M", "m4-max-128gb", "streams"),
    ("qwen3-next-80b-a3b", "Q4_K_M", "m4-pro-48gb", "streams"),
    ("qwen3-next-80b-a3b", "Q4_K_M", "m5-pro-64gb", "tight"),
    ("qwen3.5-35b-a3b", "Q4_K_M", "m5-32gb", "fits"),
    ("llama-3.3-70b", "Q4_K_M", "m1-max-64gb", "fits"),
    ("deepseek-r1-0528", "Q4_K_M", "m3-ultra-512gb", "fits"),
]


def verdict_of(
    model: str, quant: str | None, machine: Machine, context: int | None = CONTEXT
) -> Verdict:
    entry = entries()[model]
    estimate = estimate_of(entry, entry.file(quant))
    assert estimate is not None
    kernels = "native" if machine.backend == "cpu" else "blocks"
    return judge_estimate(estimate, machine, context, kernels=kernels)


@pytest.mark.parametrize(("model", "quant", "name", "kind"), QUESTIONS)
def test_known_questions_have_the_right_answer(model: str, quant: str, name: str, kind: str):
    assert verdict_of(model, quant, simulate(name)[0]).kind == kind


def test_what_others_run_on_a_tight_mac_needs_the_raised_limit():
    # llama.cpp and MLX decode Qwen3-30B-A3B at 70 tokens/s on an M4 Pro with 24 GB.
    machine, _ = simulate("m4-pro-24gb")
    raised = raised_limit(machine)
    assert raised is not None
    assert verdict_of("qwen3-30b-a3b", "Q4_K_M", raised[1]).kind in ("fits", "tight")


def test_verdicts_and_rates_are_monotone_over_all_machines_and_the_catalog():
    files = [(entry, estimate_of(entry, entry.file())) for entry in entries().values()]
    for key in machine_specs():
        if key == "cpu":
            continue
        machines = [simulate(name)[0] for name in models_of(key)]
        _, bandwidth = simulate(models_of(key)[-1])
        faster = Bandwidth(
            1.1 * bandwidth.bytes_per_s,
            bandwidth.source,
            bandwidth.core_s,
            bandwidth.costs,
            bandwidth.barrier,
        )
        kernels = "native" if machines[0].backend == "cpu" else "blocks"
        for entry, estimate in files:
            if estimate is None:
                continue
            kinds = [
                ORDER.index(judge_estimate(estimate, machine, CONTEXT, kernels=kernels).kind)
                for machine in machines
            ]
            assert kinds == sorted(kinds), (key, entry.id)
            moved = [
                estimate_bytes_per_token(estimate, machines[0].backend, kernels, depth, "f16")
                for depth in (0, 4096, 32_768)
            ]
            layers, backend = estimate.layers or 48, machines[0].backend
            known = [each for each in moved if each is not None]
            taken = [seconds(each, layers, bandwidth, backend, kernels) for each in known]
            assert all(a <= b for a, b in itertools.pairwise(taken)), (key, entry.id)
            sooner = [seconds(each, layers, faster, backend, kernels) for each in known]
            assert all(a > b for a, b in zip(taken, sooner, strict=True)), (key, entry.id)


def test_the_best_model_never_has_less_than_a_useful_context():
    machine, _ = simulate("m4-16gb")
    contenders = [
        Contender(entry, verdict_of(entry.id, None, machine).kind == "fits")
        for entry in entries().values()
        if entry.file() and estimate_of(entry, entry.file()) and (entry.context or 0) >= CONTEXT
    ]
    for entry in best(contenders):
        assert verdict_of(entry.id, None, machine).context >= CONTEXT
