"""The contract of every architecture, tested on a small model of each."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine import architectures
from engine.architectures.registry import ARCHITECTURES, builder
from support.models import Stored, stored_models

SOURCES = sorted(path for path in Path(architectures.__file__).parent.glob("*.py"))
MAX_LINES = 300
STORED = {
    s.meta["gguf_architecture"]: s for s in stored_models(set(ARCHITECTURES)) if not s.quantized
}
ROWS: dict[str, set[str]] = defaultdict(set)  # the functions that rows name, by module
for row in ARCHITECTURES.values():
    ROWS[row.build.partition(":")[0]].add(row.build.partition(":")[2] or "build")


@pytest.fixture(params=sorted(ARCHITECTURES))
def stored(request: pytest.FixtureRequest) -> Stored:
    return STORED[request.param]


@pytest.fixture
def model(stored: Stored, kernels: str) -> engine.Model:
    return engine.load(stored.model, kernels=kernels)


def prompt(stored: Stored) -> list[int]:
    return stored.expected()["tokens"].tolist()[-48:]


def fed(model: engine.Model, tokens: list[int], chunk: int) -> np.ndarray:
    """Return the logits after the last token, processing `chunk` tokens at a time."""
    cache = model.new_cache(context=len(tokens), kv_type="f32")
    for start in range(0, len(tokens), chunk):
        logits = model.step(tokens[start : start + chunk], cache)
    return np.array(logits)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() < 1e-3 * b.std())


def test_logits_have_a_row_for_each_token_in_float32(model: engine.Model, stored: Stored):
    tokens = prompt(stored)
    logits = model.logits(tokens)
    assert logits.shape == (len(tokens), model.config.vocab)
    assert logits.dtype == mx.float32
    step = model.step(tokens, model.new_cache(context=len(tokens)))
    assert (step.shape, step.dtype) == ((model.config.vocab,), mx.float32)


@pytest.mark.float32
def test_a_cache_and_its_chunks_change_nothing(model: engine.Model, stored: Stored):
    tokens = prompt(stored)
    alone = np.array(model.logits(tokens))[-1]
    for chunk in (1, 7, 64):
        assert close(fed(model, tokens, chunk), alone), f"chunks of {chunk}"


@pytest.mark.float32
@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3", "gemma4", "gpt-oss", "laguna", "llama4", "qwen2moe"]
)
def test_attention_over_some_queries_at_a_time_changes_nothing(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
):
    tokens = prompt(STORED[name])
    model = engine.load(STORED[name].model, kernels=kernels)
    whole = np.array(model.logits(tokens))
    monkeypatch.setattr("engine.nn.attention.SCORE_BYTES", 0)  # so 16 at a time
    assert close(np.array(model.logits(tokens)), whole)
    assert close(fed(model, tokens, 48), whole[-1])
    assert close(fed(model, tokens, 20), whole[-1])


@pytest.mark.float32
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma4", "gpt-oss", "laguna", "mellum"])
def test_a_window_that_has_forgotten_what_it_cannot_see_changes_nothing(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
):
    tokens = prompt(STORED[name])
    model = engine.load(STORED[name].model, kernels=kernels)
    whole = fed(model, tokens, 48)
    monkeypatch.setattr("engine.nn.cache.cache.WINDOW_SLACK", 3)  # windows contain 16 tokens
    for chunk in (1, 7):
        assert close(fed(model, tokens, chunk), whole), f"chunks of {chunk}"
    cache = model.new_cache(context=48, kv_type="f32")
    model.step(tokens, cache)
    cache.trim(47)
    assert cache.length in (0, 47)
    assert close(np.array(model.step(tokens[cache.length :], cache)), whole)


@pytest.mark.float32
def test_two_sequences_in_turn_do_not_meet(model: engine.Model, stored: Stored):
    tokens = prompt(stored)
    one, other = tokens[:24], tokens[:23:-1]
    caches = [model.new_cache(context=24, kv_type="f32") for _ in range(2)]
    for a, b in zip(one, other, strict=True):
        ends = [np.array(model.step([t], c)) for t, c in zip((a, b), caches, strict=True)]
    assert close(ends[0], fed(model, one, 24))
    assert close(ends[1], fed(model, other, 24))


@pytest.mark.float32
@pytest.mark.parametrize("length", [0, 5, 30, 39, 40])
def test_a_cache_that_went_back_gives_the_same_again(
    model: engine.Model, stored: Stored, length: int
):
    tokens = prompt(stored)
    cache = model.new_cache(context=len(tokens), kv_type="f32")
    model.step(tokens[:30], cache)
    for token in tokens[30:40]:
        model.step([token], cache)
    cache.trim(length)
    assert cache.length <= length
    assert cache.length == length or length < 39  # one token back is always possible
    logits = model.step(tokens[cache.length :], cache)
    assert close(np.array(logits), fed(model, tokens, 48))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_module_is_short_and_does_not_ask_which_architecture_it_is(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    asked = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "architecture"
    ]
    assert not asked


def test_every_module_is_named_by_a_row():
    assert {path.stem for path in SOURCES} - {"__init__", "registry"} == set(ROWS)


@pytest.mark.parametrize("module", sorted(ROWS))
def test_rows_name_exactly_the_public_functions_of_a_module(module: str):
    functions = inspect.getmembers(
        importlib.import_module(f"engine.architectures.{module}"), inspect.isfunction
    )
    public = {
        name: list(inspect.signature(function).parameters.values())
        for name, function in functions
        if function.__module__ == f"engine.architectures.{module}" and name[0] != "_"
    }
    assert set(public) == ROWS[module]
    for config, weights, *more in public.values():
        assert (config.name, weights.name) == ("config", "weights")
        assert all(parameter.default is not parameter.empty for parameter in more)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_has_a_builder(name: str):
    module, _, function = ARCHITECTURES[name].build.partition(":")
    found = builder(name)
    assert (found.__module__, found.__name__) == (
        f"engine.architectures.{module}",
        function or "build",
    )
    assert function != "build", "omit `build`: it is the default"


def test_the_code_in_the_docs_is_the_code():
    root = Path(__file__).parents[3]
    page = (root / "docs" / "adding-an-architecture.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    sources = [path.read_text() for path in SOURCES]
    assert blocks and all(any(block in source for source in sources) for block in blocks)
