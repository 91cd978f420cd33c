"""OpenAI's /v1/responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from conifer_cli.options import MAX_TOKENS
from conifer_cli.serve import fields
from conifer_cli.serve.answer import Answer, Ask, Messages, TextPiece
from conifer_cli.serve.fields import BadRequest, Body
from conifer_cli.serve.openai_chat import read_common, read_format, require_done
from conifer_cli.serve.tools import parsed_arguments, read_tools
from conifer_cli.serve.web import PULSE, event, expected, openai_error, status_of, words_of
from engine.serving.scheduler import Finished
from engine.text.reasoning import Kind
from engine.tools.parser import CallPiece

ROLES = ("system", "developer", "user", "assistant")
Item = dict[str, Any]


def read_response(body: Body, client: str = "") -> Ask:
    """Read a request. Raises BadRequest."""
    if body.get("previous_response_id"):
        message = "responses are not stored: send the whole conversation in input"
        raise BadRequest(message, "previous_response_id")
    messages = read_input(body.get("input"))
    if (instructions := fields.text(body, "instructions")) is not None:
        messages = [{"role": "system", "content": instructions}, *messages]
    if not messages:
        raise BadRequest("input must not be empty", "input")
    reasoning = fields.mapping(body, "reasoning")
    ask = read_common({**body, "reasoning_effort": reasoning.get("effort")}, client)
    tools = [tool for given in fields.listed(body, "tools") for tool in _flat(given)]
    parallel = fields.flag(body, "parallel_tool_calls", True)
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") != "function":
        choice = None  # a tool of OpenAI's servers, or a list of allowed tools
    return replace(
        ask,
        messages=messages,
        tools=read_tools(tools, choice, parallel),
        schema=read_format(fields.mapping(fields.mapping(body, "text"), "format")),
        max_tokens=fields.whole(body, "max_output_tokens", 1, MAX_TOKENS) or ask.max_tokens,
    )


def _flat(tool: Any) -> list[Any]:
    """Return the functions in a tool: a namespace holds several."""
    inner = tool.get("tools") if isinstance(tool, dict) else None
    if isinstance(inner, list) and tool.get("type") != "function":
        return [each for part in inner for each in _flat(part)]
    return [tool]


def read_input(given: Any) -> Messages:
    """Return the messages of an input. Items of unknown types are ignored."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise BadRequest("input must be a string or a list of items", "input")
    messages: Messages = []
    for at, item in enumerate(given):
        if not isinstance(item, dict):
            raise BadRequest("each item must be an object", f"input[{at}]")
        read = READERS.get(fields.text(item, "type") or "message")
        if read is not None:
            read(messages, item, f"input[{at}]")
    return [message for message in messages if message["role"] != "assistant" or _holds(message)]


def _holds(message: Item) -> bool:
    return bool(message["content"] or message.get("tool_calls"))


