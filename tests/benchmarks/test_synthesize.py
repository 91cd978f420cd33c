"""The synthetic model: a catalog model's size to the byte, and logits that are numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import catalog.registry
from engine.gguf.dequant import dequantize
from engine.gguf.reader import open_model
from engine.model import load
from support.benchmarks import program

synthesize = program("synthesize")
REAL = synthesize.SHAPES["qwen3-30b-a3b"]
# Of a model small enough to write and load at once; what a family has no key for stays away.
SMALL = {
    "embedding_length": 256,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 32,
    "attention.kv_lora_rank": 256,
    "attention.q_lora_rank": 256,
    "attention.shared_kv_layers": 1,
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 64,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 32,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 256,
    "expert_shared_feed_forward_length": 256,
    "rope.dimension_sections": (8, 4, 4, 0),
    "ssm.inner_size": 512,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 1,
    "ssm.state_size": 64,
    "vocab_size": 400,
}
# Bytes of the file that is described, as its host lists them.
FILES = {
    "qwen3-30b-a3b": 18_556_686_912,
    "olmoe-1b-7b": 4_213_512_672,
    "gpt-oss-20b": 12_109_566_624,
    "deepseek-v2-lite": 10_364_416_768,
    "granite-4.0-h-tiny": 4_230_976_352,
    "laguna-xs-2.1": 20_274_300_032,
    "lfm2-8b-a1b": 5_044_779_712,
    "llama-4-scout": 65_359_900_352,
    "phi-3.5-moe-instruct": 25_345_994_592,
}
# How few layers have each kind of a model's blocks; the others need two.
FEW = {"gemma-4-26b-a4b": 6, "nemotron-3-nano-30b-a3b": 6, "kimi-linear-48b-a3b": 4, "glm-5": 4}
FEW |= {"gemma-4-e2b": 35, "lfm2-8b-a1b": 3, "granite-4.0-h-tiny": 6, "qwen3.5-35b-a3b": 4}


def small(shape):
    def cut(key, value):
        least = SMALL.get(key, value)
        if callable(value) and key in SMALL:
            return lambda layer: min(value(layer), least)
        return min(value, least) if isinstance(value, int) else least

    keys = {key: cut(key, value) for key, value in shape.keys.items()}
    return dataclasses.replace(shape, layers=6, vocab=400, keys=keys)


TINY = small(REAL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "tiny.gguf"
    synthesize.synthesize(TINY, path, seed=1)
    return path


@pytest.mark.parametrize("name", FILES)
def test_all_layers_are_as_large_as_the_real_file(name):
    shape = synthesize.SHAPES[name]
    tensors = sum(tensor.size_bytes for tensor in synthesize.plan(shape))
    header_bytes = FILES[name] - tensors
    assert 20 * shape.vocab < header_bytes < 70 * shape.vocab  # its vocabulary takes the rest


@pytest.mark.parametrize("name", synthesize.SHAPES)
def test_the_catalog_counts_the_weights_of_the_tensors(name):
    entries, shape = catalog.registry.entries(), synthesize.SHAPES[name]
    entry = entries.get(name) or entries[f"{name}-instruct"]
    parts = entry.parts
    matrices = [
        tensor
        for tensor in synthesize.plan(shape)
        if len(tensor.shape) > 1 and not tensor.name.endswith("bias")
    ]
    experts = sum(math.prod(tensor.shape) for tensor in matrices if "_exps." in tensor.name)
    total = sum(math.prod(tensor.shape) for tensor in matrices)
    assert parts["routed"] == experts
    assert sum(parts.values()) == pytest.approx(total, rel=0.003)
    assert entry.layers == shape.layers and (entry.experts or 0) == shape.size("expert_count")
    assert (entry.experts_used or 0) == shape.size("expert_used_count")
    assert entry.context and entry.context <= shape.size("context_length")


def test_half_the_layers_have_six_bits_where_llama_quantize_gives_them():
    more = [layer for layer in range(48) if synthesize.use_more_bits(layer, 48)]
    assert more == [*range(6), *range(8, 42, 3), *range(42, 48)]
    types = {tensor.name: tensor.type for tensor in synthesize.plan(REAL)}
    assert types["blk.8.attn_v.weight"] == types["blk.8.ffn_down_exps.weight"] == "Q6_K"
    assert types["blk.7.attn_v.weight"] == types["blk.7.ffn_down_exps.weight"] == "Q4_K"
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert types["blk.8.ffn_gate_inp.weight"] == "F32"


@pytest.mark.parametrize("mix", synthesize.MIXES)
def test_every_mix_loads_with_the_spread_asked_for(mix, tmp_path, kernels):
    path = tmp_path / "mix.gguf"
    synthesize.synthesize(dataclasses.replace(TINY, mix=mix, layers=16), path, seed=1)
    file, raw = open_model(path), np.fromfile(path, np.uint8)
    for name, info in file.tensors.items():
        if len(info.shape) > 1:
            blocks = raw[info.offset : info.offset + info.size_bytes]
            weights = dequantize(blocks.reshape(math.prod(info.shape[:-1]), -1), info.type)
            wanted = 32**0.5 if name == "token_embd.weight" else info.shape[-1] ** -0.5
            assert weights.std() == pytest.approx(wanted, rel=0.1), (name, info.type)
            assert abs(weights.mean()) < (0.05 + 4 / weights.size**0.5) * weights.std()
    logits = np.array(load(path, kernels).logits([0, 5, 300]))
    assert 0.3 < logits.std() < 3


def test_a_mix_names_the_types_of_chosen_layers_first():
    shape = dataclasses.replace(REAL, mix="UD-Q2_K_XL")
    types = {tensor.name: tensor.type for tensor in synthesize.plan(shape)}
    assert types["blk.5.ffn_down_exps.weight"] == "IQ3_S"
    assert types["blk.6.ffn_down_exps.weight"] == "IQ3_XXS"
    assert types["blk.6.ffn_gate_exps.weight"] == "IQ2_XS"
    assert types["blk.6.attn_output.weight"] == "IQ4_XS" and types["output.weight"] == "Q6_K"


@pytest.mark.parametrize("name", synthesize.SHAPES)
def test_a_small_one_loads_and_its_logits_are_finite(name, tmp_path, kernels):
    path = tmp_path / "small.gguf"
    synthesize.synthesize(small(synthesize.SHAPES[name]), path, seed=1)
    model = load(path, kernels)
    logits = np.array(model.logits([0, 5, 300])) / model.config.logit_scale
    assert logits.shape == (3, 400) and np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3
    assert model.tokenizer.decode(model.tokenizer.encode("the tin hat")) == "the tin hat"


@pytest.mark.nightly
@pytest.mark.parametrize("name", synthesize.SHAPES)
def test_one_of_real_widths_decodes_a_token(name, tmp_path):
    path = tmp_path / "wide.gguf"
    shape = dataclasses.replace(synthesize.SHAPES[name], layers=FEW.get(name, 2))
    synthesize.synthesize(shape, path, seed=1)
    model = load(path)
    cache = model.new_cache(16)
    model.prefill([1, 2, 3], cache, None)
    logits = np.array(model.step([4], cache))
    path.unlink()  # up to 8 GB
    assert logits.shape[-1] == shape.vocab and np.isfinite(logits).all()


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


LOCAL = dataclasses.replace(
    REAL, layers=2, vocab=4096, keys={**REAL.keys, "expert_feed_forward_length": 256}
)


def test_routers_with_locality_repeat_as_published(tmp_path):
    path = tmp_path / "local.gguf"
    synthesize.synthesize(LOCAL, path, seed=1, locality=True)
    model = load(path)
    routes = model.count_routes()
    tokens = np.random.default_rng(0).integers(0, 4096, 500).tolist()
    model.prefill(tokens, model.new_cache(512), None)
    reuse = routes.reuse()
    assert reuse[1] == pytest.approx(0.45, abs=0.05)
    assert reuse[8] == pytest.approx(0.80, abs=0.05)
    assert (routes.hits() > 0).mean() > 0.8  # no fixed set of experts


def test_routers_without_locality_choose_evenly(tmp_path):
    path = tmp_path / "even.gguf"
    synthesize.synthesize(LOCAL, path, seed=1)
    model = load(path)
    routes = model.count_routes()
    tokens = np.random.default_rng(0).integers(0, 4096, 500).tolist()
    model.prefill(tokens, model.new_cache(512), None)
    assert routes.reuse()[1] < 0.15
    assert routes.reuse()[8] < 0.55  # 1 - (15 / 16) ** 8 = 0.40 if they chose evenly


def test_locality_needs_norms_on_heads():
    with pytest.raises(SystemExit, match="a norm on each head, not OLMoE"):
        synthesize.synthesize(
            synthesize.SHAPES["olmoe-1b-7b"], synthesize.Path("x"), 0, locality=True
        )
