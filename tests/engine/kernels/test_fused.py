"""Layers as one task: they are the layers one by one, windows that move on included."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.architectures.registry import ARCHITECTURES
from engine.device import backend
from engine.gguf.reader import TensorInfo, open_model
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.fusion import fuses
from engine.kernels.native import unavailable_reason
from engine.kernels.select import select
from engine.nn.cache.spec import STEP, WINDOW_SLACK
from engine.nn.cache.state import dump, load
from engine.nn.config import read_config
from support.gguf_writer import Tensor
from support.models import HERE, stored_models
from support.rewrite import all_tensors, rewrite

pytestmark = pytest.mark.skipif(
    backend() != "cpu" or unavailable_reason() is not None, reason="no native kernels"
)

# One of each form that the core has.
FUSED = [
    "llama",
    "qwen3moe",
    "mixtral",
    "olmoe",
    "gpt-oss-yarn-exact",
    "deepseek2-lite",
    "deepseek2-v3",
    "bailingmoe2",
    "granitemoe",
    "hunyuan-moe",
    "qwen2moe",
    "granitehybrid",
    "qwen3next",
    "qwen35",
    "qwen35moe",
    "mimo2",
    "nemotron_h",
    "nemotron_h_moe",
    "nemotron_h_moe-latent",
    "kimi-linear",
    "bailingmoe3",
    "lfm2moe",
    "gemma2",
    "gemma3",
    "gemma4",
    "gemma4-e4b",
    "laguna",
    "afmoe",
    "step35",
    "cohere2moe",
    "phimoe-long",
    "llama4",
    "mistral3",
    "mistral4",
    "deepseek32",
    "glm-dsa",
]
# Several residual streams, and layers that choose different numbers of experts.
LAYER_BY_LAYER = {"deepseek4", "qwen4exp", "nemotron_h_moe-puzzle"}


@pytest.mark.parametrize(
    "name", [s.name for s in stored_models(set(ARCHITECTURES)) if not s.quantized]
)
def test_all_other_models_run_as_one_task(name: str):
    stored = next(s for s in stored_models(set(ARCHITECTURES)) if s.name == name)
    model = engine.load(stored.model, kernels="native")
    fused = type(model._decoder.layers).__name__ == "FusedLayers"
    assert fused == (name not in LAYER_BY_LAYER)


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("llama", "ffn_up.bias"),
        ("qwen2moe", "ffn_up_shexp.bias"),
        ("deepseek2-v3", "attn_q_a.bias"),
        ("deepseek2-lite", "attn_output.bias"),
        ("granitehybrid", "ssm_in.bias"),
        ("qwen35", "ssm_out.bias"),
        ("kimi-linear", "ssm_f_a.bias"),
        ("nemotron_h", "ffn_up.bias"),
        ("nemotron_h_moe-latent", "ffn_gate_inp_shexp.weight"),
        ("mimo2", "attn_output.bias"),
        ("qwen35", "attn_gate.bias"),
        ("laguna", "attn_gate.bias"),
        ("lfm2moe", "shortconv.in_proj.bias"),
        ("gemma4-e4b", "inp_gate.bias"),
        ("mimo2", "post_ffw_norm.weight"),
        ("qwen3", "attn_q_norm.weight"),  # of all heads, but of each head for keys
    ],
)
def test_a_tensor_that_the_core_cannot_use_keeps_the_layers_apart(model: str, tensor: str):
    file = open_model(HERE / model / "model.gguf")
    config, name = read_config(file.metadata), f"blk.0.{tensor}"
    assert fuses(config, file.tensors)
    info = TensorInfo(name, (config.heads[0] * config.key_dim,), TYPE_BY_NAME["F32"], 0, 0)
    assert not fuses(config, file.tensors | {name: info})


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_are_the_layers_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch):
    tokens = list(range(3, 120))
    fused = engine.load(HERE / name / "model.gguf", kernels="native")
    monkeypatch.setattr("engine.kernels.native.fused.fuses", lambda config, tensors: False)
    plain = engine.load(HERE / name / "model.gguf", kernels="native")
    assert type(fused._decoder.layers) is not type(plain._decoder.layers)
    expected = np.array(plain.logits(tokens))
    assert np.abs(np.array(fused.logits(tokens)) - expected).max() < 1e-4 * expected.std()


def other_heads(folder: Path, heads: int, key_dim: int) -> Path:
    """Write the mixtral of the stored models with many heads that share one key."""
    source = HERE / "mixtral" / "model.gguf"
    draw, width = np.random.default_rng(0), engine.load(source).config.width
    shapes = {
        "attn_q": (heads * key_dim, width),
        "attn_k": (key_dim, width),
        "attn_v": (key_dim, width),
        "attn_output": (width, heads * key_dim),
    }
    tensors = []
    for tensor in all_tensors(source):
        shape = shapes.get(tensor.name.removesuffix(".weight").rpartition(".")[2])
        if shape:
            values = draw.normal(0, width**-0.5, shape).astype("<f4")
            tensor = Tensor(tensor.name, shape, "F32", values.tobytes())
        tensors.append(tensor)
    changes = {
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": key_dim,
        "llama.attention.value_length": key_dim,
        "llama.rope.dimension_count": key_dim,
    }
    return rewrite(source, folder / f"{heads}.gguf", tensors, changes)


@pytest.mark.parametrize(("heads", "fused"), [(128, True), (129, False), (256, False)])
def test_a_key_that_too_many_heads_share_is_not_for_the_core(
    heads: int, fused: bool, tmp_path: Path
):
    path = other_heads(tmp_path, heads, 4)
    native, stock = (engine.load(path, kernels=name) for name in ("native", "stock"))
    assert (type(native._decoder.layers).__name__ == "FusedLayers") == fused
    tokens = list(range(3, 70))
    expected = np.array(stock.logits(tokens))
    assert np.abs(np.array(native.logits(tokens)) - expected).max() < 1e-3 * expected.std()


def test_steps_launched_before_others_are_read_come_in_order():
    model = engine.load(HERE / "qwen3moe" / "model.gguf", kernels="native")
    tokens = list(range(3, 40))
    cache = model.new_cache(context=64, kv_type="f32")
    lazy = []
    for token in tokens:  # nothing evaluated until all are launched
        lazy.append(model.forward(mx.array([token]), cache))
        cache.tokens.append(token)
    expected = np.array(model.logits(tokens))
    assert np.abs(np.array(lazy[-1]) - expected[-1]).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("ask", [1, 2])  # as soon as it is launched; a little later
@pytest.mark.parametrize("before", [40, 1030])  # tokens; after 1,030 the window moves on
@pytest.mark.parametrize("name", FUSED)
def test_a_part_of_a_prompt_that_is_given_up_was_never_there(
    name: str, before: int, ask: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.kernels.native.fused.CANCELLABLE_BYTES", 0)
    model = engine.load(HERE / name / "model.gguf", kernels="native")
    tokens = np.random.default_rng(0).integers(3, model.config.vocab, before + 200).tolist()
    cache, other = (model.new_cache(len(tokens), kv_type="f32") for _ in range(2))
    model.step(tokens[:before], cache)
    model.step(tokens[:before], other)
    told = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if len(told) == ask:
            raise KeyboardInterrupt

    monkeypatch.setattr("engine.kernels.native._native.ready", lambda _: False)
    with pytest.raises(KeyboardInterrupt):
        model.prefill([9] * 150, cache, stop)
    monkeypatch.undo()
    cache.trim(before)
    assert cache.length == before
    made, expected = (np.array(model.step(tokens[before:], c)) for c in (cache, other))
    assert np.array_equal(made, expected)
    assert told[0] == 0 and all(0 <= done <= 150 for done in told)


def test_layers_refuse_what_does_not_fit_them():
    model = engine.load(HERE / "qwen3moe" / "model.gguf", kernels="native")
    layers, head = model._decoder.layers, model._decoder.head
    width = model.config.width
    caches = layers.new_caches(8, "f16")
    for x, offset in [
        (mx.zeros((1, width + 1)), 0),
        (mx.zeros((width,)), 0),
        (mx.zeros((1, width), dtype=mx.float16), 0),
        (mx.zeros((9, width)), 0),
        (mx.zeros((1, width)), 8),
        (mx.zeros((1, width)), -1),
    ]:
        with pytest.raises(ValueError, match=r"expected float32|outside the cache"):
            layers(x, caches, offset)
    with pytest.raises(ValueError, match="expected float32"):
        head(mx.zeros((1, width - 1)))


def test_a_window_moves_on_and_goes_back_as_far_as_it_holds():
    model = engine.load(HERE / "gpt-oss-yarn-exact" / "model.gguf", kernels="native")
    window = max(model.config.windows)
    slots = window + WINDOW_SLACK + STEP
    tokens = np.random.default_rng(0).integers(3, model.config.vocab, 2 * slots + 100).tolist()
    expected = np.array(model.logits(tokens))
    cache = model.new_cache(context=len(tokens), kv_type="f32")
    for start in range(0, len(tokens), 600):  # more at a time than the window has room for
        made = model.forward(mx.array(tokens[start : start + 600]), cache)
        cache.tokens += tokens[start : start + 600]
    assert np.abs(np.array(made) - expected[-1]).max() < 1e-3 * expected.std()
    cache.trim(len(tokens) - 40)
    assert cache.length == len(tokens) - 40
    for token in tokens[-40:]:
        made = model.forward(mx.array([token]), cache)
        cache.tokens.append(token)
    assert np.abs(np.array(made) - expected[-1]).max() < 1e-3 * expected.std()
    other = model.new_cache(context=len(tokens), kv_type="f32")
    load(model, dump(model, cache), other)
    other.trim(len(tokens) - 1)
    again = model.forward(mx.array(tokens[-1:]), other)
    assert np.array_equal(np.array(again), np.array(made))
    cache.trim(100)  # long gone
    assert cache.length == 0


def test_a_layer_of_the_core_has_the_fields_of_its_struct_only():
    native = select("native").native
    for name in ("Attention", "Latent", "Recurrent", "Conv", "Dense", "Expert"):
        layer = getattr(native, f"{name}Layer")()
        layer.residual = 0.5
        with pytest.raises(AttributeError):
            layer.unknown = 1
        with pytest.raises(TypeError):
            layer.residual = "half"
        with pytest.raises(TypeError):
            layer.norm = mx.ones(4)  # its eps is missing
