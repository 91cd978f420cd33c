"""One turn of a conversation: add a message, check that it fits the context, print the answer."""

from __future__ import annotations

from conifer_cli import errors
from conifer_cli.chat.context_limit import make_room
from conifer_cli.chat.conversation import Conversation
from conifer_cli.session.router_report import show_experts
from conifer_cli.terminal import console

NOT_ADDED = "Your message was not added."


def send(conversation: Conversation, text: str) -> None:
    """Add a message from the user and print the answer. Without an answer, remove it again."""
    messages = conversation.messages
    messages.append({"role": "user", "content": "\n\n".join([*conversation.staged, text])})
    staged, conversation.staged = conversation.staged, []
    conversation.attempts = 0
    try:
        answer(conversation)
    finally:
        if messages[-1]["role"] == "user":
            messages.pop()
            conversation.staged = staged


def answer(conversation: Conversation, otherwise: str = NOT_ADDED) -> None:
    """Answer the last message and add the answer. On failure print the reason and `otherwise`."""
    try:
        tokens = make_room(conversation)
        if tokens is None:
            console.log(f"{otherwise} /clear begins anew.")
            return
        reply, answering, first_s = conversation.ask(tokens)
    except errors.foreseen() as error:
        if isinstance(error, console.OutputError):
            raise
        _, message, hint = errors.explain(error)
        console.log(f"conifer: {message}")
        console.log(f"{otherwise} {hint} /clear begins anew.")
        return
    conversation.thoughts = reply.thinking
    if answering.stream.finish == "interrupted" and not reply.text:
        console.log(f"Stopped before an answer. {otherwise}")
        return
    conversation.messages.append(reply.message())
    conversation.turns.add(answering, first_s)
    if conversation.shows_stats:
        console.log(f"{conversation.turns.last}; {conversation.meter()}")
    try:
        show_experts(conversation.session)
    except (console.OutputError, errors.UsageError) as error:  # no reason to end all this
        console.log(f"conifer: {error}")
    if answering.cut_by_context:
        limit = conversation.context
        console.log(f"The context of {limit:,} tokens is full: the answer was cut.")
