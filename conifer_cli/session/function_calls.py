"""`conifer run --tools`: offer functions to the model, and print its calls as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from conifer_cli import errors
from conifer_cli.errors import UsageError, why
from conifer_cli.serve.fields import BadRequest
from conifer_cli.serve.tools import Tools, read_tools, with_tools
from conifer_cli.session.response import Response
from conifer_cli.session.session import Messages, Session
from conifer_cli.terminal import console
from engine.text import reasoning
from engine.text.reasoning import Part
from engine.tools.dialects import HERMES, call_markers, find_call_dialect
from engine.tools.parser import CallParser, CallPiece

Call = dict[str, Any]


def read_offer(path: Path) -> Tools:
    """Read functions in OpenAI's form: a list, or an object with `tools`. Raises UsageError."""
    document = _document(path)
    given = document.get("tools") if isinstance(document, dict) else document
    if not isinstance(given, list):
        raise UsageError(f"{path} must contain a JSON list of tools")
    try:
        tools = read_tools(given, None)
    except BadRequest as error:
        raise UsageError(f"{path}: {error}") from error
    if not tools.given:
        raise UsageError(f"{path} contains no function")
    return tools


def read_results(path: Path) -> Messages:
    """Return the messages for past calls and their results. Raises UsageError.

    The file has the printed calls, each with its `result`.
    """
    calls = _document(path)
    if not isinstance(calls, list) or not all(isinstance(c, dict) and "name" in c for c in calls):
        raise UsageError(f"{path} must contain the printed calls, each with a result")
    if not all("result" in call for call in calls):
        raise UsageError(f"{path}: each call must have a result")
    asked: dict[str, Any] = {"role": "assistant", "content": ""}
    asked["tool_calls"] = [
        {
            "id": call.get("id", f"call_{at}"),
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments") or {}},
        }
        for at, call in enumerate(calls)
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": call.get("id", f"call_{at}"),
            "content": r if isinstance(r := call["result"], str) else json.dumps(r),
        }
        for at, call in enumerate(calls)
    ]
    return [asked, *results]


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error


def answer_with_tools(
    session: Session, messages: Messages, prompt: str, tools: Tools, results: Messages
) -> int:
    """Print the answer to one prompt: its text, then its calls as a JSON list."""
    template = session.model.template
    if template is None or session.raw:
        raise UsageError("--tools requires a chat template, but this model has none")
    asked: list[dict[str, Any]] = [*messages, {"role": "user", "content": prompt}, *results]
    asked, listed = with_tools(asked, tools, template.source)
    variables = reasoning.switches(session.options.think, session.options.effort)
    tokens = template.encode(asked, **variables, **({"tools": listed} if listed else {}))
    answering = session.answer(tokens)
    dialect = find_call_dialect(template.source) or HERMES
    answering.keep_calls(call_markers(dialect, session.model.tokenizer))
    calls: list[Call] = []
    reply = Response(session.options)
    reply.print(_text_of(answering, CallParser(dialect, tools.schemas), calls))
    if calls:
        for call in calls:
            call["arguments"] = _parsed(call["arguments"])
        console.print_json(calls)
    elif notice := reply.notice(answering):
        console.log(f"conifer: {notice}")
    return errors.NO_ROOM if answering.cut_by_context else errors.OK


def _text_of(parts: Iterable[Part], parser: CallParser, calls: list[Call]) -> Iterator[Part]:
    """Yield all parts but calls, and collect these."""

    def pieces() -> Iterator[Part | CallPiece]:
        for kind, text in parts:
            yield from parser.push(kind, text)
        yield from parser.finish()

    for piece in pieces():
        if not isinstance(piece, CallPiece):
            yield piece
        elif piece.name:
            calls.append({"id": piece.id, "name": piece.name, "arguments": piece.arguments})
        else:
            calls[piece.index]["arguments"] += piece.arguments


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:  # cut by --max-tokens
        return arguments
