"""Small random mixtures of other shapes than the stored models', against their float32 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engine
from engine.device import backend
from engine.gguf.reader import open_model
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.native import unavailable_reason
from engine.kernels.select import select
from support.gguf_writer import Tensor
from support.models import EXACT, HERE, row_rms
from support.rewrite import all_tensors, rewrite
from support.tensors import random_tensor

SOURCE = HERE / "mixtral" / "model.gguf"
KEY_DIM, VOCAB = 16, 323
TYPES = [block.name for block in TYPE_BY_NAME.values() if block.weights > 1]
TOKENS = list(range(3, 60))

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(
        backend() != "cpu" or unavailable_reason() is not None, reason="no native kernels"
    ),
]


@pytest.fixture
def isas():
    yield select("native").native.isas()
    select("native")  # the best again, for the tests that follow


def write_models(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """Write a mixture of a type and of random shape, and the same in float32.

    Queries and keys are small float32 matrices, and every expert is used: otherwise rounding would
    decide between tokens or experts.
    """
    rng, block = np.random.default_rng(seed), TYPE_BY_NAME[name].weights
    most = 1 + 384 // block
    width, mixed, hidden = (int(rng.integers(1, most + 1)) * block for _ in range(3))
    heads, experts = mixed // KEY_DIM, int(rng.integers(2, 8))
    shapes = {
        "attn_q": (mixed, width),
        "attn_k": (KEY_DIM, width),
        "attn_v": (KEY_DIM, width),
        "attn_output": (width, mixed),
        "ffn_gate_inp": (experts, width),
        "ffn_gate_exps": (experts, hidden, width),
        "ffn_up_exps": (experts, hidden, width),
        "ffn_down_exps": (experts, width, hidden),
        "token_embd": (VOCAB, width),
        "output": (VOCAB, width),
    }
    packed, floats = [], []
    for tensor in all_tensors(SOURCE):
        shape = shapes.get(str(tensor.name).removesuffix(".weight").rpartition(".")[2])
        if shape is None:  # a norm
            ones = np.ones(width, "<f4")
            made = exact = Tensor(tensor.name, (width,), "F32", ones)
        elif any(part in str(tensor.name) for part in ("attn_q", "attn_k", "gate_inp")):
            values = rng.normal(0, 0.3 * width**-0.5, shape).astype("<f4")
            made = exact = Tensor(tensor.name, shape, "F32", values)
        else:
            blocks, _, weights = random_tensor(name, shape, int(rng.integers(1 << 30)))
            made = Tensor(tensor.name, shape, name, blocks)
            exact = Tensor(tensor.name, shape, "F32", weights.astype("<f4"))
        packed.append(made)
        floats.append(exact)
    metadata = open_model(SOURCE).metadata
    more = [f"<{i}>" for i in range(VOCAB - len(metadata["tokenizer.ggml.tokens"]))]
    changes = {
        "llama.embedding_length": width,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": 1,
        "llama.expert_count": experts,
        "llama.expert_used_count": experts,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], *more],
        "tokenizer.ggml.token_type": np.array(
            [*metadata["tokenizer.ggml.token_type"], *[1] * len(more)], np.int32
        ),
    }
    return (
        rewrite(SOURCE, folder / "packed.gguf", packed, changes),
        rewrite(SOURCE, folder / "floats.gguf", floats, changes),
    )


@pytest.mark.parametrize("name", TYPES)
def test_a_mixture_of_any_shape_has_the_logits_of_its_weights(name: str, tmp_path: Path, isas):
    packed, floats = write_models(tmp_path, name, TYPES.index(name))
    expected = np.array(engine.load(floats, kernels="stock").logits(TOKENS))
    assert expected.shape == (len(TOKENS), VOCAB)
    for kernels, isa in [("stock", None), *(("native", isa) for isa in isas)]:
        model = engine.load(packed, kernels=kernels, isa=isa)
        cache = model.new_cache(context=len(TOKENS), kv_type="f32")
        decoded = np.stack([np.array(model.step([token], cache)) for token in TOKENS[:9]])
        for logits in (np.array(model.logits(TOKENS)), decoded):
            difference = np.median(row_rms(logits, expected[: len(logits)])) / expected.std()
            assert difference < (1e-4 if isa is None and name in EXACT else 0.05), (kernels, isa)
