"""Router statistics, compared with a NumPy router that reads the file's tensors."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.architectures.registry import (
    ARCHITECTURES,
    SIGMOID,
    SOFTMAX,
    SOFTMAX_OF_CHOSEN,
    SPARSE_MIXER,
    SQRT_SOFTPLUS,
)
from engine.gguf.reader import open_model
from engine.kernels.native.fused import FusedLayers
from engine.nn.config import ExpertConfig
from engine.nn.moe import Experts
from engine.nn.router_stats import FOLD_AT, REUSE, WARM, RouterStats, covering, entropy_bits
from engine.nn.weights import Weights
from support.models import HERE, Stored, stored_models

GREEDY = engine.Settings(temperature=0, max_tokens=12, ignore_end=True)
ROUTED = [
    stored
    for stored in stored_models(set(ARCHITECTURES))
    if not stored.quantized
    and any("ffn_gate_inp" in name for name in open_model(stored.model).tensors)
]
QWEN = Stored(HERE / "qwen3moe")


def chosen_by_numpy(logits: np.ndarray, experts: ExpertConfig, bias: np.ndarray | None):
    """Return the ids (T, k) for float64 logits (T, E), in no particular order."""
    scores = logits
    if experts.gating == SIGMOID:
        scores = 1 / (1 + np.exp(-logits))
    elif experts.gating == SOFTMAX:
        scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
    elif experts.gating == SQRT_SOFTPLUS:
        scores = np.sqrt(np.logaddexp(logits, 0))
    else:
        assert experts.gating in (SOFTMAX_OF_CHOSEN, SPARSE_MIXER)  # both choose the largest logits
    if bias is not None:
        scores = scores + bias
    if experts.groups > 1:
        grouped = np.sort(scores.reshape(len(scores), experts.groups, -1), axis=-1)
        best = grouped[..., -(1 if experts.gating == SOFTMAX else 2) :].sum(axis=-1)
        for row, groups in zip(scores, np.argsort(-best)[:, experts.groups_used :], strict=True):
            row.reshape(experts.groups, -1)[groups] = -np.inf
    return np.argsort(-scores, kind="stable")[:, : experts.used]


def hits_by_numpy(stored: Stored, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Count hits with NumPy, from each router's inputs and its tensors in the file."""
    model = engine.load(stored.model, kernels="stock")
    experts = model.config.experts
    weights = Weights(open_model(stored.model), model.kernels)
    seen = []
    run = Experts.__call__

    def record(
        self: Experts, x: mx.array, scored: mx.array | None = None, ids: mx.array | None = None
    ) -> mx.array:
        seen.append(x if scored is None else scored)
        return run(self, x, scored, ids)

    with monkeypatch.context() as patch:
        patch.setattr(Experts, "__call__", record)
        mx.eval(model.logits(tokens))
    layers = [layer for layer in range(model.config.layers) if model.config.routed(layer)]
    assert len(seen) == len(layers)
    hits = np.zeros((len(layers), experts.count), np.int64)
    for row, (layer, x) in enumerate(zip(layers, seen, strict=True)):
        experts = model.config.experts.of_layer(layer)
        tensors = {
            name: np.array(weights.array(f"blk.{layer}.{name}", *shape), np.float64)
            for name, shape in [
                ("ffn_gate_inp.weight", (experts.count, model.config.width)),
                ("ffn_gate_inp.bias", (experts.count,)),
                ("exp_probs_b.bias", (experts.count,)),
                ("exp_probs_b", (experts.count,)),  # as older files name it
            ]
            if f"blk.{layer}.{name}" in weights
        }
        logits = np.array(x, np.float64) @ tensors["ffn_gate_inp.weight"].T
        logits += tensors.get("ffn_gate_inp.bias", 0)
        if row < experts.hashed_layers:  # every layer of these models is routed
            table = f"blk.{layer}.ffn_gate_tid2eid.weight"
            ids = np.array(weights.table(table, model.config.vocab, experts.used))[tokens]
        else:
            ids = chosen_by_numpy(
                logits, experts, tensors.get("exp_probs_b.bias", tensors.get("exp_probs_b"))
            )
        hits[row] = np.bincount(ids.ravel(), minlength=experts.count)
    return hits


