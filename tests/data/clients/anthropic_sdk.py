"""Drive a server with Anthropic's SDK: messages, streams, tools and counts.

Usage: anthropic_sdk.py BASE_URL. Runs in an environment that has the package `anthropic`.
"""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": PARAMETERS}
ask = [{"role": "user", "content": "How is the weather in Rome?"}]
common = {"model": "any", "extra_body": {"temperature": 0}}

whole = client.messages.create(messages=ask, max_tokens=8, **common)
assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 8
with client.messages.stream(messages=ask, max_tokens=8, **common) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == "".join(block.text for block in whole.content if block.type == "text")
assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 8

forced = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
reply = client.messages.create(messages=ask, max_tokens=300, **forced, **common)
(call,) = [block for block in reply.content if block.type == "tool_use"]
assert reply.stop_reason == "tool_use" and call.input["city"] in ("Rome", "Oslo")
with client.messages.stream(messages=ask, max_tokens=300, **forced, **common) as stream:
    kinds = {event.type for event in stream}
    final = stream.get_final_message()
assert "input_json" in kinds and final.stop_reason == "tool_use"
(streamed,) = [block for block in final.content if block.type == "tool_use"]
assert streamed.input == call.input

turn = [
    *ask,
    {"role": "assistant", "content": [block.model_dump() for block in reply.content]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id,
                                  "content": [{"type": "text", "text": "sunny"}]}]},
]  # fmt: skip
tools = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
after = client.messages.create(messages=turn, tools=tools, max_tokens=4, **common)
assert after.usage.output_tokens <= 4

system = [{"type": "text", "text": "x-anthropic-billing-header: cch=1"},
          {"type": "text", "text": "Be brief."}]  # fmt: skip
first = client.messages.count_tokens(messages=ask, system=system, model="any").input_tokens
system[0]["text"] = "x-anthropic-billing-header: cch=123456789"
assert client.messages.count_tokens(messages=ask, system=system, model="any").input_tokens == first
assert client.messages.count_tokens(messages=ask, model="any").input_tokens != first

for wrong in (
    [{"role": "wizard", "content": "x"}],
    [{"role": "user", "content": "a b " * 30000}],
):
    try:
        client.messages.create(model="any", messages=wrong, max_tokens=5)
    except anthropic.BadRequestError as error:
        assert error.body["type"] == "error"
    else:
        raise AssertionError(wrong)
print("ok")
