"""Describe tools to a model whose chat template has no place for them, in Hermes' form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DESCRIPTION = """\
# Tools

You may call one or more functions to assist with the user query. Their signatures are:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object in this form:
{form}"""

Message = dict[str, Any]


def described(messages: Sequence[Message], tools: Sequence[Any], form: str) -> list[Message]:
    """Return the messages with a description of the tools in the system message.

    form: what a call looks like.
    """
    rows = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = DESCRIPTION.format(tools=rows, form=form)
    if messages and messages[0].get("role") in ("system", "developer"):
        first = {**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{text}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which past calls and their results are text.

    Adjacent results become one message of the user.
    """
    found: list[Message] = []
    for message in messages:
        plain = _as_text(message)
        merges = message.get("role") == "tool" and found and found[-1].get("role") == "user"
        if merges:
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n{plain['content']}"}
        else:
            found.append(plain)
    return found


def _as_text(message: Message) -> Message:
    if message.get("role") == "tool":
        result = f"<tool_response>\n{message.get('content')}\n</tool_response>"
        return {"role": "user", "content": result}
    if not (calls := message.get("tool_calls")):
        return message
    blocks = "\n".join(f"<tool_call>\n{_call(call['function'])}\n</tool_call>" for call in calls)
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": f"{message.get('content') or ''}\n{blocks}".strip()}


def _call(function: Message) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return json.dumps(call, ensure_ascii=False)
