"""OpenAI's protocol on a real server: chat, completions, tools, formats and errors."""

import json
import socket
import time

import pytest

from support.program import templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    path = templated(home, CHATML, "granitehybrid")
    with serving(home, path, "-c", "4096", "--parallel", "2") as server:
        yield server


def test_an_answer(server):
    reply = server.chat("Hi")
    body = reply.json
    assert reply.status == 200 and reply.headers["x-conifer-queue-position"] == "0"
    assert (body["object"], body["model"]) == ("chat.completion", "templated.gguf")
    choice, usage = body["choices"][0], body["usage"]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length"
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


def test_a_stream_is_the_answer(server):
    whole = server.chat("Hi").json["choices"][0]["message"]["content"]
    reply = server.chat("Hi", stream=True, stream_options={"include_usage": True})
    events = [data for _, data in reply.events()]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 8
    chunks = [event["choices"][0] for event in events[:-2]]
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole
    assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == ["length"]


def test_fast_tokens_share_chunks_and_none_is_lost(server):
    settings = {"max_tokens": 400, "logit_bias": {"2": -100}, "logprobs": True}
    whole = server.chat("Hi", **settings).json["choices"][0]
    events = [data for _, data in server.chat("Hi", stream=True, **settings).events()]
    chunks = [event["choices"][0] for event in events[1:-2]]
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole["message"]["content"]
    rows = [row for c in chunks if c["logprobs"] for row in c["logprobs"]["content"]]
    assert rows == whole["logprobs"]["content"]
    assert len(chunks) <= len(rows)


def test_usage_is_absent_unless_asked_for(server):
    events = server.chat("Hi", stream=True).events()
    assert not any("usage" in data for _, data in events if data != "[DONE]")


def test_the_same_seed_gives_the_same_answer(server):
    settings = {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01, "frequency_penalty": 0.5}
    texts = {server.chat("Hi", seed=7, **settings).json["choices"][0]["message"]["content"]
             for _ in range(3)}  # fmt: skip
    assert len(texts) == 1


def test_log_probabilities(server):
    body = server.chat("Hi", logprobs=True, top_logprobs=3, max_tokens=4).json
    rows = body["choices"][0]["logprobs"]["content"]
    assert len(rows) == 4
    for row in rows:
        assert row["logprob"] <= 0 and len(row["top_logprobs"]) == 3
        assert row["logprob"] == pytest.approx(row["top_logprobs"][0]["logprob"])
    streamed = server.chat("Hi", logprobs=True, max_tokens=4, stream=True).events()
    found = [
        token
        for _, data in streamed
        if data != "[DONE]" and data["choices"] and data["choices"][0]["logprobs"]
        for token in data["choices"][0]["logprobs"]["content"]
    ]
    assert [row["logprob"] for row in found] == [row["logprob"] for row in rows]


def test_a_logit_bias_decides(server):
    token = server.ask("/tokenize", {"content": "x"}).json["tokens"][0]
    body = server.chat("Hi", logit_bias={str(token): 100}, max_tokens=5).json
    assert body["choices"][0]["message"]["content"] == "xxxxx"


def test_a_plain_completion(server):
    body = server.ask("/v1/completions", {"prompt": "Once", "max_tokens": 5, "temperature": 0}).json
    assert body["object"] == "text_completion" and body["usage"]["completion_tokens"] == 5
    events = server.ask(
        "/v1/completions", {"prompt": "Once", "max_tokens": 5, "temperature": 0, "stream": True}
    ).events()
    text = "".join(data["choices"][0]["text"] for _, data in events if data != "[DONE]")
    assert text == body["choices"][0]["text"]


