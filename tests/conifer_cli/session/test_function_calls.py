"""`conifer run --tools` prints calls, and goes on with their results."""

import json

import pytest

from conifer_cli.errors import UsageError
from conifer_cli.session.function_calls import _text_of, read_offer, read_results
from engine.text.reasoning import Kind
from engine.tools.dialects import HERMES
from engine.tools.parser import CallParser
from support.program import run_conifer, templated
from support.serving import CHATML

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}


def written(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.mark.parametrize("document", ["{", "5", "[]", '[{"type": "web_search"}]', '[{"name": 5}]'])
def test_a_wrong_file_of_tools(tmp_path, document):
    with pytest.raises(UsageError):
        read_offer(written(tmp_path / "tools.json", document))


def test_tools_in_both_forms(tmp_path):
    for document in ([TOOL], {"tools": [TOOL]}, [TOOL["function"]]):
        assert list(read_offer(written(tmp_path / "tools.json", document)).schemas) == ["get"]


def test_results(tmp_path):
    calls = [{"id": "c1", "name": "get", "arguments": {"n": 1}, "result": {"sum": 2}}]
    asked, result = read_results(written(tmp_path / "results.json", calls))
    assert asked["tool_calls"][0]["function"] == {"name": "get", "arguments": {"n": 1}}
    assert result == {"role": "tool", "tool_call_id": "c1", "content": '{"sum": 2}'}
    for wrong in ({}, [{"name": "get"}], [5]):
        with pytest.raises(UsageError):
            read_results(written(tmp_path / "results.json", wrong))


def test_calls_are_taken_out_of_the_text():
    calls = []
    text = 'Well.\n<tool_call>{"name": "get", "arguments": {"n": 1}}</tool_call>'
    parts = list(_text_of([(Kind.ANSWER, text)], CallParser(HERMES, {}), calls))
    assert parts == [(Kind.ANSWER, "Well.")]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("get", {"n": 1})]


@pytest.mark.process
def test_the_prompt_has_the_tools_and_the_results(tmp_path):
    model = templated(tmp_path, CHATML, "granitehybrid")
    tools = written(tmp_path / "tools.json", [TOOL])
    results = written(tmp_path / "results.json", [{"name": "get", "result": "5"}])
    words = ("run", model, "-p", "Hi", "-c", "4096", "--max-tokens", "3", "--tools", str(tools))
    for more in ((), ("--tool-results", str(results))):
        done = run_conifer(*words, *more, home=tmp_path)
        assert done.returncode == 0, done.stderr
    alone = run_conifer(*words[:-2], "--tool-results", str(results), home=tmp_path)
    assert alone.returncode == 2 and b"requires --tools" in alone.stderr
