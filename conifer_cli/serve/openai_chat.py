"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

from conifer_cli.options import MAX_SEED, MAX_TOKENS
from conifer_cli.serve import fields
from conifer_cli.serve.answer import Answer, Ask, Messages, TextPiece, TokenChance
from conifer_cli.serve.fields import BadRequest, Body
from conifer_cli.serve.tools import parsed_arguments, read_tools
from conifer_cli.serve.web import (
    PULSE,
    STOPPING,
    event,
    expected,
    openai_error,
    status_of,
    words_of,
)
from conifer_cli.session.session import JSON_OBJECT
from engine.serving.processors import MAX_TOP
from engine.serving.scheduler import Finished
from engine.text.constrained import check_schema
from engine.text.reasoning import Kind
from engine.tools.parser import CallPiece

ROLES = ("system", "developer", "user", "assistant", "tool")
# Field of the request, field of Settings, lowest and highest value.
SAMPLING = (
    ("temperature", "temperature", 0.0, 10.0),
    ("top_p", "top_p", 0.0, 1.0),
    ("min_p", "min_p", 0.0, 0.999),
    ("repetition_penalty", "repetition_penalty", 0.01, 100.0),
    ("repeat_penalty", "repetition_penalty", 0.01, 100.0),
    ("presence_penalty", "presence_penalty", -2.0, 2.0),
)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
MIN_TOP_P = 1e-6  # clients send 0 for the most likely token only


def read_chat(body: Body, client: str = "") -> Ask:
    """Read a request. Raises BadRequest or SchemaError."""
    messages = read_messages(fields.listed(body, "messages"))
    if not messages:
        raise BadRequest("messages must not be empty", "messages")
    tools = read_tools(
        fields.listed(body, "tools"),
        body.get("tool_choice"),
        fields.flag(body, "parallel_tool_calls", True),
    )
    wants = fields.flag(body, "logprobs")
    top = fields.whole(body, "top_logprobs", 0, MAX_TOP)
    ask = read_common(body, client)
    variables = dict(fields.mapping(body, "chat_template_kwargs"))
    if not variables.keys().isdisjoint(("self", "messages")):
        raise BadRequest("chat_template_kwargs cannot set self or messages", "chat_template_kwargs")
    think = variables.pop("enable_thinking", ask.think)
    return replace(
        ask,
        messages=messages,
        tools=tools,
        schema=read_format(fields.mapping(body, "response_format")),
        top_logprobs=(top or 0) if wants else None,
        think=think if isinstance(think, bool) else None,
        variables=variables,
    )


def read_common(body: Body, client: str = "") -> Ask:
    """Read the fields that chat and plain completions share."""
    if fields.whole(body, "n", 1, 128) not in (None, 1):
        raise BadRequest("n must be 1: one answer per request", "n")
    effort = fields.text(body, "reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise BadRequest(
            f"reasoning_effort must be one of {', '.join(EFFORTS)}", "reasoning_effort"
        )
    limits = [fields.whole(body, n, 1, MAX_TOKENS) for n in ("max_completion_tokens", "max_tokens")]
    return Ask(
        model=fields.text(body, "model"),
        sampling=read_sampling(body),
        max_tokens=next((limit for limit in limits if limit is not None), None),
        stop=fields.strings(body, "stop"),
        seed=_seed(body),
        frequency_penalty=fields.number(body, "frequency_penalty", -2, 2) or 0.0,
        logit_bias=_biases(fields.mapping(body, "logit_bias")),
        think=False if effort == "none" else None,
        effort=None if effort in (None, "none") else _plain_effort(effort),
        client=client,
    )


def read_sampling(body: Body) -> dict[str, Any]:
    """Return the sampling settings of a request, as fields of Settings."""
    found: dict[str, Any] = {}
    for name, setting, low, high in SAMPLING:
        if (value := fields.number(body, name, low, high)) is not None:
            found[setting] = value
    if (top_k := fields.whole(body, "top_k", -1, MAX_TOKENS)) is not None:
        found["top_k"] = max(top_k, 0)
    if "top_p" in found:
        found["top_p"] = max(found["top_p"], MIN_TOP_P)
    return found