def test_every_kind_of_router_is_among_the_stored_models():
    configs = [engine.load(stored.model).config.experts for stored in ROUTED]
    kinds = {SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SPARSE_MIXER, SQRT_SOFTPLUS}
    assert {c.gating for c in configs} == kinds
    assert any(c.hashed_layers for c in configs)
    assert any(c.groups > 1 for c in configs) and any(c.shared_width for c in configs)
    assert any(c.weight_on_input and c.used == 1 for c in configs)
    assert any(c.first for c in configs)


@pytest.mark.parametrize("stored", ROUTED, ids=lambda stored: stored.name)
def test_hits_are_those_that_numpy_counts(
    stored: Stored, kernels: str, monkeypatch: pytest.MonkeyPatch
):
    prompt = stored.expected()["tokens"].tolist()[-40:]
    model = engine.load(stored.model, kernels=kernels)
    routes = model.count_routes()
    monkeypatch.setattr("engine.model.prefill_chunk", lambda *_: 7)
    cache = model.new_cache(64, kv_type="f32")
    assert len(list(model.generate(prompt, GREEDY, cache))) == 12
    hits = routes.hits()
    assert routes.tokens == len(cache.tokens) == 40 + 11  # the last token was not processed
    used = [model.config.experts.of_layer(layer).used for layer in routes.layers]
    assert (hits.sum(axis=1) == routes.tokens * np.array(used)).all()
    assert np.array_equal(hits, hits_by_numpy(stored, cache.tokens, monkeypatch))


def test_a_dense_model_has_nothing_to_count(kernels: str):
    model = engine.load(HERE / "qwen3" / "model.gguf", kernels=kernels)
    assert model.count_routes() is None and model.routes is None


def test_counting_does_not_change_the_answer(kernels: str):
    prompt = QWEN.expected()["tokens"].tolist()[:20]
    answers = []
    for count in (False, True):
        model = engine.load(QWEN.model, kernels=kernels)
        if count:
            assert model.count_routes() is model.count_routes()
        assert isinstance(model._decoder.layers, FusedLayers) == (kernels == "native")
        answers.append(list(model.generate(prompt, GREEDY, model.new_cache(40))))
    assert answers[0] == answers[1]


def test_a_token_that_ends_the_answer_is_not_counted(kernels: str):
    prompt = QWEN.expected()["tokens"].tolist()[:20]
    model = engine.load(QWEN.model, kernels=kernels)
    free = list(model.generate(prompt, GREEDY, model.new_cache(40)))
    ending = next(i for i in range(1, 12) if free[i] not in free[:i])
    model.tokenizer.eog_ids = frozenset({free[ending]})
    routes, cache = model.count_routes(), model.new_cache(40)
    stream = model.generate(prompt, replace(GREEDY, ignore_end=False), cache)
    assert list(stream) == free[:ending] and stream.finish == "stop"
    assert routes.tokens == len(cache.tokens) == 20 + ending
    assert routes.hits().sum() == routes.tokens * routes.used * len(routes.layers)


def test_an_answer_that_is_broken_off_counts_what_the_cache_took_in(kernels: str):
    prompt = QWEN.expected()["tokens"].tolist()[:20]
    model = engine.load(QWEN.model, kernels=kernels)
    routes, cache = model.count_routes(), model.new_cache(64)
    stream = iter(model.generate(prompt, GREEDY, cache))
    said = [next(stream) for _ in range(3)]
    stream.close()
    assert routes.tokens == len(cache.tokens) == 23
    assert routes.hits().sum() == 23 * routes.used * len(routes.layers)
    routes.reset()
    list(model.generate(prompt + said + [7, 8], GREEDY, cache))
    assert routes.tokens == 2 + 11  # the next turn counts only its new tokens
    assert routes.hits().sum() == routes.tokens * routes.used * len(routes.layers)