def test_a_schema(server):
    limits = {"type": "integer", "maximum": 5, "minimum": 1}
    schema = {"type": "object", "properties": {"n": limits}, "required": ["n"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = server.chat("Hi", response_format=form, max_tokens=50).json
    assert 1 <= json.loads(body["choices"][0]["message"]["content"])["n"] <= 5


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call(server, choice):
    fields = {
        "tools": [TOOL],
        "tool_choice": choice,
        "max_tokens": 200,
        "parallel_tool_calls": False,
    }
    body = server.chat("Weather?", **fields).json
    choice = body["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")


def test_a_streamed_call_names_itself_once(server):
    events = server.chat("Weather?", tools=[TOOL], tool_choice="required", max_tokens=200,
                         parallel_tool_calls=False, stream=True).events()  # fmt: skip
    deltas = [
        call
        for _, data in events
        if data != "[DONE]"
        for call in data["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert [bool(d.get("id")) for d in deltas] == [True] + [False] * (len(deltas) - 1)
    assert deltas[0]["type"] == "function" and {d["index"] for d in deltas} == {0}
    arguments = "".join(d["function"]["arguments"] for d in deltas)
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")
    assert events[-2][1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_conversation_with_calls_is_accepted(server):
    call = {"id": "c1", "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}  # fmt: skip
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    body = {"messages": messages, "tools": [TOOL, {"type": "web_search"}], "max_tokens": 3}
    assert server.ask("/v1/chat/completions", body).status == 200
    prompt = server.ask("/apply-template", body).json["prompt"]
    assert "Be brief." in prompt and "sunny" in prompt and '"city": "Rome"' in prompt
    assert "get_weather" in prompt and "web_search" not in prompt


WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "temperature"),
    ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "n"),
    ({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}, "tool_choice"),
    ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "tools"),
    ({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "xml"}},
     "response_format"),
    ({"messages": [{"role": "user", "content": "x"}], "logit_bias": {"a": 1}}, "logit_bias"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_a_wrong_request_names_its_field(server, body, field):
    reply = server.ask("/v1/chat/completions", body)
    assert reply.status == 400 and reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["error"]["param"] == field


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"messages": NaN}']
)
def test_bad_json(server, data):
    assert server.ask("/v1/chat/completions", data).status == 400


def test_a_broken_schema(server):
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    assert server.chat("Hi", response_format=form).status == 400


def test_a_prompt_over_the_context_is_refused_with_both_counts(server):
    reply = server.chat("a b " * 4000)
    message = reply.json["error"]["message"]
    assert reply.status == 400 and reply.json["error"]["code"] == "context_length_exceeded"
    assert "4,096" in message and "tokens" in message


def test_other_paths(server):
    assert server.ask("/v1/embeddings", {"input": "x"}).status == 501
    assert server.ask("/v1/nothing").status == 404
    assert server.ask("/v1/chat/completions").status == 405
    card = server.ask("/v1/models").json["data"][0]
    assert card["id"] == "templated.gguf" and card["context_length"] == 4096
    assert card["parameters"] >= card["active_parameters"] > 0
    assert server.ask("/v1/models/templated.gguf").json == card
    server.chat("Hi")
    metrics = server.ask("/metrics").body.decode()
    assert 'conifer_requests_total{path="/v1/chat/completions",status="200"}' in metrics
    assert "conifer_decoded_tokens_total" in metrics


def test_another_host_is_refused(server):
    assert server.ask("/health", Host="evil.example").status == 403
    assert server.ask("/health", Host="localhost:1").status == 200


def test_no_cors_unless_asked_for(server):
    reply = server.ask("/health", Origin="https://example.org")
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_a_client_that_leaves_frees_its_place(server):
    body = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 3500, "stream": True,
            "logit_bias": {"318": -100}}  # fmt: skip
    data = json.dumps(body).encode()
    for streams in (True, False):
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + (data if streams else data.replace(b"true", b"null")))
            until = time.monotonic() + 20
            while server.ask("/health").json["running"] == 0:
                assert time.monotonic() < until
        begun = time.monotonic()
        while server.ask("/health").json["running"]:
            assert time.monotonic() - begun < 2
