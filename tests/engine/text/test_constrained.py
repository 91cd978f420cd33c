"""Answers held to a JSON schema, and thinking to a budget; tiny models, run for real."""

from __future__ import annotations

import functools
import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

import engine
from engine.errors import ConstraintError, SchemaError
from engine.text.chat_template import ChatTemplate
from engine.text.constrained import Guide, check_schema
from engine.text.reasoning import Kind, find_dialect
from engine.text.tokenizer import from_metadata
from engine.text.vocabulary import TokenType
from support.vocab import byte_vocabulary

HERE = Path(__file__).parents[2] / "fixtures"
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}}
    | {"required": ["a"], "additionalProperties": False},
    {"enum": ["red", "green", "blue"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"const": 7}]},
]
BAD = {
    "[1": "invalid JSON at line 1, column 3",
    "3": "must be an object",
    '{"type": "nonsense"}': "`type` at #",
    '{"$ref": "http://example.org/x"}': "example.org",
    '{"not": {}}': "`not` at #",
    "": "there is no JSON",
    "{" * 2000: "",
}


@pytest.fixture(scope="module")
def model(kernels: str) -> engine.Model:
    return engine.load(HERE / "qwen3moe" / "model.gguf", kernels)


@pytest.fixture
def thinker(model: engine.Model, monkeypatch) -> engine.Model:
    """The same with a template that knows <think>, whose markers are tokens of their own."""
    source = "{{ messages[0].content }}<think>\n"
    monkeypatch.setattr(model, "template", ChatTemplate(source, model.tokenizer))
    return model


def answer(model: engine.Model, guide: Guide, prompt: list[int], seed: int, count: int = 60) -> str:
    settings = engine.Settings(temperature=1.5, seed=seed, max_tokens=count)
    stream = model.generate(prompt, settings, model.new_cache(512), guide=guide)
    text = "".join(stream.text())
    assert stream.finish == "stop", text
    return text


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_an_answer_is_of_its_schema_whatever_the_model_wants(model: engine.Model, schema: dict):
    prompt = model.tokenizer.encode("hello")
    text = json.dumps(schema)
    check_schema(text, "test")
    for seed in range(4):
        value = json.loads(
            answer(model, Guide(model.tokenizer, model.template, prompt, text), prompt, seed)
        )
        if "enum" in schema:
            assert value in schema["enum"]
        elif "anyOf" in schema:
            assert value in (None, 7)
        elif schema["type"] == "array":
            assert 2 <= len(value) <= 3 and all(type(item) is bool for item in value)
        else:
            assert list(value) == ["a"] and 0 <= value["a"] <= 99


def test_a_document_is_one_line_as_pythons_own(model: engine.Model):
    schema = {"type": "object", "required": ["a", "b"], "additionalProperties": False}
    schema["properties"] = {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}}
    prompt = model.tokenizer.encode("x")
    text = answer(
        model, Guide(model.tokenizer, model.template, prompt, json.dumps(schema)), prompt, 1
    )
    assert text == json.dumps(json.loads(text))


def test_control_tokens_are_never_text_of_a_document(model: engine.Model):
    prompt = model.tokenizer.encode("x")
    guide = Guide(model.tokenizer, model.template, prompt, '{"type": "string"}')
    banned = {*model.tokenizer.control.values(), *model.tokenizer.unknown.values()}
    for _ in range(2):  # at the start, and within the text
        allowed = guide.allowed()
        assert allowed is not None
        assert not [id for id in banned if allowed[id].item()]
        guide.accept(model.tokenizer.encode('"')[0])


@pytest.mark.parametrize(("schema", "said"), BAD.items())
def test_a_schema_without_sense_is_an_error_that_names_it(schema: str, said: str):
    with pytest.raises(SchemaError, match=r"^file\.json: ") as caught:
        check_schema(schema, "file.json")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def thinking_then_answer(model: engine.Model, guide: Guide, prompt: list[int], seed: int):
    settings = engine.Settings(temperature=1.0, seed=seed, max_tokens=80)
    stream = model.generate(prompt, settings, model.new_cache(512), guide=guide)
    said = {Kind.THINKING: "", Kind.ANSWER: ""}
    for kind, text in stream.parts():
        said[kind] += text
    return said[Kind.THINKING], said[Kind.ANSWER], stream


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_thinking_ends_when_its_budget_is_spent_and_the_schema_begins(
    thinker: engine.Model, budget: int
):
    assert find_dialect(thinker.tokenizer, thinker.template) is not None
    prompt = thinker.tokenizer.encode("hello<think>\n", markup=True)
    schema = '{"enum": ["red", "green"]}'
    for seed in range(3):
        guide = Guide(thinker.tokenizer, thinker.template, prompt, schema, budget)
        thought, said, stream = thinking_then_answer(thinker, guide, prompt, seed)
        assert json.loads(said) in ("red", "green")
        assert bool(thought.strip()) <= bool(budget)
        closing = len(thinker.tokenizer.encode("\n</think>\n\n", markup=True))
        assert stream.stats.thinking_tokens <= budget + closing


def test_without_a_schema_the_answer_after_the_budget_is_free(thinker: engine.Model):
    prompt = thinker.tokenizer.encode("hello<think>\n", markup=True)
    _, said, stream = thinking_then_answer(
        thinker, Guide(thinker.tokenizer, thinker.template, prompt, None, 3), prompt, 1
    )
    assert said.strip() and stream.finish == "length"


