"""Calls are found in streamed text, whatever the pieces; other text passes unchanged."""

# ruff: noqa: E501 - a table of texts
import json

import pytest

from engine.text.reasoning import Kind
from engine.tools.bodies import typed
from engine.tools.dialects import DIALECTS
from engine.tools.parser import CallParser, CallPiece

BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
TYPES = {"city": {"type": "string"}, "n": {"type": "integer"}, "deep": {"type": "object"}}
SCHEMAS = {"get": {"type": "object", "properties": TYPES}}
A, TWO = ("get", {"city": "A"}), ("get", {"n": 2})

CASES = [
    ("hermes", 'Hi.\n<tool_call>\n{"name": "get", "arguments": {"city": "A"}}\n</tool_call>', "Hi.", [A]),
    ("hermes", '<tool_call>{"arguments": {"n": 2}, "name": "get"}</tool_call>', "", [TWO]),
    ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"n\\": 2}"}</tool_call>', "", [TWO]),
    ("hermes", '<tool_call>{"name": "get"}</tool_call>', "", [("get", {})]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"city": "}\\"{"}}</tool_call> ok', "ok",
     [("get", {"city": '}"{'})]),
    ("hermes", "plain <answer> here\n", "plain <answer> here\n", []),
    ("hermes", "a < b, and <tool_calls are not calls", "a < b, and <tool_calls are not calls", []),
    ("qwen-coder", "Ok\n\n<tool_call>\n<function=get>\n<parameter=city>\nA\n</parameter>\n"
     "<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>", "Ok", [("get", {"city": "A", "n": 2})]),
    ("qwen-coder", "<function=get>\n<parameter=city>\n42\n</parameter>\n</function>", "",
     [("get", {"city": "42"})]),
    ("qwen-coder", "<tool_call>\n<function=get>\n<parameter=city>\n a\n  b \n\n</parameter>\n"
     "</function>\n</tool_call>", "", [("get", {"city": " a\n  b \n"})]),
    ("glm", "<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>A</arg_value>\n</tool_call>", "", [A]),
    ("glm", "<tool_call>get<arg_key>n</arg_key><arg_value>2</arg_value></tool_call>"
     "<tool_call>get</tool_call>", "", [TWO, ("get", {})]),
    ("dsml", 'Yes\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get">\n'
     '<｜DSML｜parameter name="city" string="true">A</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
     '<｜DSML｜invoke name="get">\n<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>\n'
     "</｜DSML｜invoke>\n</｜DSML｜function_calls>", "Yes", [A, TWO]),
    ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{"city": "A"}<｜tool▁call▁end｜>'
     '<｜tool▁call▁begin｜>get<｜tool▁sep｜>{"n": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", [A, TWO]),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n"
     '{"city": "A"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", [A]),
    ("kimi", "Sure<|tool_calls_section_begin|><|tool_call_begin|>functions.get:0"
     '<|tool_call_argument_begin|>{"city": "A"}<|tool_call_end|><|tool_calls_section_end|>', "Sure", [A]),
    ("minimax", '<minimax:tool_call>\n<invoke name="get">\n<parameter name="city">A</parameter>\n'
     "</invoke>\n</minimax:tool_call>", "", [A]),
    ("lfm2", '<|tool_call_start|>[get(city="A"), get(n=2)]<|tool_call_end|>done', "done", [A, TWO]),
    ("lfm2", "<|tool_call_start|>[get(deep={'a': [True, null]})]<|tool_call_end|>", "",
     [("get", {"deep": {"a": [True, None]}})]),
    ("mistral", '[TOOL_CALLS][{"name": "get", "arguments": {"city": "A"}}, '
     '{"name": "get", "arguments": {"n": 2}}]', "", [A, TWO]),
    ("mistral", '[TOOL_CALLS]get[ARGS]{"city": "A"}[TOOL_CALLS]get[CALL_ID]x1[ARGS]{"n": 2}', "", [A, TWO]),
    ("granite", '<|tool_call|>[{"name": "get", "arguments": {"city": "A"}}]', "", [A]),
    ("llama3", '{"name": "get", "parameters": {"city": "A"}}', "", [A]),
    ("llama3", 'Here: {"name": "get"}', 'Here: {"name": "get"}', []),
    ("llama3", '{"a": 1} is JSON', '{"a": 1} is JSON', []),
    ("llama4", '[get(city="A"), get(n=2)]', "", [A, TWO]),
    ("llama4", '<|python_start|>[get(city="A")]<|python_end|>', "", [A]),
]  # fmt: skip


def parse(name, text, size):
    parser, words, calls = CallParser(BY_NAME[name], SCHEMAS), "", []
    pieces = []
    for at in range(0, len(text), size):
        pieces += parser.push(Kind.ANSWER, text[at : at + size])
    for piece in [*pieces, *parser.finish()]:
        if not isinstance(piece, CallPiece):
            words += piece[1]
        elif piece.name:
            assert piece.index == len(calls)
            calls.append([piece.id, piece.name, piece.arguments])
        else:
            assert piece.id == calls[piece.index][0]
            calls[piece.index][2] += piece.arguments
    return words, calls


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(("name", "text", "words", "calls"), CASES)
def test_calls_are_found(name, text, words, calls, size):
    found, got = parse(name, text, size)
    assert (found, [(n, json.loads(a)) for _, n, a in got]) == (words, calls)


def test_a_call_that_is_cut_off_keeps_what_arrived():
    words, calls = parse("hermes", '<tool_call>{"name": "get", "arguments": {"city": "Ab', 3)
    assert (words, [call[1:] for call in calls]) == ("", [["get", '{"city": "Ab']])


def test_a_marker_without_a_call_is_text():
    text = "I would write <tool_call> tags " * 12
    assert parse("hermes", text, 4) == (text, [])


def test_a_name_in_a_header_begins_a_call():
    parser = CallParser(BY_NAME["harmony"], SCHEMAS)
    parts = [
        (Kind.THINKING, "hm"),
        (Kind.CALLED, "get"),
        (Kind.COMMENTARY, '{"n":'),
        (Kind.COMMENTARY, "2}"),
    ]
    pieces = [piece for part in parts for piece in parser.push(*part)]
    assert pieces[0] == (Kind.THINKING, "hm")
    assert [(p.index, p.name, p.arguments) for p in pieces[1:]] == [
        (0, "get", ""),
        (0, "", '{"n":'),
        (0, "", "2}"),
    ]


def test_thinking_is_never_a_call():
    parser = CallParser(BY_NAME["hermes"], SCHEMAS)
    text = '<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    assert list(parser.push(Kind.THINKING, text)) == [(Kind.THINKING, text)]


@pytest.mark.parametrize(
    "broken",
    [
        {"type": [[]]},
        {"anyOf": 5},
        {"enum": 5},
        {"type": 5},
        5,
        {"oneOf": [5, {"type": "integer"}]},
    ],
    ids=json.dumps,
)
def test_a_parameter_whose_schema_is_broken_is_still_read(broken):
    assert typed("some text", broken) == "some text"
    assert typed("2", {"anyOf": [{"type": "integer"}, broken]}) == 2


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[" * 5000 + "]" * 5000])
def test_a_value_that_json_cannot_hold_stays_text(text):
    assert typed(text, {"type": "number"}) == text