def read_messages(given: Iterable[Any]) -> Messages:
    """Return messages whose content is text and whose calls have parsed arguments."""
    return [_message(message, f"messages[{at}]") for at, message in enumerate(given)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRequest("each message must be an object", where)
    role = message.get("role")
    role = "tool" if role == "function" else role
    if role not in ROLES:
        raise BadRequest(f"unknown role {role!r}; known are {', '.join(ROLES)}", f"{where}.role")
    found: dict[str, Any] = {
        "role": role,
        "content": fields.plain_text(message.get("content"), f"{where}.content"),
    }
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    thinking = message.get("reasoning_content") or message.get("reasoning")
    if role == "assistant" and isinstance(thinking, str):
        found["reasoning_content"] = thinking
    if role == "assistant" and message.get("tool_calls"):
        calls = fields.listed(message, "tool_calls")
        found["tool_calls"] = [_call(call, f"{where}.tool_calls") for call in calls]
    return found


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest("each call must have a function with a name", where)
    given = function.get("arguments")
    arguments = given if isinstance(given, dict) else parsed_arguments(str(given or ""), where)
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def read_format(form: Body) -> str | None:
    """Return the JSON schema that a response_format demands, or None for plain text."""
    kind = form.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        raise BadRequest(f"unknown response_format {kind!r}", "response_format")
    named = form.get("json_schema", form)
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest("json_schema must have a schema", "response_format")
    text = json.dumps(schema)
    check_schema(text, "response_format")
    return text


def _plain_effort(effort: str) -> str:
    return {"minimal": "low", "xhigh": "high"}.get(effort, effort)


def _seed(body: Body) -> int | None:
    seed = fields.whole(body, "seed", -(1 << 63), MAX_SEED)
    return None if seed is None else seed % (MAX_SEED + 1)


def _biases(given: Body) -> dict[int, float]:
    try:
        found = {int(token): float(bias) for token, bias in given.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest("logit_bias must map token ids to numbers", "logit_bias") from error
    if not all(-100 <= bias <= 100 for bias in found.values()):
        raise BadRequest("each logit_bias must be from -100 to 100", "logit_bias")
    return found


def finish_reason(end: Finished, called: bool) -> str:
    """Return why an answer ended, in OpenAI's words."""
    if end.finish == "length":
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(end: Finished) -> dict[str, Any]:
    """Return the token counts of an answer."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.decoded_tokens,
        "total_tokens": end.prompt_tokens + end.decoded_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": end.thinking_tokens},
    }


def _chances(answer: Answer, chances: Iterable[TokenChance]) -> list[dict[str, Any]]:
    def row(token: int, logprob: float) -> dict[str, Any]:
        data = answer.served.model.tokenizer.token_bytes([token])
        text = data.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}

    return [
        {**row(c.token, c.logprob), "top_logprobs": [row(*each) for each in c.top]} for c in chances
    ]


async def chat_reply(answer: Answer) -> dict[str, Any]:
    """Return the whole answer."""
    texts: dict[Kind, str] = {}
    calls: list[dict[str, Any]] = []
    chances: list[TokenChance] = []
    async for piece in answer:
        if isinstance(piece, TextPiece):
            texts[piece.kind] = texts.get(piece.kind, "") + piece.text
            chances += piece.chances
        elif isinstance(piece, CallPiece):
            add_call(calls, piece)
        elif isinstance(piece, Finished):
            end = piece
    require_done(end)
    content = texts.get(Kind.ANSWER, "")
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if texts.get(Kind.THINKING):
        message["reasoning_content"] = texts[Kind.THINKING]
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(end, bool(calls))}
    choice["logprobs"] = {"content": _chances(answer, chances)} if chances else None
    return {**_head(answer, "chat.completion"), "choices": [choice], "usage": usage_of(end)}


def add_call(calls: list[dict[str, Any]], piece: CallPiece) -> None:
    """Add a piece to the list of calls."""
    if piece.name:
        function = {"name": piece.name, "arguments": ""}
        calls.append({"id": piece.id, "type": "function", "function": function})
    calls[piece.index]["function"]["arguments"] += piece.arguments


def require_done(end: Finished) -> None:
    """Raise BadRequest if the server ended the answer."""
    if end.finish == "interrupted":
        raise BadRequest(STOPPING, status=503)


async def chat_events(answer: Answer, with_usage: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    head = _head(answer, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return event({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in answer:
            if isinstance(piece, TextPiece):
                name = "reasoning_content" if piece.kind is Kind.THINKING else "content"
                rows = {"content": _chances(answer, piece.chances)} if piece.chances else None
                yield chunk({name: piece.text}, logprobs=rows)
            elif isinstance(piece, CallPiece):
                yield chunk({"tool_calls": [_call_delta(piece)]})
            elif isinstance(piece, Finished):
                require_done(piece)
                yield chunk({}, finish_reason(piece, answer.called))
                if with_usage:
                    yield event({**head, "choices": [], "usage": usage_of(piece)})
            else:
                yield PULSE
    except expected() as error:
        yield event(openai_error(status_of(error), *words_of(error)))
    yield event("[DONE]")


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    """Return a piece of a call: id, type and name once, then pieces of the arguments."""
    function: dict[str, Any] = {"arguments": piece.arguments}
    if not piece.name:
        return {"index": piece.index, "function": function}
    function = {"name": piece.name, **function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.served.name,
    }
