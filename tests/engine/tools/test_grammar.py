"""A model with random weights can write only valid calls when the grammar constrains it."""

import json

import pytest

from engine.errors import SchemaError
from engine.model import load
from engine.sampling import Settings
from engine.text.constrained import Guide
from engine.text.json_document import require_match
from engine.text.reasoning import HarmonyReader, Kind
from engine.tools.dialects import DIALECTS, HARMONY
from engine.tools.grammar import call_constraint
from engine.tools.parser import CallParser, CallPiece
from support.models import HERE

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    return load(HERE / "qwen3moe" / "model.gguf")


def answer(model, constraint, seed, limit=300):
    prompt = model.tokenizer.encode("Call it.")
    guide = Guide(model.tokenizer, None, prompt, constraint=constraint)
    settings = Settings(temperature=1.0, seed=seed, max_tokens=limit)
    stream = model.generate(prompt, settings, model.new_cache(1024), guide=guide)
    return "".join(stream.text()), stream.finish


def parsed(dialect, text):
    parser, calls, words = CallParser(dialect, {"get": SCHEMA}), [], ""
    parts = [(Kind.ANSWER, text)]
    if dialect is HARMONY:
        reader = HarmonyReader()
        reader.names_calls = True
        parts = [*reader.push(text), *reader.finish()]
    for piece in [*(each for part in parts for each in parser.push(*part)), *parser.finish()]:
        if not isinstance(piece, CallPiece):
            words += piece[1] if piece[0] is Kind.ANSWER else ""
        elif piece.name:
            calls.append([piece.name, piece.arguments])
        else:
            calls[piece.index][1] += piece.arguments
    return words, calls


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_forced_call_is_valid(model, dialect):
    constraint = call_constraint(dialect, model.tokenizer, {"get": SCHEMA}, True, False)
    for seed in range(3):
        text, finish = answer(model, constraint, seed)
        words, calls = parsed(dialect, text)
        if text.startswith("<|channel|>analysis") and finish == "length":
            continue  # noise does not stop thinking
        assert (finish, words.strip()) == ("stop", ""), text
        assert [name for name, _ in calls] == ["get"], text
        require_match(calls[0][1], json.dumps(SCHEMA))


@pytest.mark.parametrize("several", [True, False])
def test_several_calls_are_valid(model, several):
    hermes = next(dialect for dialect in DIALECTS if dialect.name == "hermes")
    schemas = {"get": SCHEMA, "stop": {"type": "object", "properties": {}}}
    constraint = call_constraint(hermes, model.tokenizer, schemas, True, several)
    counts = set()
    for seed in range(6):
        text, finish = answer(model, constraint, seed, 900)
        _, calls = parsed(hermes, text)
        counts.add(len(calls))
        for name, arguments in calls if finish == "stop" else ():
            require_match(arguments, json.dumps(schemas[name]))
    assert counts == {1} or several


def test_a_strict_call_is_constrained_from_its_opening_only(model):
    hermes = next(dialect for dialect in DIALECTS if dialect.name == "hermes")
    constraint = call_constraint(hermes, model.tokenizer, {"get": SCHEMA}, False, True)
    prompt = model.tokenizer.encode("Call it.")
    guide = Guide(model.tokenizer, None, prompt, constraint=constraint)
    assert guide.allowed() is None
    for token in model.tokenizer.encode("Well. <tool_call>"):
        assert guide.allowed() is None
        guide.accept(token)
    allowed = guide.allowed()
    assert allowed is not None
    newline, letter = (model.tokenizer.encode(text)[0] for text in ("\n", "x"))
    assert bool(allowed[newline].item()) and not bool(allowed[letter].item())
    whole = '\n{"name": "get", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
    for token in model.tokenizer.encode(whole):
        guide.accept(token)
    assert guide.allowed() is None


BROKEN = [
    {"properties": []},
    {"properties": {"a": 5}},
    {"type": "object", "required": 5},
    {"type": "object", "required": [[]]},
    {"type": "object", "properties": {"a": {"type": "string", "enum": 5}}},
    {"type": "object", "properties": {"a": {"type": []}}},
    {"$schema": 5},
    {"$defs": []},
]


@pytest.mark.parametrize("schema", BROKEN, ids=json.dumps)
def test_no_dialect_has_a_grammar_for_what_is_not_a_schema(model, schema):
    for dialect in DIALECTS:
        with pytest.raises(SchemaError):
            call_constraint(dialect, model.tokenizer, {"get": schema}, True, False)
