"""Anthropic's protocol on a real server."""

import pytest

from support.program import templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process
TOOL = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
    },
}
# The model's noise, after thinking that the prompt opens.
THINKING = CHATML.replace(
    "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    with serving(home, templated(home, THINKING, "granitehybrid"), "-c", "4096") as server:
        yield server


def ask(server, **fields):
    given = {"max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]}
    return server.ask("/v1/messages", given | fields)


def test_a_message_with_thinking(server):
    body = ask(server).json
    assert (body["type"], body["role"], body["stop_reason"]) == (
        "message",
        "assistant",
        "max_tokens",
    )
    assert [block["type"] for block in body["content"]] == ["thinking"]
    usage = body["usage"]
    assert usage["output_tokens"] == 8 and usage["input_tokens"] > 0


def test_a_stream_has_whole_blocks(server):
    whole = ask(server).json["content"]
    events = ask(server, stream=True).events()
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert all(name == data["type"] for name, data in events)
    text = "".join(data["delta"].get("thinking", "") for name, data in events
                   if name == "content_block_delta")  # fmt: skip
    assert text == whole[0]["thinking"]
    assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2][1]["usage"]["output_tokens"] == 8


def test_thinking_within_a_budget_then_a_call(server):
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    thinking = {"type": "enabled", "budget_tokens": 5}
    fields = {"tools": [TOOL], "tool_choice": choice, "thinking": thinking, "max_tokens": 400}
    body = ask(server, **fields).json
    call = body["content"][-1]
    assert body["stop_reason"] == "tool_use" and call["name"] == "get_weather"
    assert call["input"]["city"] in ("Rome", "Oslo")
    events = ask(server, stream=True, **fields).events()
    blocks = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert blocks[0]["type"] == "thinking"
    assert blocks[-1]["input"] == {}


def test_a_stop_sequence(server):
    text = ask(server).json["content"][0]["thinking"]
    body = ask(server, stop_sequences=[text[2]]).json
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", text[2])


def test_a_conversation_with_results(server):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rome"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"},
            {"type": "text", "text": "So?"}]},
        {"role": "system", "content": "9,000 tokens left"},
    ]  # fmt: skip
    tools = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    assert ask(server, messages=messages, tools=tools).status == 200


def test_the_billing_block_is_left_out(server):
    def count(*blocks):
        system = [{"type": "text", "text": text} for text in blocks]
        body = {"messages": [{"role": "user", "content": "Hi"}], "system": system}
        return server.ask("/v1/messages/count_tokens?beta=true", body).json["input_tokens"]

    plain = count("Be brief.")
    assert count("x-anthropic-billing-header: cch=12", "Be brief.") == plain
    assert count("You are Bob.", "Be brief.") > plain


def test_errors_have_their_form(server):
    for status, fields in (
        (400, {"messages": []}),
        (400, {"messages": [{"role": "wizard", "content": ""}]}),
        (400, {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        (400, {"messages": [{"role": "user", "content": "a b " * 9000}]}),
        (400, {"max_tokens": 0}),
    ):
        reply = ask(server, **fields)
        assert reply.status == status
        assert reply.json["type"] == "error"
        assert reply.json["error"]["type"] == "invalid_request_error"
