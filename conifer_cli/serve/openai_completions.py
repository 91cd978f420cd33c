"""OpenAI's /v1/completions: continue a text, without roles."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from conifer_cli.serve import fields
from conifer_cli.serve.answer import Answer, Ask, TextPiece, TokenChance
from conifer_cli.serve.fields import BadRequest, Body
from conifer_cli.serve.openai_chat import read_common, require_done, usage_of
from conifer_cli.serve.web import PULSE, event, expected, openai_error, status_of, words_of
from engine.serving.processors import MAX_TOP
from engine.serving.scheduler import Finished

DEFAULT_TOKENS = 16  # as in OpenAI's definition


def read_completion(body: Body, client: str = "") -> Ask:
    """Read a request. Raises BadRequest."""
    if body.get("suffix"):
        raise BadRequest("suffix is not supported", "suffix")
    ask = read_common(body, client)
    return replace(
        ask,
        prompt=_prompt(body.get("prompt")),
        max_tokens=ask.max_tokens or DEFAULT_TOKENS,
        top_logprobs=fields.whole(body, "logprobs", 0, MAX_TOP),
    )


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise BadRequest("prompt must be one string, or one list of token ids", "prompt")


async def completion_reply(answer: Answer) -> dict[str, Any]:
    """Return the whole answer."""
    text, chances = "", list[TokenChance]()
    async for piece in answer:
        if isinstance(piece, TextPiece):
            text += piece.text
            chances += piece.chances
        elif isinstance(piece, Finished):
            end = piece
    require_done(end)
    choice = _choice(answer, text, chances, _finish(end))
    return {**_head(answer), "choices": [choice], "usage": usage_of(end)}


async def completion_events(answer: Answer, with_usage: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    head = _head(answer)
    try:
        async for piece in answer:
            if isinstance(piece, TextPiece):
                choice = _choice(answer, piece.text, list(piece.chances), None)
                yield event({**head, "choices": [choice]})
            elif isinstance(piece, Finished):
                require_done(piece)
                yield event({**head, "choices": [_choice(answer, "", [], _finish(piece))]})
                if with_usage:
                    yield event({**head, "choices": [], "usage": usage_of(piece)})
            else:
                yield PULSE
    except expected() as error:
        yield event(openai_error(status_of(error), *words_of(error)))
    yield event("[DONE]")


def _finish(end: Finished) -> str:
    return "length" if end.finish == "length" else "stop"


def _choice(
    answer: Answer, text: str, chances: list[TokenChance], finish: str | None
) -> dict[str, Any]:
    return {
        "index": 0,
        "text": text,
        "finish_reason": finish,
        "logprobs": _logprobs(answer, chances) if chances else None,
    }


def _logprobs(answer: Answer, chances: list[TokenChance]) -> dict[str, Any]:
    def text(token: int) -> str:
        return answer.served.model.tokenizer.decode([token], markup=True)

    return {
        "tokens": [text(chance.token) for chance in chances],
        "token_logprobs": [chance.logprob for chance in chances],
        "top_logprobs": [{text(row.token): row.logprob for row in c.top} for c in chances],
    }


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": answer.served.name,
    }
