"""What to do when a conversation outgrows its context: it is said before, and a person chooses.

Nothing is ever cut in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from conifer_cli.terminal import console

if TYPE_CHECKING:
    from conifer_cli.chat.conversation import Conversation

SUMMARY_REQUEST = (
    "Summarise our conversation so far in at most 150 words. Keep names, numbers, decisions and "
    "open questions."
)
SUMMARY_TOKENS = 400

Choice = tuple[str, str, Callable[["Conversation"], bool]]  # (key, what it does, the doing)


def make_room(conversation: Conversation) -> list[int] | None:
    """Encode the conversation with room for an answer; None if a person would rather stop."""
    while True:
        tokens = conversation.encode()
        room, context = conversation.room(), conversation.context
        if len(tokens) + room <= context:
            return tokens
        console.log(
            f"The conversation takes {len(tokens):,} tokens, and an answer at least {room:,}: "
            f"they do not fit the context of {context:,}."
        )
        if not _chosen(conversation, _choices(conversation, len(tokens) + room)):
            return None


def _choices(conversation: Conversation, wanted: int) -> list[Choice]:
    """List what can be done now."""
    largest = conversation.session.judged.verdict.largest_context
    grown = min(max(2 * conversation.context, wanted), largest)
    choices: list[Choice] = []
    if grown >= wanted:

        def grow(conversation: Conversation) -> bool:
            console.log(f"The context is now {grown:,} tokens; the conversation is read anew.")
            conversation.resize(grown)
            return True

        choices.append(("g", f"grow it to {grown:,}", grow))
    if len(_past(conversation)) > 0:
        choices += [
            ("s", "summarise what was said", _summarise),
            ("d", "drop the oldest turns", _drop),
        ]
    return choices


def _chosen(conversation: Conversation, choices: list[Choice]) -> bool:
    """Ask, and do it; False for nothing."""
    shown = ", ".join(f"[{key}] {what}" for key, what, _ in [*choices, ("c", "cancel", None)])
    while True:
        reply = conversation.editor.question(f"{shown}: ").lower()[:1]
        if reply in ("", "c"):
            return False
        for key, _, action in choices:
            if key == reply:
                return action(conversation)


def _past(conversation: Conversation) -> list[dict[str, str]]:
    """Give what was said before the last message, without the system message."""
    messages = conversation.messages
    return messages[_head(conversation) : -1] if not conversation.session.raw else []


def _head(conversation: Conversation) -> int:
    return int(bool(conversation.messages) and conversation.messages[0]["role"] == "system")


def _drop(conversation: Conversation) -> bool:
    """Drop the oldest turns until half of the context is free, or none is left."""
    messages, dropped = conversation.messages, 0
    head = _head(conversation)
    while _past(conversation) and len(conversation.encode()) > conversation.context // 2:
        del messages[head]
        while len(messages) > head + 1 and messages[head]["role"] != "user":
            del messages[head]
        dropped += 1
    console.log(f"The oldest turns are dropped: {dropped:,}.")
    return True


def _summarise(conversation: Conversation) -> bool:
    """Have the model say what was said in short, and keep that instead; all of it if that fails."""
    messages, head = conversation.messages, _head(conversation)
    before = list(messages)
    system, past, last = messages[:head], _past(conversation), messages[-1]
    limit = min(SUMMARY_TOKENS, conversation.context // 4)
    request = {"role": "user", "content": SUMMARY_REQUEST}
    left_out = 0
    try:
        while True:
            messages[:] = [*system, *past, request]
            tokens = conversation.encode()
            if len(tokens) + limit <= conversation.context:
                break
            if len(past) <= 2:
                console.log("Even the last turn is too long to be summarised.")
                return False
            past, left_out = past[2:], left_out + 1
        if left_out:
            console.log(f"The oldest turns had to be left out of the summary: {left_out:,}.")
        reply, answering, _ = conversation.ask(tokens, max_tokens=limit)
    finally:
        messages[:] = before
    if answering.stream.finish == "interrupted" or not reply.text.strip():
        console.log("There is no summary, and nothing was left out.")
        return False
    messages[:] = [*system, request, {"role": "assistant", "content": reply.text}, last]
    return True
