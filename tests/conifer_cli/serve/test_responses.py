"""OpenAI's Responses protocol on a real server."""

import json

import pytest

from support.program import templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    with serving(home, templated(home, CHATML, "granitehybrid"), "-c", "4096") as server:
        yield server


def ask(server, **fields):
    given = {"input": "Hi", "max_output_tokens": 8, "temperature": 0}
    return server.ask("/v1/responses", given | fields)


def test_a_response(server):
    body = ask(server, instructions="Be brief.").json
    assert (body["object"], body["status"]) == ("response", "incomplete")
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = body["output"]
    assert item["type"] == "message" and item["content"][0]["type"] == "output_text"
    assert body["usage"]["output_tokens"] == 8


def test_a_stream_numbers_its_events(server):
    whole = ask(server).json["output"][0]["content"][0]["text"]
    events = ask(server, stream=True).events()
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    names = [name for name, _ in events]
    assert names[:4] == ["response.created", "response.in_progress",
                         "response.output_item.added", "response.content_part.added"]  # fmt: skip
    assert names[-4:] == ["response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.incomplete"]  # fmt: skip
    deltas = [data["delta"] for name, data in events if name == "response.output_text.delta"]
    assert "".join(deltas) == whole == events[-1][1]["response"]["output"][0]["content"][0]["text"]


UNKNOWN = [
    {"type": "web_search"},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
    {"type": "local_shell"},
    {"type": "image_generation"},
]


def test_unknown_tools_are_ignored_and_namespaces_flattened(server):
    space = {"type": "namespace", "name": "mcp", "tools": [TOOL]}
    body = ask(server, tools=[*UNKNOWN, space], tool_choice="required", max_output_tokens=200,
               parallel_tool_calls=False).json  # fmt: skip
    (call,) = [item for item in body["output"] if item["type"] == "function_call"]
    assert body["status"] == "completed" and call["name"] == "get_weather"
    assert json.loads(call["arguments"])["city"] in ("Rome", "Oslo")
    assert ask(server, tools=UNKNOWN).status == 200


def test_a_streamed_call(server):
    events = ask(server, tools=[TOOL], tool_choice="required", max_output_tokens=200,
                 parallel_tool_calls=False, stream=True).events()  # fmt: skip
    pieces = [d["delta"] for n, d in events if n == "response.function_call_arguments.delta"]
    done = [d for n, d in events if n == "response.function_call_arguments.done"]
    assert "".join(pieces) == done[0]["arguments"]
    assert events[-1][0] == "response.completed"


def test_a_conversation_of_items(server):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "get_weather",
         "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "Sunny."}]},
        {"role": "user", "content": "Thanks"},
    ]  # fmt: skip
    assert ask(server, input=items, tools=[TOOL]).status == 200


def test_a_schema(server):
    form = {"type": "json_schema", "name": "c", "schema": TOOL["parameters"], "strict": True}
    body = ask(server, text={"format": form}, max_output_tokens=60).json
    assert json.loads(body["output"][0]["content"][0]["text"])["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": []}, "input"), ({"input": 5}, "input"),
     ({"input": [{"role": "wizard", "content": ""}]}, "input[0].role"),
     ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0]"),
     ({"previous_response_id": "resp_1"}, "previous_response_id")],
)  # fmt: skip
def test_errors(server, fields, param):
    reply = ask(server, **fields)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
