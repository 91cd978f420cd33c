"""What a token moves and how long that takes, by numbers that a reader can check."""

from __future__ import annotations

import time

import pytest

from engine.fit.bandwidth import bandwidth
from engine.fit.speed import (
    DECODE_COSTS,
    MEASURED,
    PREDICTED,
    PRIOR,
    Bandwidth,
    BytesPerToken,
    bytes_per_token,
    predict,
)
from engine.gguf.reader import open_model
from engine.kernels.sizes import resident_bytes
from engine.nn.config import read_config, token_share, used_tensors
from support.models import HERE

NAMES = sorted(path.parent.name for path in HERE.glob("*/model.gguf"))
MOVED = BytesPerToken(4 * 10**8, 10**8, 10**8, 10**8, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("device", "kernels"), DECODE_COSTS)
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
    pace = DECODE_COSTS["cpu", "native"]
    assert predicted.per_s == pytest.approx(1e10 / (pace.weights * 7e8 + 10 * pace.layer_bytes))
    assert (predicted.source, predict(MOVED, 10, there, "metal", "stock").source) == (
        PREDICTED,
        PRIOR,
    )
    assert predicted.low == pytest.approx(predicted.per_s * pace.low)
    guessed = predict(MOVED, 10, here, "cpu", "native", estimated=True)
    assert guessed.low < predicted.low and guessed.high > predicted.high


def test_the_prior_for_macs_is_near_what_others_measured_there():
    # Qwen3-30B-A3B Q4_K_M on an M4 Pro, 273 GB/s: 70.5 tokens/s in another program.
    moved = BytesPerToken(int(3.3e9 * 0.61), 0, 0, 0, 0)
    rate = predict(moved, 48, Bandwidth(273e9, PRIOR), "metal", "stock")
    assert rate.low < 70.5 < rate.high
    assert rate.per_s == pytest.approx(70.5, rel=0.12)


def test_another_quantisation_moves_its_share_of_the_weights_and_the_same_cache():
    moved = BytesPerToken(400, 100, 100, 100, 50).scaled(0.5)
    assert (moved.weights_bytes, moved.kv_bytes) == (350, 50)


@pytest.mark.alone
def test_bandwidth_is_measured_in_about_two_seconds():
    started = time.perf_counter()
    rate = bandwidth("cpu", 1 << 30)
    assert time.perf_counter() - started < 10  # on a machine that does other things too
    assert 1e8 < rate < 1e12
