"""Requests that no client should send: each is an answer or status 400, and the server goes on."""

import json
import socket
import time

import pytest

from conifer_cli.serve.anthropic import _parsed
from conifer_cli.serve.fields import MAX_DEPTH, BadRequest, parse_body, parse_json
from support.program import templated
from support.serving import CHATML, serving

USER = [{"role": "user", "content": "Hi"}]
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
LONG = {"max_tokens": 3500, "logit_bias": {"318": -100}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    with serving(home, templated(home, CHATML, "granitehybrid"), "-c", "4096") as server:
        yield server
        assert server.ask("/health").json["status"] == "ok"
        assert "Traceback" not in server.log.read_text()


def nested(levels):
    return "[" * levels + "]" * levels


WRONG = [
    (CHAT, {"tool_choice": []}, "tool_choice"),
    (CHAT, {"tool_choice": {"function": {"name": {}}}}, "tool_choice"),
    (CHAT, {"logit_bias": {"-1": 5}}, "logit_bias"),
    (CHAT, {"logit_bias": {"1000000000": 5}}, "logit_bias"),
    (CHAT, {"logit_bias": {str(1 << 64): 5}}, "logit_bias"),
    (CHAT, {"logit_bias": {"1": 10**400}}, "logit_bias"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    (CHAT, {"stream": "yes"}, "stream"),
    (RESPONSES, {"input": [{"type": [], "role": "user", "content": "Hi"}]}, "type"),
    (RESPONSES, {"tool_choice": []}, "tool_choice"),
]


@pytest.mark.process
@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
def test_a_value_of_another_kind_names_its_field(server, path, fields, param):
    given = {"input": "Hi"} if path == RESPONSES else {"messages": USER}
    reply = server.ask(path, {**given, **fields})
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


@pytest.mark.process
def test_thinking_of_another_kind(server):
    fields = {"messages": USER, "max_tokens": 2, "thinking": {"type": []}}
    assert server.ask(MESSAGES, fields).status == 400


@pytest.mark.process
def test_a_request_that_is_refused_leaves_no_answer_running(server):
    fields = {"messages": USER, **LONG, "stream": True, "stream_options": {"include_usage": 1}}
    assert server.ask(CHAT, fields).status == 400
    assert server.ask("/health").json["running"] == 0


@pytest.mark.process
def test_half_of_a_surrogate_pair_is_a_replacement_character(server):
    cut, replaced = (server.ask("/tokenize", {"content": f"a{c}"}).json for c in "\ud83d\ufffd")
    assert cut == replaced
    assert server.chat("cut \ud83d").status == 200
    call = {"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}
    messages = [*USER, {"role": "assistant", "tool_calls": [call]}]
    prompt = server.ask("/apply-template", {"messages": messages}).json["prompt"]
    assert "\ufffd" in prompt


@pytest.mark.process
def test_levels_in_a_request_are_limited(server):
    call = {"function": {"name": "f", "arguments": '{"x": ' + nested(5000) + "}"}}
    reply = server.ask(CHAT, {"messages": [*USER, {"role": "assistant", "tool_calls": [call]}]})
    assert reply.status == 400
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    tool["function"]["parameters"]["x"] = json.loads(nested(500))
    reply = server.ask(CHAT, {"messages": USER, "tools": [tool], "tool_choice": "required"})
    assert reply.status == 400 and "levels" in reply.json["error"]["message"]


@pytest.mark.process
@pytest.mark.parametrize("stream", [True, False])
def test_parameters_that_are_no_schema_are_refused_before_a_stream_begins(server, stream):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"required": 5}}}
    reply = server.chat("Hi", tools=[tool], tool_choice="required", stream=stream)
    assert reply.status == 400 and "required" in reply.json["error"]["message"]
    assert server.chat("Hi", tools=[tool], tool_choice="none", stream=stream).status == 200


@pytest.mark.process
def test_a_client_that_leaves_before_the_end_of_its_body(server):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode())
        time.sleep(0.2)
    time.sleep(0.2)
    assert "Traceback" not in server.log.read_text()
    assert server.chat("Hi").status == 200


def test_parsing_json():
    assert parse_json('{"a": ["\\uD83D\\uDE00", "\\ud83d", "\\\\ud83d"]}') == {
        "a": ["\U0001f600", "\ufffd", "\\ud83d"]
    }
    parse_json(nested(MAX_DEPTH))
    for deep in (nested(MAX_DEPTH + 1), nested(5000), nested(500_000)):
        with pytest.raises(ValueError, match="levels"):
            parse_json(deep)
    assert parse_body(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    for data in ('{"a": 1}'.encode("utf-16"), b'{"a": "\xed\xa0\x80"}', b"5", b"[" * 5000):
        with pytest.raises(BadRequest):
            parse_body(data)


@pytest.mark.parametrize("written", ['{"a": NaN}', '{"a": 1e999}', '{"a": ' + nested(5000) + "}"])
def test_arguments_that_json_cannot_hold_are_left_out(written):
    assert _parsed(written) == {}
    assert _parsed('{"a": 1}') == {"a": 1}
