"""The conversations that stored template renderings are made from, and their fixed date."""

from __future__ import annotations

from datetime import datetime
from typing import Any

NOW = datetime(2025, 1, 2, 3, 4, 5)
BOS, EOS = "<BOS>", "<EOS>"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Tell the weather in a city, as "text" & <units>.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city, e.g. Łódź"},
                "days": {"type": "integer", "enum": [1, 2, 3]},
                "units": {"type": "string", "default": "C"},
            },
            "required": ["city"],
        },
    },
}
QUESTION = {"role": "user", "content": "  Why is the sky blue?\n"}
TURNS = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "Four.", "reasoning_content": "An easy sum.\nTwo and two."},
    {"role": "user", "content": "And <b>times</b> 3? “Größe” 你好"},
    {"role": "assistant", "content": "Twelve."},
    {"role": "user", "content": "Thanks"},
]


def _with_tools(arguments: Any) -> list[dict[str, Any]]:
    call = {"name": "weather", "arguments": arguments}
    return [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather in Łódź?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "name": "weather", "tool_call_id": "call_1", "content": '{"sky": "grey"}'},
        {"role": "assistant", "content": "Grey."},
        {"role": "user", "content": "And tomorrow?"},
    ]


# Templates differ in the switch they read, so both spellings are given.
THINK = {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}
NO_THINK = {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}

# Arguments of ChatTemplate.render. A call's arguments are a dict to some templates, text to others.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "system": {"messages": [{"role": "system", "content": "Be brief."}, QUESTION]},
    "turns": {"messages": TURNS},
    "tools": {"messages": _with_tools({"city": "Łódź", "days": 2}), "tools": [WEATHER]},
    "tools_text": {"messages": _with_tools('{"city": "Łódź"}'), "tools": [WEATHER]},
    "think": {"messages": [QUESTION], **THINK},
    "no_think": {"messages": [QUESTION], **NO_THINK},
    "turns_no_prompt": {"messages": TURNS[:5], "add_generation_prompt": False},
}
