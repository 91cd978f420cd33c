"""Recurrent layers can be rewound only to a snapshot, and then generate the same tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.fit.memory import buffer_bytes
from engine.gguf.reader import open_model
from engine.nn.cache.cache import REWIND, StateCache
from engine.nn.cache.spec import SNAPSHOTS, kv_bytes
from engine.nn.config import read_config
from support.gguf_writer import Tensor
from support.models import HERE
from support.rewrite import all_tensors, rewrite

NAMES = ("granitehybrid", "qwen35moe", "lfm2moe")
PROMPT = np.random.default_rng(3).integers(3, 300, 90).tolist()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, kernels: str) -> engine.Model:
    return engine.load(HERE / request.param / "model.gguf", kernels=kernels)


def answer(model: engine.Model, tokens: list[int], cache=None, count: int = 8):
    settings = engine.Settings(temperature=0, max_tokens=count, ignore_end=True)
    stream = model.generate(tokens, settings, cache)
    return list(stream), stream.stats.cached_tokens


def turns(model: engine.Model) -> dict[str, tuple[list[int], int]]:
    """Return second turns after PROMPT and its answer, each with its number of cached tokens."""
    first, _ = answer(model, PROMPT)
    held, kept = len(PROMPT) + len(first) - 1, len(PROMPT) - REWIND
    return {
        "goes on": ([*PROMPT, *first, 5, 6, 7], held),
        "stops one token early": ([*PROMPT, *first[:-2], 5, 6, 7], held - 1),
        "asks again": (PROMPT, kept),
        "drops the answer's opening": ([*PROMPT[:-3], 9, 9, *first], kept),
        "changes the middle": ([*PROMPT[:40], 9, *PROMPT[41:]], 0),
    }


def test_a_second_turn_answers_as_a_fresh_run_does(model: engine.Model):
    for what, (tokens, reused) in turns(model).items():
        cache = model.new_cache(context=256, kv_type="f32")
        answer(model, PROMPT, cache)
        assert answer(model, tokens, cache) == (answer(model, tokens)[0], reused), what


def test_a_turn_that_ended_early_leaves_a_state_to_go_on_from(model: engine.Model):
    """The step launched ahead of an end token has already advanced the state."""
    cache = model.new_cache(context=256, kv_type="f32")
    settings = engine.Settings(temperature=0, max_tokens=8, ignore_end=True)
    stream = iter(model.generate(PROMPT, settings, cache))
    first = [next(stream) for _ in range(3)]
    del stream
    tokens = [*PROMPT, *first[:2], 11, 12]
    assert answer(model, tokens, cache)[0] == answer(model, tokens)[0]


def test_many_turns_on_one_cache_equal_fresh_runs(model: engine.Model):
    draw = np.random.default_rng(0)
    cache = model.new_cache(context=512, kv_type="f32")
    tokens = PROMPT[:5]
    for _ in range(8):
        tokens = tokens[: int(draw.integers(1, len(tokens) + 1))]
        tokens = [*tokens, *draw.integers(3, 300, int(draw.integers(1, 40))).tolist()]
        found, _ = answer(model, tokens, cache, count=4)
        assert found == answer(model, tokens, count=4)[0]
        tokens = tokens + found


def test_a_state_cache_keeps_the_newest_the_one_before_and_the_mark():
    cache = StateCache(context=1000)
    assert cache.state(0) is None and cache.rewindable_length(5) == 0
    for end in cache.stops(0, 100):
        cache.save(end, (mx.array(end),))
    for end in (101, 102, 103):
        assert cache.stops(end - 1, 1) == [end]
        cache.save(end, (mx.array(end),))
    assert [cache.rewindable_length(at) for at in (50, 84, 101, 102, 103)] == [0, 84, 84, 102, 103]
    state = cache.state(84)
    assert state is not None and state[0].item() == 84


def test_a_state_cache_that_went_back_forgets_what_came_later():
    cache = StateCache(context=1000)
    for end in (*cache.stops(0, 100), 101):
        cache.save(end, (mx.array(end),))
    for end in cache.stops(84, 10):
        cache.save(end, (mx.array(-end),))
    assert [cache.rewindable_length(at) for at in (84, 94, 101)] == [84, 94, 94]


def test_a_state_of_other_tokens_is_not_taken_for_one_of_these():
    cache = StateCache(context=1000)
    for start, count in ((0, 94), (78, 5), (83, 1)):
        for end in cache.stops(start, count):
            cache.save(end, (mx.array(end),))
    assert [cache.rewindable_length(at) for at in (82, 83, 84)] == [78, 83, 84]
    assert cache.stops(78, 6) == [84]  # six different tokens, so the snapshot at 83 is invalid
    cache.save(84, (mx.array(-84),))
    assert [cache.rewindable_length(at) for at in (83, 84)] == [78, 84]


@pytest.mark.parametrize("name", NAMES)
def test_states_count_in_the_need_whatever_the_context(name: str, kernels: str):
    config = read_config(open_model(HERE / name / "model.gguf").metadata)
    model = engine.load(HERE / name / "model.gguf", kernels=kernels)
    cache = model.new_cache(context=256, kv_type="f32")
    answer(model, PROMPT, cache)
    if isinstance(cache.layers, list):
        kept = [layer.states for layer in cache.layers if isinstance(layer, StateCache)]
        assert all(len(states) <= SNAPSHOTS for states in kept)
        held = [sum(array.nbytes for array in states[max(states)]) for states in kept]
    else:
        held = [cache.layers.state_bytes // SNAPSHOTS]
    layers = [spec.state_values for spec in config.cache_specs]
    assert sum(held) == 4 * sum(layers)
    attention = dataclasses.replace(config, recurrent=None)
    states = kv_bytes(config.cache_specs, 256, "f16") - kv_bytes(attention.cache_specs, 256, "f16")
    assert states == SNAPSHOTS * sum(held)


@pytest.mark.parametrize("chosen", ["native", "stock"])
def test_what_a_recurrent_layer_holds_of_a_prompt_counts_as_buffers(chosen: str):
    file = open_model(HERE / "granitehybrid" / "model.gguf")
    config = read_config(file.metadata)
    recurrent = config.recurrent
    assert recurrent is not None

    def need(tokens: int, inner: int) -> int:
        wider = dataclasses.replace(config, recurrent=dataclasses.replace(recurrent, inner=inner))
        return buffer_bytes(wider, file.tensors, "cpu", tokens, "f16", chosen)

    # Each extra value needs 8 float32 buffers per token, for at most 512 tokens.
    assert need(512, 50_001) - need(512, 50_000) == 8 * 4 * 512
    assert need(4096, 50_001) - need(4096, 50_000) == 8 * 4 * 512
    assert need(10, 50_001) - need(10, 50_000) == 8 * 4 * 10


def test_a_file_of_one_projection_for_the_delta_net_is_read(tmp_path: Path, kernels: str):
    """Early qwen3next files store q, k, v and z in one tensor with one section per key head."""
    source = HERE / "qwen3next" / "model.gguf"
    groups, state, values, width = (
        2,
        32,
        64,
        64,
    )  # values: total width of the value heads that share a key head
    tensors = {tensor.name: tensor for tensor in all_tensors(source)}
    for layer in range(3):
        qkv, z = (
            np.frombuffer(tensors.pop(f"blk.{layer}.attn_{part}.weight").blob(), np.float32)
            for part in ("qkv", "gate")
        )
        q, k, v = np.split(qkv.reshape(-1, width), [groups * state, 2 * groups * state])
        sections = [
            part.reshape(groups, rows, width)
            for part, rows in ((q, state), (k, state), (v, values), (z, values))
        ]
        joined = np.concatenate(sections, axis=1).reshape(-1, width)
        name = f"blk.{layer}.ssm_in.weight"
        tensors[name] = Tensor(name, joined.shape, "F32", np.ascontiguousarray(joined))
    legacy = rewrite(source, tmp_path / "legacy.gguf", list(tensors.values()))
    logits = [
        np.array(engine.load(path, kernels=kernels).logits(PROMPT)) for path in (legacy, source)
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)
