"""The starter model, real weights, against float32 arithmetic on the same dequantised weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.gguf.reader import open_model
from engine.kernels.sizes import RESIDENT_BITS, resident_bytes
from support.gguf_writer import Tensor
from support.models import HERE, row_rms
from support.rewrite import all_tensors, rewrite

EXPECTED = json.loads((HERE / "starter" / "expected.json").read_text())
CASES = EXPECTED["cases"]
# A step whose two best logits are nearer than this may go either way: the native kernels round
# activations to 8 bits, the stock kernels not at all.
CLOSE = {"stock": 0.1, "native": 0.25}
LOGIT_ERROR = {"stock": 0.01, "native": 0.75}
CLONE_ERROR = {"stock": 1e-3, "native": 3e-2}  # median over positions, in standard deviations
EXPERTS = 3
pytestmark = [
    pytest.mark.network,
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.float32,
]


@pytest.fixture(scope="module")
def model(starter_path: Path, kernels: str) -> engine.Model:
    return engine.load(starter_path, kernels=kernels)


def by_question(cases: list[dict]):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c["messages"][-1]["content"][:20])


@by_question(CASES)
def test_the_chat_becomes_the_right_ids(case: dict, model: engine.Model):
    assert model.template is not None
    assert model.template.render(case["messages"]) == case["prompt"]
    assert model.template.encode(case["messages"]) == case["prompt_ids"]


@by_question(CASES)
def test_every_greedy_step_that_is_not_close_is_right(
    case: dict, model: engine.Model, kernels: str
):
    prompt, greedy = case["prompt_ids"], case["greedy_ids"]
    logits = np.array(model.logits(prompt + greedy[:-1])[len(prompt) - 1 :])
    clear = [i for i, margin in enumerate(case["top1_minus_top2"]) if margin > CLOSE[kernels]]
    assert len(clear) > len(greedy) / 2
    assert logits.argmax(axis=-1)[clear].tolist() == [greedy[i] for i in clear]
    best = case["first_step_top5"]
    assert np.abs(logits[0][best["ids"]] - best["logits"]).max() < LOGIT_ERROR[kernels]


def test_the_answer_is_right_up_to_the_first_close_step(model: engine.Model, kernels: str):
    # The chat whose first close step comes last has the most to say.
    def certain(case: dict) -> int:
        return next((i for i, m in enumerate(case["top1_minus_top2"]) if m <= CLOSE[kernels]), 64)

    case = max(CASES, key=certain)
    settings = engine.Settings(temperature=0, max_tokens=certain(case))
    assert list(model.generate(case["prompt_ids"], settings)) == case["greedy_ids"][: certain(case)]


def test_perplexity_is_that_of_exact_arithmetic(model: engine.Model):
    ids = EXPECTED["text_ids"]
    logits = model.logits(ids[:-1])
    chosen = mx.take_along_axis(logits, mx.array(ids[1:])[:, None], axis=-1).squeeze(-1)
    loss = float((mx.logsumexp(logits, axis=-1) - chosen).mean().item())
    assert math.exp(loss) == pytest.approx(EXPECTED["text_perplexity"], rel=0.005)


def test_loading_keeps_at_most_what_was_promised(starter_path: Path):
    mx.clear_cache()
    before = mx.get_active_memory()
    loaded = engine.load(starter_path, kernels="stock")
    kept = mx.get_active_memory() - before
    tensors = open_model(starter_path).tensors.values()
    exact = [t for t in tensors if RESIDENT_BITS.get(t.type.name) != 8 or t.type.name == "Q8_0"]
    assert len(exact) == len(tensors) == 272
    assert kept <= 1.40 * sum(t.size_bytes for t in exact)
    assert kept == pytest.approx(sum(resident_bytes(t, "cpu", "stock") for t in tensors), rel=0.01)
    assert loaded.config.layers == 30


def test_the_starter_as_a_mixtral_of_clones_gives_the_same_logits(
    model: engine.Model, starter_path: Path, kernels: str, tmp_path: Path
):
    """All experts equal: whichever the router chooses, weights of sum 1 give the dense layer."""
    tensors = [copy for tensor in all_tensors(starter_path) for copy in cloned(tensor)]
    rng = np.random.default_rng(0)
    width, layers = model.config.width, model.config.layers
    for layer in range(layers):
        router = rng.normal(size=(EXPERTS, width)).astype(np.float32)
        name = f"blk.{layer}.ffn_gate_inp.weight"
        tensors.append(Tensor(name, router.shape, "F32", router))
    changes = {"llama.expert_count": EXPERTS, "llama.expert_used_count": 2}
    mixtral = engine.load(rewrite(starter_path, tmp_path / "m.gguf", tensors, changes), kernels)
    tokens = CASES[0]["prompt_ids"][:12]
    dense = np.array(model.logits(tokens))
    assert mixtral.config.experts is not None
    rms = row_rms(np.array(mixtral.logits(tokens)), dense)
    assert np.median(rms) < CLONE_ERROR[kernels] * dense.std()
    # Decoded tokens: a prompt's may use bfloat16 tiles in the dense model, and bytes in experts.
    alone = [row_rms(decoded(mixtral, t)[None], decoded(model, t)[None])[0] for t in tokens]
    assert min(alone) < 1e-5 * dense.std()  # where nothing lies on the edge of a rounding


def decoded(model: engine.Model, token: int) -> np.ndarray:
    return np.array(model.forward(mx.array([token]), model.new_cache(context=16)))


def cloned(tensor: Tensor) -> list[Tensor]:
    """A dense feed-forward matrix as a stack of equal experts; other tensors as they are."""
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        if tensor.name.endswith(f".{name}.weight"):
            stack = tensor.name.replace(name, name + "_exps")
            return [Tensor(stack, (EXPERTS, *tensor.shape), tensor.type, tensor.blob() * EXPERTS)]
    return [tensor]