def test_a_step_that_is_not_committed_is_forgotten():
    routes = RouterStats(layers=(0, 2), experts=4, used=1)
    for ids, kept in [([[0]], True), ([[3]], False), ([[1]], True)]:
        routes.begin_step()
        routes.record(mx.array(ids))
        routes.record(mx.array([[2]]))
        if kept:
            routes.commit_step()
    assert routes.hits().tolist() == [[1, 1, 0, 0], [0, 0, 2, 0]]
    assert routes.tokens == 2


def test_many_steps_are_counted_on_the_way():
    routes = RouterStats(layers=(0,), experts=2, used=2)
    for _ in range(3 * FOLD_AT):
        routes.begin_step()
        routes.record(mx.array([[[0, 1]]]))
        routes.commit_step()
        assert len(routes._pending) <= FOLD_AT
    assert routes.hits().tolist() == [[3 * FOLD_AT, 3 * FOLD_AT]]
    assert routes.hits().tolist() == [[3 * FOLD_AT, 3 * FOLD_AT]]  # asking changes nothing


def test_entropy_is_that_of_the_shares():
    hits = np.array([[4, 4, 4, 4], [16, 0, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
    assert entropy_bits(hits) == pytest.approx([2.0, 0.0, 1.5, 0.0])


def test_the_busiest_experts_cover_a_share():
    hits = np.array([[5, 4, 1, 0], [0, 0, 10, 0], [25, 25, 25, 25], [0, 0, 0, 0]])
    assert covering(hits, 0.9).tolist() == [2, 1, 4, 0]
    assert covering(hits, 0.5).tolist() == [1, 1, 2, 0]


@pytest.mark.process
@pytest.mark.nightly
def test_counting_costs_at_most_two_percent_of_cpu_time(tmp_path: Path):
    """CPU time over 12 pairs of runs, with layers as wide as a published model's."""
    path = tmp_path / "olmoe.gguf"
    synthesize = Path(__file__).parents[3] / "benchmarks" / "synthesize.py"
    arguments = [str(path), "--model", "olmoe-1b-7b", "--layers", "2"]
    subprocess.run([sys.executable, str(synthesize), *arguments], check=True)
    model = engine.load(path)
    routes = model.count_routes()
    settings = engine.Settings(temperature=0, max_tokens=200, ignore_end=True)
    prompt = list(range(100, 164))

    def cost(counting: bool) -> float:
        model._decoder.routes = routes if counting else None
        model._decoder.layers.watch(routes if counting else None)
        routes.reset()
        cache = model.new_cache(512)
        started = time.process_time()
        for _ in model.generate(prompt, settings, cache):
            pass
        assert routes.hits().sum() == counting * len(routes.layers) * 263 * routes.used
        return time.process_time() - started

    cost(True), cost(False)
    pairs = [
        (cost(True), cost(False)) if n % 2 else (cost(False), cost(True))[::-1] for n in range(12)
    ]
    ratio = statistics.median(counted / plain for counted, plain in pairs)
    print(f"counting: {ratio - 1:+.2%} of CPU time")
    assert ratio <= 1.02


def test_distances_to_the_last_choice_of_an_expert_are_counted():
    stats = RouterStats((0, 1), experts=8, used=1)
    assert stats.reuse() == {}
    # Layer 0 chooses 0, 1, 2, 0, 1, 2, ...: three tokens apart. Layer 1 always chooses 5.
    for start in range(0, WARM + 60, 4):
        stats.begin_step()
        stats.record(mx.array([[(start + token) % 3] for token in range(4)]))
        stats.record(mx.array([[5]] * 4))
        stats.commit_step()
    reuse = stats.reuse()
    assert list(reuse) == list(REUSE)
    assert (reuse[1], reuse[2], reuse[4], reuse[4096]) == (0.5, 0.5, 1, 1)
    stats.reset()
    assert stats.reuse() == {}


def test_an_expert_that_was_never_chosen_before_is_at_no_distance():
    stats = RouterStats((0,), experts=WARM + 9, used=1)
    stats.begin_step()
    stats.record(mx.array([[token] for token in range(WARM + 9)]))
    stats.commit_step()
    assert set(stats.reuse().values()) == {0.0}
