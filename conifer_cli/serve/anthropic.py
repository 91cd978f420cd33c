"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from conifer_cli.options import MAX_TOKENS
from conifer_cli.serve import fields
from conifer_cli.serve.answer import Answer, Ask, Messages, TextPiece
from conifer_cli.serve.fields import BadRequest, Body
from conifer_cli.serve.openai_chat import read_sampling, require_done
from conifer_cli.serve.tools import Tools, read_tools
from conifer_cli.serve.web import anthropic_error, event, expected, status_of, words_of
from engine.serving.scheduler import Finished
from engine.text.reasoning import Kind
from engine.tools.parser import CallPiece

# A system block that Claude Code changes with each request, and no model needs.
BILLING = "x-anthropic-billing-header"
THINKING, TEXT = "thinking", "text"


def read_messages_request(body: Body, client: str = "") -> Ask:
    """Read a request. Raises BadRequest."""
    given = fields.listed(body, "messages")
    if not given:
        raise BadRequest("messages must not be empty", "messages")
    messages = _system(body.get("system"))
    for at, message in enumerate(given):
        messages += _message(message, f"messages[{at}]")
    thinking = fields.mapping(body, "thinking")
    think = {"enabled": True, "adaptive": None, "disabled": False}.get(
        fields.text(thinking, "type") or ""
    )
    return Ask(
        model=fields.text(body, "model"),
        messages=messages,
        tools=_tools(body),
        sampling=read_sampling(body),
        max_tokens=fields.whole(body, "max_tokens", 1, MAX_TOKENS),
        stop=fields.strings(body, "stop_sequences"),
        think=think,
        budget=fields.whole(thinking, "budget_tokens", 0, MAX_TOKENS) if think else None,
        client=client,
    )


def _tools(body: Body) -> Tools:
    given = [_tool(tool) for tool in fields.listed(body, "tools")]
    choice = fields.mapping(body, "tool_choice")
    wanted = choice.get("name") if choice.get("type") == "tool" else choice.get("type")
    return read_tools(given, wanted, not fields.flag(choice, "disable_parallel_tool_use"))


def _tool(tool: Any) -> Any:
    """Return a tool in OpenAI's form. Tools of Anthropic's servers keep their type."""
    if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
        return tool
    function = {"name": tool.get("name"), "description": tool.get("description")}
    function |= {"parameters": tool.get("input_schema"), "strict": tool.get("strict")}
    return {"type": "function", "function": function}


def _system(system: Any) -> Messages:
    """Return the system message, without the block about billing."""
    blocks = [system] if isinstance(system, str) else system or []
    if not isinstance(blocks, list):
        raise BadRequest("system must be a string or a list of blocks", "system")
    texts = [fields.plain_text([block], "system") for block in blocks]
    kept = [text for text in texts if text and not text.startswith(BILLING)]
    return [{"role": "system", "content": "\n\n".join(kept)}] if kept else []


def _message(message: Any, where: str) -> Messages:
    """Return a message in OpenAI's form. Results of tools are messages of their own there."""
    if not isinstance(message, dict):
        raise BadRequest("each message must be an object", where)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(f"unknown role {role!r}; known are user and assistant", f"{where}.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise BadRequest("content must be a string or a list of blocks", f"{where}.content")
    if role == "assistant":
        return [_assistant(content, f"{where}.content")]
    found: Messages = []
    for block in content:
        if block.get("type") == "tool_result":
            text = fields.plain_text(block.get("content"), f"{where}.content")
            text = f"Error: {text}" if block.get("is_error") else text
            called = str(block.get("tool_use_id") or "")
            found.append({"role": "tool", "tool_call_id": called, "content": text})
            continue
        text = fields.plain_text([block], f"{where}.content")
        if found and found[-1]["role"] == role:
            found[-1]["content"] += f"\n\n{text}"
        else:
            found.append({"role": role, "content": text})
    return found


def _assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            name, given = block.get("name"), block.get("input")
            if not isinstance(name, str) or not isinstance(given, dict):
                raise BadRequest("each tool_use must have a name and an input", where)
            function = {"name": name, "arguments": given}
            call = {"id": str(block.get("id") or ""), "type": "function", "function": function}
            calls.append(call)
        elif kind != "redacted_thinking":
            texts.append(fields.plain_text([block], where))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def _stop(answer: Answer, end: Finished) -> dict[str, Any]:
    stops = answer.ask.stop
    reason = "tool_use" if answer.called else "end_turn"
    if end.finish == "length":
        reason = "max_tokens"
    elif end.found_stop:
        reason = "stop_sequence"
    found = stops[0] if end.found_stop and len(stops) == 1 else None
    return {"stop_reason": reason, "stop_sequence": found}


def _usage(end: Finished) -> dict[str, int]:
    return {
        "input_tokens": end.prompt_tokens - end.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": end.cached_tokens,
        "output_tokens": end.decoded_tokens,
    }


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": answer.served.name,
    }