def _read_message(messages: Messages, item: Item, where: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise BadRequest(f"unknown role {role!r}; known are {', '.join(ROLES)}", f"{where}.role")
    text = fields.plain_text(item.get("content"), f"{where}.content")
    if role == "assistant":
        _assistant(messages)["content"] += text
    else:
        messages.append({"role": role, "content": text})


def _read_reasoning(messages: Messages, item: Item, where: str) -> None:
    text = fields.plain_text(item.get("content"), f"{where}.content")
    if text:
        message = _assistant(messages)
        message["reasoning_content"] = message.get("reasoning_content", "") + text


def _read_call(messages: Messages, item: Item, where: str) -> None:
    name = fields.text(item, "name")
    if not name:
        raise BadRequest("each function_call must have a name", where)
    arguments = parsed_arguments(str(item.get("arguments") or ""), where)
    function = {"name": name, "arguments": arguments}
    call = {"id": str(item.get("call_id") or ""), "type": "function", "function": function}
    _assistant(messages).setdefault("tool_calls", []).append(call)


def _read_result(messages: Messages, item: Item, where: str) -> None:
    text = fields.plain_text(item.get("output"), f"{where}.output")
    called = str(item.get("call_id") or "")
    messages.append({"role": "tool", "tool_call_id": called, "content": text})


READERS = {
    "message": _read_message,
    "reasoning": _read_reasoning,
    "function_call": _read_call,
    "function_call_output": _read_result,
}


def _assistant(messages: Messages) -> Item:
    """Return the assistant's message at the end of the conversation, a new one if need be."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


@dataclass
class ItemWriter:
    """Collects the items of the output, and writes them as events."""

    items: list[Item] = field(default_factory=list)
    _open: str = ""
    _number: int = 0

    def piece(self, piece: TextPiece | CallPiece) -> Iterator[str]:
        """Yield the events for a piece."""
        if isinstance(piece, CallPiece):
            if piece.name:
                yield from self._begin(piece.id, _call_item(piece))
            self.items[-1]["arguments"] += piece.arguments
            if piece.arguments:
                yield self._delta("response.function_call_arguments.delta", piece.arguments)
        elif piece.text:
            kind = "reasoning" if piece.kind is Kind.THINKING else "message"
            if self._open != kind:
                yield from self._begin(kind, _text_item(kind))
                yield self._part("response.content_part.added")
            self.items[-1]["content"][0]["text"] += piece.text
            yield self._delta(f"response.{self._text_name}.delta", piece.text, content_index=0)

    def end(self) -> Iterator[str]:
        """Yield the events that complete the open item."""
        if not self._open:
            return
        item, self._open = self.items[-1], ""
        item["status"] = "completed"
        if item["type"] == "function_call":
            yield self._about(
                "response.function_call_arguments.done",
                arguments=item["arguments"],
                name=item["name"],
            )
        else:
            text = item["content"][0]["text"]
            yield self._about(f"response.{self._text_name}.done", content_index=0, text=text)
            yield self._part("response.content_part.done")
        at = len(self.items) - 1
        yield self.event("response.output_item.done", output_index=at, item=item)

    def event(self, kind: str, **data: Any) -> str:
        """Return an event with the next sequence number."""
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **data}, kind)

    @property
    def _text_name(self) -> str:
        return "output_text" if self.items[-1]["type"] == "message" else "reasoning_text"

    def _begin(self, name: str, item: Item) -> Iterator[str]:
        yield from self.end()
        self.items.append(item)
        self._open = name
        at = len(self.items) - 1
        shown = {**item, "content": []} if "content" in item else item
        yield self.event("response.output_item.added", output_index=at, item=shown)

    def _part(self, name: str) -> str:
        return self._about(name, content_index=0, part=self.items[-1]["content"][0])

    def _delta(self, name: str, delta: str, **more: Any) -> str:
        return self._about(name, delta=delta, **more, **({"logprobs": []} if more else {}))

    def _about(self, kind: str, **data: Any) -> str:
        at = len(self.items) - 1
        return self.event(kind, item_id=self.items[at]["id"], output_index=at, **data)


def _call_item(piece: CallPiece) -> Item:
    return {
        "id": f"fc_{secrets.token_hex(12)}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": piece.id,
        "name": piece.name,
        "arguments": "",
    }


def _text_item(kind: str) -> Item:
    if kind == "reasoning":
        parts = [{"type": "reasoning_text", "text": ""}]
        return {"id": f"rs_{secrets.token_hex(12)}", "type": kind, "summary": [], "content": parts}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": kind,
        "status": "in_progress",
        "role": "assistant",
        "content": [part],
    }


def _document(answer: Answer, items: list[Item], end: Finished | None = None) -> dict[str, Any]:
    """Return the response object: in progress, or as it ended."""
    ask, cut = answer.ask, end is not None and end.finish == "length"
    status = "in_progress" if end is None else "incomplete" if cut else "completed"
    return {
        "id": answer.id,
        "object": "response",
        "created_at": int(answer.created_s),
        "completed_at": int(time.time()) if end and not cut else None,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "max_output_tokens": ask.max_tokens,
        "metadata": {},
        "model": answer.served.name,
        "output": items,
        "parallel_tool_calls": ask.tools.parallel,
        "previous_response_id": None,
        "store": False,
        "temperature": ask.sampling.get("temperature"),
        "top_p": ask.sampling.get("top_p"),
        "tool_choice": ask.tools.choice
        if ask.tools.choice not in ask.tools.schemas
        else "required",
        "tools": [{"type": "function", **tool["function"]} for tool in ask.tools.given],
        "usage": None if end is None else _usage(end),
    }


def _usage(end: Finished) -> dict[str, Any]:
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": end.decoded_tokens,
        "output_tokens_details": {"reasoning_tokens": end.thinking_tokens},
        "total_tokens": end.prompt_tokens + end.decoded_tokens,
    }


async def response_reply(answer: Answer) -> dict[str, Any]:
    """Return the whole answer."""
    writer = ItemWriter()
    async for piece in answer:
        if isinstance(piece, TextPiece | CallPiece):
            list(writer.piece(piece))
        elif isinstance(piece, Finished):
            end = piece
    require_done(end)
    list(writer.end())
    return _document(answer, writer.items, end)


async def response_events(answer: Answer, _: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    writer = ItemWriter()
    yield writer.event("response.created", response=_document(answer, []))
    yield writer.event("response.in_progress", response=_document(answer, []))
    try:
        async for piece in answer:
            if isinstance(piece, TextPiece | CallPiece):
                for line in writer.piece(piece):
                    yield line
            elif isinstance(piece, Finished):
                require_done(piece)
                for line in writer.end():
                    yield line
                document = _document(answer, writer.items, piece)
                yield writer.event(f"response.{document['status']}", response=document)
            else:
                yield PULSE
    except expected() as error:
        status, (message, _field, code) = status_of(error), words_of(error)
        kind = openai_error(status, message, None, code)["error"]["type"]
        problem = {"code": code or kind, "message": message}
        document = {**_document(answer, writer.items), "status": "failed", "error": problem}
        yield writer.event("response.failed", response=document)
