"""Ask the user what to do when a conversation no longer fits the context.

Messages are never dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable

from conifer_cli.chat.conversation import Conversation
from conifer_cli.fit.context import largest_context, limit
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted

SUMMARY_REQUEST = (
    "Summarise our conversation so far in at most 150 words. Keep names, numbers, decisions and "
    "open questions."
)
SUMMARY_TOKENS = 400

Choice = tuple[str, str, Callable[[Conversation], bool]]  # (key, label, action)


def make_room(conversation: Conversation) -> list[int] | None:
    """Encode the conversation, leaving room for an answer. Return None if the user cancels."""
    while True:
        tokens = conversation.encode()
        room, context = conversation.answer_room(), conversation.context
        if len(tokens) + room <= context:
            return tokens
        console.log(
            f"The conversation has {counted(len(tokens), 'token')} and an answer needs at least "
            f"{room:,}, but the context holds only {context:,}."
        )
        report = conversation.session.report
        if len(tokens) + room > largest_context(report, context):
            console.log(limit(report, context))
        if not _ask(conversation, _choices(conversation, len(tokens) + room)):
            return None


def _choices(conversation: Conversation, needed: int) -> list[Choice]:
    largest = largest_context(conversation.session.report, conversation.context)
    grown = min(max(2 * conversation.context, needed), largest)
    choices: list[Choice] = []
    if grown >= needed:

        def grow(conversation: Conversation) -> bool:
            size = counted(grown, "token")
            console.log(f"The context is now {size}. Processing the conversation again.")
            conversation.resize(grown)
            return True

        choices.append(("g", f"grow the context to {grown:,}", grow))
    if _past(conversation):
        choices.append(("s", "summarise the conversation", _summarise))
        choices.append(("d", "drop the oldest turns", _drop))
    return choices


def _ask(conversation: Conversation, choices: list[Choice]) -> bool:
    labels = "".join(f"[{key}] {label}, " for key, label, _ in choices)
    # Accept only the key or its word: the start of a message must not drop a turn.
    actions = {word: action for key, label, action in choices for word in (key, label.split()[0])}
    while True:
        reply = conversation.editor.question(f"{labels}[c] cancel: ").lower()
        if reply in actions:
            return actions[reply](conversation)
        if reply in ("", "c", "cancel"):
            return False


def _past(conversation: Conversation) -> list[dict[str, str]]:
    messages = conversation.messages
    return messages[_start(conversation) : -1] if not conversation.session.raw else []


def _start(conversation: Conversation) -> int:
    return int(bool(conversation.messages) and conversation.messages[0]["role"] == "system")


def _drop(conversation: Conversation) -> bool:
    messages, dropped = conversation.messages, 0
    start = _start(conversation)
    while _past(conversation) and len(conversation.encode()) > conversation.context // 2:
        del messages[start]
        while len(messages) > start + 1 and messages[start]["role"] != "user":
            del messages[start]
        dropped += 1
    console.log(f"{counted(dropped, 'turn')} dropped, oldest first.")
    return True


def _summarise(conversation: Conversation) -> bool:
    """Replace the past turns with the model's summary. On failure, change nothing."""
    messages, start = conversation.messages, _start(conversation)
    before = list(messages)
    system, past, last = messages[:start], _past(conversation), messages[-1]
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
                console.log("Even the last turn is too long to summarise.")
                return False
            past, left_out = past[2:], left_out + 1
        if left_out:
            console.log(f"{counted(left_out, 'turn')} left out of the summary, oldest first.")
        response, generation = conversation.ask(tokens, max_tokens=limit)
    finally:
        messages[:] = before
    if generation.stream.finish == "interrupted" or not response.text.strip():
        console.log("No summary was written. The conversation is unchanged.")
        return False
    messages[:] = [*system, request, {"role": "assistant", "content": response.text}, last]
    return True