def test_thinking_is_outside_the_schema_and_does_not_end_the_whole(thinker: engine.Model):
    prompt = thinker.tokenizer.encode("hello<think>\n", markup=True)
    guide = Guide(thinker.tokenizer, thinker.template, prompt, '{"enum": ["red"]}')
    allowed = guide.allowed()
    assert allowed is not None
    for id in range(thinker.tokenizer.vocab_size):
        assert allowed[id].item() == (id not in thinker.tokenizer.eog_ids)


def test_where_thinking_is_not_wanted_the_schema_holds_from_the_start(thinker: engine.Model):
    prompt = thinker.tokenizer.encode("hello", markup=True)
    for think, begins in ((False, '"'), (True, "<think>")):
        guide = Guide(thinker.tokenizer, thinker.template, prompt, '{"enum": ["red"]}', None, think)
        allowed = guide.allowed()
        assert allowed is not None
        first = {id for id in range(thinker.tokenizer.vocab_size) if allowed[id].item()}
        texts = {thinker.tokenizer.decode([id], markup=True) for id in first}
        assert all(begins.startswith(text) or text.startswith(begins) for text in texts), texts


def test_the_vocabulary_has_kinds_that_stand_for_no_text(model: engine.Model):
    pieces = model.tokenizer.pieces()
    assert len(pieces) == model.tokenizer.vocab_size
    for id, piece in enumerate(pieces):
        if model.tokenizer._vocabulary.types[id] == TokenType.NORMAL:
            assert piece == model.tokenizer._piece(id)
        if id in model.tokenizer.control.values():
            assert piece is None


THOUGHT = "Let me see: {2} + 2?"
# control tokens, user-defined tokens, template, prompt, what the model thinks up to the answer
DIALECTS = {
    "opened by the prompt": ((), ("<think>", "</think>"), "<think>", "hi<think>\n", "{}</think>"),
    "markers that are words": ((), (), "<think></think>", "hi<think>\n", "{}\n</think>"),
    "opened by the model": ((), ("<think>", "</think>"), "<think>", "hi", "<think>\n{}</think>"),
    "square": (("[THINK]", "[/THINK]"), (), "[THINK]", "hi", "[THINK]{}[/THINK]"),
    "with an answer's markers": (
        (),
        ("<think>", "</think>"),
        "<think></think><response></response>",
        "hi<think>",
        "{}</think>",
    ),
    "harmony": (
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        (),
        "<|channel|>",
        "<|start|>assistant",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}


def made(control: tuple[str, ...], words: tuple[str, ...], source: str) -> SimpleNamespace:
    """All that a guide sees of a model."""
    vocabulary = from_metadata(byte_vocabulary([*control, "<|im_end|>"], words))
    return SimpleNamespace(tokenizer=vocabulary, template=ChatTemplate(source, vocabulary))


def texts(model: SimpleNamespace, guide: Guide) -> set[str]:
    allowed = guide.allowed()
    assert allowed is not None
    ids = [id for id in range(model.tokenizer.vocab_size) if allowed[id].item()]
    return {model.tokenizer.decode([id], markup=True) for id in ids}


def test_a_model_that_ends_no_answer_cannot_be_held_to_a_schema():
    vocabulary = from_metadata(byte_vocabulary())
    with pytest.raises(
        SchemaError, match="no end-of-generation token, which a JSON schema requires"
    ):
        Guide(vocabulary, None, [1], "{}")


@pytest.mark.parametrize("name", DIALECTS)
def test_a_schema_begins_where_the_answer_does_in_every_dialect(name: str):
    control, words, source, start, thinking = DIALECTS[name]
    model = made(control, words, source)
    encode = functools.partial(model.tokenizer.encode, markup=True)
    guide = Guide(model.tokenizer, model.template, encode(start), '{"const": "red"}')
    for id in encode(thinking.replace("{}", THOUGHT)):
        allowed = guide.allowed()
        assert allowed is not None and allowed[id].item()
        guide.accept(id)
    for id in encode('"red"'):
        assert texts(model, guide) == {model.tokenizer.decode([id])}
        guide.accept(id)
    ends = texts(model, guide)
    assert ends and all(encode(text)[0] in model.tokenizer.eog_ids for text in ends)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_spent_budget_leads_to_the_answer_in_every_dialect(name: str):
    control, words, source, start, thinking = DIALECTS[name]
    model = made(control, words, source)
    encode = functools.partial(model.tokenizer.encode, markup=True)
    guide = Guide(model.tokenizer, model.template, encode(start), '{"const": "red"}', budget=5)
    said = ""
    wanted = deque(encode(thinking.replace("{}", THOUGHT * 5)))
    for _ in range(200):
        allowed = guide.allowed()
        assert allowed is not None
        free = [id for id in range(model.tokenizer.vocab_size) if allowed[id].item()]
        id = wanted.popleft() if wanted[0] in free else free[0]
        said += model.tokenizer.decode([id], markup=True)
        guide.accept(id)
        if said.endswith('"red"'):
            break
    assert said.endswith('"red"'), said
    assert THOUGHT not in said


def test_a_schema_that_the_engine_gives_up_is_named_as_the_reason(model: engine.Model):
    keys = {f"key{at}": {"type": "integer"} for at in range(600)}
    prompt = model.tokenizer.encode("Hi")
    guide = Guide(model.tokenizer, None, prompt, json.dumps({"type": "object", "properties": keys}))
    settings = engine.Settings(temperature=0, max_tokens=4)
    with pytest.raises(ConstraintError, match="too complex"):
        list(model.generate(prompt, settings, model.new_cache(64), guide=guide))
