"""The synthetic model: a catalog model's size to the byte, and logits that are numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import catalog
from engine.gguf import open_model
from engine.model import load
from engine.quants import dequantize
from support.benchmarks import program

synthesize = program("synthesize")
REAL = synthesize.SHAPES["qwen3-30b-a3b"]
TINY = dataclasses.replace(
    REAL,
    layers=4,
    width=256,
    heads=4,
    kv_heads=2,
    head_width=64,
    experts=8,
    experts_used=2,
    expert_width=256,
    vocab=400,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "tiny.gguf"
    synthesize.synthesize(TINY, path, seed=1)
    return path


def test_all_layers_are_as_large_as_the_real_file():
    entry = catalog.entries()["qwen3-30b-a3b"]
    tensors = sum(tensor.size_bytes for tensor in synthesize.plan(REAL))
    header_bytes = entry.facts().size_bytes - tensors
    assert 5_000_000 < header_bytes < 7_000_000  # its vocabulary takes the rest


def test_half_the_layers_have_six_bits_where_llama_quantize_gives_them():
    more = [layer for layer in range(48) if synthesize.use_more_bits(layer, 48)]
    assert more == [*range(6), *range(8, 42, 3), *range(42, 48)]
    types = {tensor.name: tensor.type for tensor in synthesize.plan(REAL)}
    assert types["blk.8.attn_v.weight"] == types["blk.8.ffn_down_exps.weight"] == "Q6_K"
    assert types["blk.7.attn_v.weight"] == types["blk.7.ffn_down_exps.weight"] == "Q4_K"
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert types["blk.8.ffn_gate_inp.weight"] == "F32"


def test_a_small_one_loads_and_its_logits_are_finite(tiny, kernels):
    model = load(tiny, kernels)
    logits = np.array(model.logits([0, 5, 300]))
    assert logits.shape == (3, 400) and np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3
    assert model.tokenizer.decode(model.tokenizer.encode("the tin hat")) == "the tin hat"


def test_weights_lie_around_nought_with_the_spread_asked_for(tiny):
    file = open_model(tiny)
    raw = np.fromfile(tiny, np.uint8)
    for name in ("output.weight", "blk.0.attn_q.weight", "blk.3.attn_v.weight"):
        info = file.tensors[name]
        blocks = raw[info.offset : info.offset + info.size_bytes]
        weights = dequantize(blocks.reshape(info.shape[0], -1), info.type)
        assert abs(weights.mean()) < 0.05 * weights.std()
        assert weights.std() * info.shape[-1] ** 0.5 == pytest.approx(1, abs=0.1)


def test_the_same_seed_writes_the_same_file(tiny, tmp_path):
    for seed in (1, 2):
        synthesize.synthesize(TINY, tmp_path / str(seed), seed)
    assert (tmp_path / "1").read_bytes() == tiny.read_bytes() != (tmp_path / "2").read_bytes()
    assert not list(tmp_path.glob("*.part"))
