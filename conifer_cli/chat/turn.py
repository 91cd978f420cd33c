"""Send a message: check that it fits the context, then print the answer."""

from __future__ import annotations

from typing import Any

from conifer_cli import errors
from conifer_cli.chat.context_limit import make_room
from conifer_cli.chat.conversation import Conversation
from conifer_cli.session import files
from conifer_cli.session.router_report import show_experts
from conifer_cli.terminal import console
from conifer_cli.terminal.layout import FAINT

NOT_ADDED = "Your message was not added."
CLEAR_HINT = "Type /clear to start a new conversation."


def send(conversation: Conversation, text: str) -> None:
    """Add the user's message and answer it. If there is no answer, remove the message again.

    `@FILE` in it stands for a file's text.
    """
    try:
        text, names = files.split_mentions(text)
        mentioned = files.texts(names)
    except errors.UsageError as error:
        console.problem(str(error), error.hint)
        return
    if names:
        console.log(f"Sent with it: {', '.join(names)}.")
    messages, staged = conversation.messages, conversation.staged
    conversation.staged = [*staged, *mentioned]
    messages.append(conversation.compose(text))
    conversation.staged = []
    conversation.attempts = 0
    try:
        answer(conversation)
    finally:
        if messages[-1]["role"] == "user":
            messages.pop()
            conversation.staged = staged


def answer(conversation: Conversation, otherwise: str = NOT_ADDED, **settings: Any) -> None:
    """Answer the last message. On failure, print the reason and the note `otherwise`.

    settings: overrides for this answer.
    """
    try:
        tokens = make_room(conversation)
        if tokens is None:
            console.log(_joined(otherwise, _clear_hint(conversation)))
            return
        if conversation.styled:
            console.log()
        response, generation = conversation.ask(tokens, **settings)
    except errors.known_exceptions() as error:
        if isinstance(error, errors.OutputError):
            raise
        message, hint = errors.explain_in_chat(error)
        console.problem(message)
        console.log(_joined(otherwise, hint))
        return
    conversation.last_thinking = response.thinking
    if generation.stream.finish == "interrupted" and not response.text:
        console.log(f"Stopped before the answer began. {otherwise}")
        return
    if generation.stream.finish == "interrupted":
        console.log("(stopped)", FAINT)
    if notice := response.notice(generation):
        console.log(notice[:1].upper() + notice[1:] + ".")
    conversation.messages.append(response.message())
    conversation.totals.add(generation)
    conversation.keep()
    if conversation.styled:
        console.log()
    if conversation.shows_stats:
        console.log_parts(*conversation.totals.last, conversation.meter())
    try:
        show_experts(conversation.session)
        generation.require_schema(response.text)
    except errors.known_exceptions() as error:  # the answer is already printed
        console.problem(str(error))
    if generation.cut_by_context:
        limit = conversation.context
        console.log(f"The {limit:,}-token context is full, so the answer was cut off.")


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _clear_hint(conversation: Conversation) -> str:
    """Return a hint on making room, unless the new message is the only one."""
    earlier = conversation.messages[:-1]
    return CLEAR_HINT if any(m["role"] != "system" for m in earlier) else ""
