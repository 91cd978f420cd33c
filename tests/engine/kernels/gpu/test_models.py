"""Stored models through the kernels `blocks`, whose launches run in the emulator.

Float models, of 16 bits too, with float32 activations are held to the bars of the stock kernels.
Models of blocks compute in the type that a GPU uses for their family: their difference from
transformers is below llama.cpp's. A model of F16 matrices is none of them: llama.cpp rounds only
what a matrix multiplies, a thousandth of a deviation in all, and a GPU all activations.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.architectures.registry import ARCHITECTURES, WIDE_ACTIVATIONS
from engine.gguf.reader import open_model
from engine.kernels.gpu.blocks import BlockKernels
from engine.kernels.gpu.launch import Gpu
from engine.nn.cache.cache import DECODED
from engine.nn.config import read_model_config
from engine.streaming import least_bytes, most_bytes
from support.emulator.run import launch
from support.gpu import NIGHT, needs_compiler
from support.models import Stored, row_rms, stored_models
from support.parity import decoded_logits

pytestmark = [pytest.mark.process, needs_compiler]
MODELS = stored_models(set(ARCHITECTURES))
FLOATS = {"F32", "F16", "BF16", "I32"}
IN_BLOCKS = [m for m in MODELS if not set(m.meta["tensor_types"]) <= FLOATS]
ALWAYS = {"qwen3moe", "gpt-oss-mxfp4", "llama-Q4_K_M"}
STEPS = 4  # decoded tokens


def by_name(models: list[Stored]):
    marked = [pytest.param(m, marks=() if m.name in ALWAYS else NIGHT, id=m.name) for m in models]
    return pytest.mark.parametrize("stored", marked)


def logits(
    stored: Stored, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch, cuda: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the prompt, and of a few tokens decoded behind it."""
    kernels = BlockKernels("cpu", Gpu(cuda, launch), dtype)
    monkeypatch.setattr("engine.model.select", lambda *_: kernels)
    model, expected = engine.load(stored.model), stored.expected()
    prompt, tokens = expected["tokens"].tolist(), expected["decode_tokens"].tolist()[:STEPS]
    if not stored.long:
        return np.array(model.logits(prompt)), decoded_logits(model, prompt, tokens)
    read = len(prompt) - len(expected["hf_logits"])
    found = decoded_logits(model, prompt[:read], prompt[read:] + tokens)
    return found[: -len(tokens)], found[-len(tokens) :]


@by_name([m for m in MODELS if m not in IN_BLOCKS])
def test_float_models_equal_the_reference(stored: Stored, monkeypatch):
    expected = stored.expected()
    found = logits(stored, mx.float32, monkeypatch)
    for ours, theirs in zip(
        found, (expected["hf_logits"], expected["decode_hf"][:STEPS]), strict=True
    ):
        assert np.abs(ours - theirs).max() < 1e-3 * expected["hf_logits"].std()


@by_name(IN_BLOCKS)
def test_models_of_blocks_are_nearer_than_llama_cpp(stored: Stored, monkeypatch):
    wide = stored.meta["gguf_architecture"] in WIDE_ACTIVATIONS
    expected = stored.expected()
    found = logits(stored, mx.float32 if wide else mx.float16, monkeypatch)
    names = ("hf_logits", "llamacpp_logits"), ("decode_hf", "decode_llamacpp")
    ours, theirs = [], []
    for logits_of, (reference, other) in zip(found, names, strict=True):
        exact = expected[reference][: len(logits_of)]
        ours.append(row_rms(logits_of, exact))
        theirs.append(row_rms(expected[other][: len(logits_of)], exact))
    assert np.median(np.concatenate(ours)) <= np.median(np.concatenate(theirs))


@pytest.mark.nightly
@by_name(IN_BLOCKS)
def test_the_cuda_text_gives_the_same_logits(stored: Stored, monkeypatch):
    metal, cuda = (logits(stored, mx.float32, monkeypatch, cuda)[1] for cuda in (False, True))
    assert np.abs(metal - cuda).max() < 2e-2 * metal.std()  # Metal stages weights as half


def test_a_refused_type_is_converted_and_says_why(monkeypatch):
    stored = next(m for m in MODELS if m.name == "llama-Q4_K_M")
    refusal = {"Q6_K": "product: wrong"}.get
    kernels = BlockKernels("cpu", Gpu(False, launch), mx.float32, refusal)
    monkeypatch.setattr("engine.model.select", lambda *_: kernels)
    expected = stored.expected()
    found = np.array(engine.load(stored.model).logits(expected["tokens"].tolist()))
    assert kernels.refusals["Q6_K"] == "product: wrong" and kernels.refusals["Q4_K"] is None
    assert (
        np.abs(found - expected["hf_logits"]).max() < 0.2 * expected["hf_logits"].std()
    )  # nine bits a weight


@pytest.mark.parametrize("name", ["qwen3moe-Q4_K_M", pytest.param("gpt-oss-mxfp4", marks=NIGHT)])
@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=NIGHT)])
def test_experts_from_the_file_give_the_same_logits(name, cuda, monkeypatch):
    """Prompts of few and of many pairs of a token and an expert, and decoded tokens."""
    stored = next(m for m in MODELS if m.name == name)
    kernels = BlockKernels("cpu", Gpu(cuda, launch), mx.float32)
    monkeypatch.setattr("engine.model.select", lambda *_: kernels)
    file = open_model(stored.model)
    config = read_model_config(file.metadata, file.tensors)
    facts = config, file.tensors, "blocks", "cuda" if cuda else "metal"
    least, most = least_bytes(*facts), most_bytes(*facts)
    tokens = np.random.default_rng(1).integers(3, config.vocab, 60).tolist()

    def results(model):
        cache = model.new_cache(96)
        found = [np.array(model.prefill(part, cache, None)) for part in (tokens[:50], tokens[50:])]
        for token in tokens[:3]:
            found.append(np.array(model.forward(mx.array([token]), cache)))
            cache.extend([token], DECODED)
        return found

    right = results(engine.load(stored.model))
    for budget in (least, (least + most) // 2, most):
        model = engine.load(stored.model, expert_bytes=budget)
        for found, expected in zip(results(model), right, strict=True):
            assert np.array_equal(found, expected)
        stats, layers = model.expert_store.stats(), len(model.expert_store.layers)
        assert stats.hits + stats.misses == 3 * layers * config.experts.used
        assert stats.bytes_read > 0 and stats.held_bytes <= budget
