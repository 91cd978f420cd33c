"""Drive a server with OpenAI's SDK: chat, streams, tools, schemas and responses.

Usage: openai_sdk.py BASE_URL. Runs in an environment that has the package `openai`.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
model = client.models.list().data[0].id
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
ask = [{"role": "user", "content": "How is the weather in Rome?"}]
common = {"model": model, "temperature": 0}

whole = client.chat.completions.create(messages=ask, max_tokens=8, **common)
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 8

stream = client.chat.completions.create(
    messages=ask, max_tokens=8, stream=True, stream_options={"include_usage": True}, **common
)
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == (whole.choices[0].message.content or "")
assert chunks[-1].usage.completion_tokens == 8

forced = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
reply = client.chat.completions.create(messages=ask, max_tokens=300, **forced, **common)
(call,) = reply.choices[0].message.tool_calls
assert reply.choices[0].finish_reason == "tool_calls"
assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")

with client.chat.completions.stream(messages=ask, max_tokens=300, **forced, **common) as events:
    kinds = [event.type for event in events]
    final = events.get_final_completion()
assert "tool_calls.function.arguments.done" in kinds, kinds
assert final.choices[0].message.tool_calls[0].function.name == "get_weather"

turn = [
    *ask,
    reply.choices[0].message.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
]
assert client.chat.completions.create(messages=turn, tools=[TOOL], max_tokens=4, **common).choices

form = {"type": "json_schema", "json_schema": {"name": "c", "schema": PARAMETERS, "strict": True}}
strict = client.chat.completions.create(messages=ask, max_tokens=60, response_format=form, **common)
assert json.loads(strict.choices[0].message.content)["city"] in ("Rome", "Oslo")

response = client.responses.create(
    model=model, input="Hello", max_output_tokens=8, temperature=0, instructions="Be brief."
)
assert response.status == "incomplete" and response.usage.output_tokens == 8
with client.responses.stream(
    model=model, input="Hello", max_output_tokens=8, temperature=0, instructions="Be brief."
) as events:
    kinds = [event.type for event in events]
    final = events.get_final_response() if "response.completed" in kinds else None
assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds
called = client.responses.create(
    model=model,
    input=ask,
    tools=[{"type": "function", **FUNCTION}, {"type": "web_search"}],
    tool_choice="required",
    parallel_tool_calls=False,
    max_output_tokens=300,
)
(item,) = [item for item in called.output if item.type == "function_call"]
assert json.loads(item.arguments)["city"] in ("Rome", "Oslo")
result = {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
after = client.responses.create(
    model=model, input=[*ask, item.model_dump(), result], max_output_tokens=4
)
assert after.output_text is not None

for wrong, kind in (
    ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError),
    ({"messages": [{"role": "user", "content": "a b " * 30000}]}, openai.BadRequestError),
):
    try:
        client.chat.completions.create(model=model, **wrong)
    except kind:
        pass
    else:
        raise AssertionError(wrong)
print("ok")
