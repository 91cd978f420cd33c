"""What is estimated without a header, held against what the header says."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from engine.fit.estimate import (
    ModelEstimate,
    estimate_bytes_per_token,
    estimate_needs,
    judge_estimate,
)
from engine.fit.machine import Machine
from engine.fit.memory import judge, needs
from engine.fit.speed import BACKEND_COSTS, bytes_per_token
from engine.gguf.reader import TensorInfo, open_model
from engine.nn.config import OF_EXPERTS, read_config
from support.giants import write_deepseek_v3, write_qwen3_235b

GB = 10**9
WRITERS = {
    "qwen3-235b": (write_qwen3_235b, 235e9, 22e9),
    "deepseek-v3": (write_deepseek_v3, 671e9, 37e9),
}


@pytest.fixture(scope="module", params=WRITERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A header, and the estimate of the same model."""
    write, total, active = WRITERS[request.param]
    file = open_model(write(tmp_path_factory.mktemp("giant"), 1)[0])
    config = read_config(file.metadata)
    estimate = ModelEstimate(
        size_bytes=file.size_bytes,
        quant="Q8_0",
        context=config.context,
        layers=config.layers,
        total_parameters=int(total),
        active_parameters=int(active),
        layer_specs=config.cache_specs,
        parts=parts(file.tensors),
        used=config.experts.used / config.experts.count,
        experts=config.experts.count,
        routed_layers=sum(map(config.routed, range(config.layers))),
    )
    return file, config, estimate


def parts(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """How many weights have which purpose, as the catalog says of a model whose shape it knows."""
    found = dict.fromkeys(("routed", "attention", "shared", "head", "embedding"), 0)
    for name, info in tensors.items():
        part = "routed" if OF_EXPERTS.fullmatch(name) else "shared" if ".ffn_" in name else ""
        part = part or {"output.weight": "head", "token_embd.weight": "embedding"}.get(name, "")
        found[part or "attention"] += math.prod(info.shape)
    return found


@pytest.mark.parametrize(("backend", "kernels"), BACKEND_COSTS)
@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_an_estimate_promises_no_more_than_the_header(pair, backend, kernels, kv_type):
    file, config, estimate = pair
    exact = needs(config, file.tensors, backend, kv_type, kernels)
    guessed = estimate_needs(estimate, backend, kv_type, kernels)
    for context in (512, 8192, 32_768):
        header, estimate = exact(context), guessed(context)
        assert estimate.kv_bytes == header.kv_bytes
        assert 0.99 <= estimate.total_bytes / header.total_bytes <= 1.1


def test_what_a_token_moves_is_near(pair):
    file, config, estimate = pair
    exact = bytes_per_token(config, file.tensors, "cpu", "native", 4096, "f16")
    guessed = estimate_bytes_per_token(estimate, "cpu", "native", 4096, "f16")
    assert guessed is not None
    assert guessed.kv_bytes == exact.kv_bytes
    assert guessed.weights_bytes == pytest.approx(exact.weights_bytes, rel=0.1)


def test_a_model_of_which_little_is_known_is_still_judged():
    machine = Machine("made up", "cpu", 32 * GB, 32 * GB, "available memory")
    verdict = judge_estimate(ModelEstimate(10 * GB, "Q4_K_M"), machine, kernels="native")
    assert (verdict.kind, verdict.context, verdict.estimated) == ("fits", 32_768, True)
    assert verdict.need.kv_bytes == 48 * 1024 * 2 * 32_768  # 48 layers of 1,024 values
    assert (
        estimate_bytes_per_token(ModelEstimate(10 * GB, "Q4_K_M"), "cpu", "native", 0, "f16")
        is None
    )


@pytest.mark.parametrize(("quant", "bits"), [("UD-Q3_K_XL", 4.5), ("Q4_0", 4.5), ("Q5_K_M", 8.5)])
def test_short_rows_of_n_grams_are_in_no_type_of_few_bits(quant, bits):
    counted = {"routed": 10 * GB, "attention": GB, "shared": 0, "head": 0, "embedding": 0}
    sizes = []
    for ngrams in (0, GB):
        given = ModelEstimate(20 * GB, quant, parts={**counted, "ngrams": ngrams}, used=1.0)
        moved = estimate_bytes_per_token(given, "cpu", "native", 0, "f16")
        sizes.append(moved.experts_bytes)
    assert sizes[0] - sizes[1] == pytest.approx(GB * bits / 8)  # the rest of the file


def test_the_same_rule_judges_an_estimate_and_a_header(pair):
    file, config, estimate = pair
    for budget in (10 * GB, 100 * GB, 500 * GB, 2000 * GB):
        machine = Machine("made up", "cpu", budget, budget, "available memory")
        by_header = judge(config, file.tensors, machine, 4096, kernels="native").kind
        assert judge_estimate(estimate, machine, 4096, kernels="native").kind == by_header
