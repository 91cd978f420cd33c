"""What a token moves and how long that takes, by numbers that a reader can check."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest

from engine.fit.bandwidth import bandwidth
from engine.fit.decode_cost import NS_PER_KB, SAME_AS
from engine.fit.prefill import CORE_FLOPS
from engine.fit.speed import (
    BACKEND_COSTS,
    DECODE_COSTS,
    MEASURED,
    OVERLAP,
    PREDICTED,
    PRIOR,
    Bandwidth,
    BytesPerToken,
    bytes_per_token,
    predict,
    seconds,
    slow_type,
)
from engine.gguf.reader import open_model
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.sizes import resident_bytes
from engine.nn.config import read_config, token_share, used_tensors
from support.models import HERE

NAMES = sorted(path.parent.name for path in HERE.glob("*/model.gguf"))
MOVED = BytesPerToken(4 * 10**8, 10**8, 10**8, 10**8, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("device", "kernels"), BACKEND_COSTS)
def test_the_parts_are_all_that_a_token_uses(name: str, device: str, kernels: str):
    file = open_model(HERE / name / "model.gguf")
    config = read_config(file.metadata)
    moved = bytes_per_token(config, file.tensors, device, kernels, 0, "f16")
    expected = sum(
        float(resident_bytes(info, device, kernels) * token_share(info, config, file.tensors))
        for info in used_tensors(config, file.tensors)
    )
    assert moved.weights_bytes == pytest.approx(expected, abs=4)
    assert (moved.experts_bytes > 0) == (config.experts is not None)
    assert min(moved.attention_bytes, moved.head_bytes) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_deeper_token_moves_no_less(name: str):
    file = open_model(HERE / name / "model.gguf")
    config = read_config(file.metadata)
    depths = [
        bytes_per_token(config, file.tensors, "cpu", "native", d, "f16") for d in (0, 100, 1000)
    ]
    assert len({moved.weights_bytes for moved in depths}) == 1
    assert depths[0].kv_bytes <= depths[1].kv_bytes <= depths[2].kv_bytes
    assert depths[2].kv_bytes > 0


def test_a_rate_says_where_it_is_from_and_how_far_off_it_may_be():
    here, there = Bandwidth(1e10, MEASURED), Bandwidth(1e10, PRIOR)
    predicted = predict(MOVED, 10, here, "cpu", "native")
    pace = DECODE_COSTS["cpu, native"]
    token_s = pace.weights * 7e8 / 1e10 + 10 * pace.layer_s
    assert predicted.per_s == pytest.approx(1 / token_s)
    assert (predicted.source, predict(MOVED, 10, there, "metal", "stock").source) == (
        PREDICTED,
        PRIOR,
    )
    assert predicted.low == pytest.approx(predicted.per_s * pace.low)
    guessed = predict(MOVED, 10, here, "cpu", "native", estimated=True)
    assert guessed.low < predicted.low and guessed.high > predicted.high


def test_a_layer_costs_a_gpu_the_same_on_any_bandwidth_and_one_with_experts_more():
    fast, slow = (Bandwidth(rate, PRIOR, costs="m4") for rate in (546e9, 273e9))
    routed = replace(MOVED, routed_layers=48)
    cost = DECODE_COSTS["m4"]
    dense_s, routed_s = (seconds(moved, 48, fast, "metal", "stock") for moved in (MOVED, routed))
    assert routed_s - dense_s == pytest.approx(48 * cost.routed_s)
    read_s = cost.weights * MOVED.weights_bytes / 273e9
    assert seconds(MOVED, 48, slow, "metal", "stock") == pytest.approx(read_s + 48 * cost.layer_s)
    assert dense_s == pytest.approx(read_s / 2 + 48 * cost.layer_s)


def test_a_latent_cache_costs_what_is_computed_with_it():
    # DeepSeek-V2-Lite on an M2 Ultra, 0 to 32,768 tokens: llama.cpp took 13.1 ms more.
    bandwidth = Bandwidth(800e9, PRIOR, costs="m2")
    empty = replace(MOVED, kv_reuse=16 * 1088 / 576)
    deep = replace(empty, kv_bytes=27 * 576 * 2 * 32_768)
    more_s = [seconds(moved, 27, bandwidth, "metal", "stock") for moved in (empty, deep)]
    assert more_s[1] - more_s[0] == pytest.approx(13.1e-3, rel=0.1)
    plain = seconds(replace(deep, kv_reuse=0), 27, bandwidth, "metal", "stock")
    assert plain - more_s[0] == pytest.approx(1.28 * deep.kv_bytes / 800e9)


def test_many_cores_wait_longer_for_each_other():
    few, many = (Bandwidth(369e9, PRIOR, costs="cpu, others", barrier=b) for b in (1.0, 9.0))
    cost = DECODE_COSTS["cpu, others"]
    more_s = [seconds(MOVED, 28, bandwidth, "cpu", "native") for bandwidth in (few, many)]
    assert more_s[1] - more_s[0] == pytest.approx(28 * 8 * cost.layer_s)


def test_another_quantisation_moves_its_share_of_the_weights_and_the_same_cache():
    moved = BytesPerToken(400, 100, 100, 100, 50).scaled(0.5)
    assert (moved.weights_bytes, moved.kv_bytes) == (350, 50)


Q4_K, GRID = 1e-11, 4e-10  # seconds for a byte, made up


def test_blocks_that_take_longer_than_their_bytes_are_waited_for():
    types = {"Q4_K": 3 * 10**8, "IQ2_XS": 4 * 10**8}
    moved = replace(MOVED, types=types)
    cost = DECODE_COSTS["cpu, native"]
    fast = Bandwidth(1e10, MEASURED, {"Q4_K": Q4_K, "IQ2_XS": GRID})
    plain = seconds(MOVED, 10, fast, "cpu", "native")
    byte_s = GRID + (1 - OVERLAP) / 1e10
    waits = 4e8 * (byte_s - cost.weights / 1e10)
    assert seconds(moved, 10, fast, "cpu", "native") == pytest.approx(plain + waits)
    name, rate = slow_type(moved, 10, fast, "cpu", "native")
    assert (name, rate) == ("IQ2_XS", pytest.approx(cost.weights / 1e10 / byte_s))
    slow = replace(fast, bytes_per_s=1e8)  # memory takes longer than the cores
    assert seconds(moved, 10, slow, "cpu", "native") == seconds(MOVED, 10, slow, "cpu", "native")
    assert slow_type(moved, 10, slow, "cpu", "native") is None


def test_a_type_counts_only_for_the_native_kernels():
    fast = Bandwidth(1e12, MEASURED, {"IQ2_XS": GRID})
    moved = replace(MOVED, types={"IQ2_XS": 7 * 10**8})
    for backend, kernels in BACKEND_COSTS:
        same = seconds(moved, 9, fast, backend, kernels) == seconds(
            MOVED, 9, fast, backend, kernels
        )
        assert same == (kernels != "native")


def test_another_quantisation_has_the_type_that_it_is_named_after():
    moved = replace(MOVED, types={"Q4_K": 6 * 10**8, "Q6_K": 10**8}).scaled(0.5, "IQ2_XS")
    assert moved.types == {"IQ2_XS": moved.weights_bytes}
    assert replace(MOVED, types={"Q4_K": 100}).scaled(0.5).types == {"Q4_K": 50}
    assert MOVED.scaled(0.5, "IQ2_XS").types == {}  # of stock kernels


@pytest.mark.parametrize("isa", NS_PER_KB)
def test_every_block_type_has_a_measured_cost(isa: str):
    floats = {"F32", "F16", "BF16"}
    assert set(NS_PER_KB[isa]) == set(TYPE_BY_NAME) - floats
    page = (HERE.parents[1] / "docs" / "fit.md").read_text()
    for name in NS_PER_KB[isa]:
        costs = " | ".join(f"{NS_PER_KB[each][name]:g}" for each in NS_PER_KB)
        assert f"| {name} | {costs} |" in page
    results = HERE.parents[1] / "benchmarks" / "results" / "decode-cost.json"
    assert json.loads(results.read_text())["ns_per_kb"][isa] == NS_PER_KB[isa]


def test_every_instruction_set_has_costs():
    core = HERE.parents[1] / "engine" / "kernels" / "native" / "core"
    ids = set(re.findall(r"X\([A-Z]\w+, (\w+),", (core / "isa" / "isa.h").read_text()))
    assert {"avx2", "avxvnni", "neon"} <= ids <= {*NS_PER_KB, *SAME_AS}
    assert ids <= set(CORE_FLOPS)


@pytest.mark.alone
def test_bandwidth_is_measured_in_about_two_seconds():
    started = time.perf_counter()
    rate = bandwidth("cpu", 1 << 30)
    assert time.perf_counter() - started < 10  # on a machine that does other things too
    assert 1e8 < rate < 1e12