async def message_reply(answer: Answer) -> dict[str, Any]:
    """Return the whole answer."""
    writer = BlockWriter()
    async for piece in answer:
        if isinstance(piece, TextPiece | CallPiece):
            list(writer.piece(piece))
        elif isinstance(piece, Finished):
            end = piece
    require_done(end)
    content = [
        {**block, "input": _parsed(block["input"])} if "input" in block else block
        for block in writer.blocks
    ]
    return {**_head(answer), "content": content, **_stop(answer, end), "usage": _usage(end)}


def _empty(kind: str) -> dict[str, Any]:
    return {"type": kind, kind: ""} | ({"signature": ""} if kind == THINKING else {})


def _parsed(arguments: str) -> Any:
    try:
        value = fields.parse_json(arguments or "{}")
        json.dumps(value, allow_nan=False)
    except ValueError:  # cut by max_tokens, or written by a model that nothing constrains
        return {}
    return value


class BlockWriter:
    """Collects blocks of content, and writes them as events: a start, deltas and a stop each."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._open = ""

    def piece(self, piece: TextPiece | CallPiece) -> Iterator[str]:
        """Yield the events for a piece."""
        if isinstance(piece, CallPiece):
            if piece.name:
                block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": ""}
                yield from self._begin(piece.id, block, input={})
            self.blocks[-1]["input"] += piece.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
        elif piece.text:
            kind = THINKING if piece.kind is Kind.THINKING else TEXT
            if self._open != kind:
                yield from self._begin(kind, _empty(kind))
            self.blocks[-1][kind] += piece.text
            yield self._delta({"type": f"{kind}_delta", kind: piece.text})

    def end(self) -> Iterator[str]:
        """Yield the stop of the open block."""
        if self._open == THINKING:
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open:
            yield _event("content_block_stop", index=len(self.blocks) - 1)
        self._open = ""

    def _begin(self, name: str, block: dict[str, Any], **shown: Any) -> Iterator[str]:
        yield from self.end()
        self._open = name
        self.blocks.append(block)
        yield _event(
            "content_block_start", index=len(self.blocks) - 1, content_block={**block, **shown}
        )

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=len(self.blocks) - 1, delta=delta)


def _event(name: str, **data: Any) -> str:
    return event({"type": name, **data}, name)


async def message_events(answer: Answer, _: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events, with a ping while the client would hear nothing."""
    usage = {"input_tokens": len(answer.tokens), "output_tokens": 0}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    start = {**_head(answer), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**start, "usage": usage})
    yield _event("ping")
    writer = BlockWriter()
    try:
        async for piece in answer:
            if isinstance(piece, TextPiece | CallPiece):
                for line in writer.piece(piece):
                    yield line
            elif isinstance(piece, Finished):
                require_done(piece)
                for line in writer.end():
                    yield line
                yield _event("message_delta", delta=_stop(answer, piece), usage=_usage(piece))
                yield _event("message_stop")
            else:
                yield _event("ping")
    except expected() as error:
        yield event(anthropic_error(status_of(error), *words_of(error)), "error")
