"""Find a form of the conversation that the chat template renders completely.

Templates expect different forms: content as text or as typed parts, with or without a system
message. A template may silently drop a form that it does not support, so every rendering is
checked twice. With a random word in place of each text, the check finds messages that are left out.
With the texts themselves, it finds texts that are cut or changed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from engine.errors import MessageLeftOut, TemplateRefusal

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
SYSTEM_ROLES = ("system", "developer")
ANSWER_ROLES = ("assistant", "model")
LITERAL = re.compile(r"'([^'\n]{3,})'|\"([^\"\n]{3,})\"")
LOOP = re.compile(r"\bfor\s+(\w+)\s+in\s+\w*messages\b")
ROLE = re.compile(r"\brole['\"]?\]?\s*[=!]=\s*['\"](\w+)['\"]")

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


def render_in_full(
    source: str, messages: Sequence[Message], render: Render
) -> tuple[str, Sequence[Message]]:
    """Return the prompt, and the form of the messages that it contains.

    source: the template. render: renders messages with it. Raises MessageLeftOut if every
    form loses a message, or TemplateRefusal if the template accepts no form.
    """
    lost: MessageLeftOut | None = None
    refusal: TemplateRefusal | None = None
    for form in _forms(messages):
        try:
            _require_all(source, form, render)
            text = render(form)
            _require_texts(source, form, text)
            return text, form
        except MessageLeftOut as error:
            lost = lost or error
        except TemplateRefusal as error:
            refusal = refusal or error
    if lost is not None:
        raise lost
    if refusal is not None:
        render(messages)  # raises the refusal with the original texts, which it may quote
        raise refusal
    raise AssertionError("a conversation has at least one form")


def _forms(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield the forms of a conversation, the most common first."""
    roles = list(dict.fromkeys(str(message.get("role")) for message in messages))
    some = chain.from_iterable(combinations(roles, size) for size in range(1, len(roles)))
    choices = [(), tuple(roles), *some]
    folded = _folded(messages)
    for base in [messages] if folded is None else [messages, folded]:
        yield from ([_typed(message, choice) for message in base] for choice in choices)


def _typed(message: Message, roles: Sequence[str]) -> Message:
    content = message.get("content")
    if message.get("role") not in roles or not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _folded(messages: Sequence[Message]) -> Sequence[Message] | None:
    """Return the messages with each system text moved to the start of the next user message.

    None if there is no system text, or no user message follows it.
    """
    folded: list[Message] = []
    held: list[str] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") in SYSTEM_ROLES and isinstance(content, str):
            held.append(content)
        elif message.get("role") == "user" and isinstance(content, str) and held:
            folded.append({**message, "content": "\n\n".join([*held, content])})
            held = []
        else:
            folded.append(message)
    return None if held or len(folded) == len(messages) else folded


def _texts(message: Message) -> list[str]:
    """Return the texts that must be in the prompt. A message with tool calls has none."""
    if message.get("tool_calls"):
        return []
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [{"text": content}]
    found = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return [text for text in found if isinstance(text, str) and text.strip()]


def _require_all(source: str, messages: Sequence[Message], render: Render) -> None:
    """Raise MessageLeftOut if the template leaves out a message, regardless of its text."""
    secret = secrets.token_hex(6)
    words: list[list[str]] = []
    marked = []
    for at, message in enumerate(messages):
        words.append([f"q{secret}m{at}p{part}q" for part in range(len(_texts(message)))])
        marked.append(_with_words(message, iter(words[-1])))
    text = render(marked).lower()
    for at, found in enumerate(words):
        for word in found:
            # A list printed as data means that the template does not support typed parts.
            printed = isinstance(messages[at].get("content"), list) and re.search(
                rf"""['"]text['"]: ['"]{word}""", text
            )
            if word not in text or printed:
                raise MessageLeftOut(_left_out(source, messages, at, "leaves out"))


def _with_words(message: Message, words: Iterator[str]) -> Message:
    """Return the message with each of its texts replaced by the next word."""
    brief = {name: "r" for name in REASONING_FIELDS if message.get(name)}
    content = message.get("content")
    if not _texts(message):
        return {**message, **brief}
    if isinstance(content, str):
        content = next(words)
    elif isinstance(content, list | tuple):
        content = [
            {**part, "text": next(words)} if _texts({"content": [part]}) else part
            for part in content
        ]
    return {**message, **brief, "content": content}


def _require_texts(source: str, messages: Sequence[Message], prompt: str) -> None:
    """Raise MessageLeftOut if a message's text is not in the prompt. Ignores white space."""
    at, squeezed = 0, ""
    for index, message in enumerate(messages):
        for text in map(str.strip, _texts(message)):
            found = prompt.find(text, at)
            if found < 0:  # some templates move the system message
                found = prompt.find(text)
            if found >= 0:
                at = found + len(text)
                continue
            squeezed = squeezed or _squeezed(prompt)
            if not _kept(source, message, text, squeezed):
                raise MessageLeftOut(_left_out(source, messages, index, "changes or cuts"))


def _kept(source: str, message: Message, text: str, prompt: str) -> bool:
    """True if the prompt contains the text as JSON, or without switches.

    Templates remove their own switches, such as "/no_think", and the thinking in past answers.
    """
    if any(
        _squeezed(json.dumps(text, ensure_ascii=ascii)[1:-1]) in prompt for ascii in (False, True)
    ):
        return True
    literals = {(one or two).strip() for one, two in LITERAL.findall(source)}
    switches = [word for word in literals if len(word) > 2 and word in text and not word.isalnum()]
    pieces = re.split("|".join(map(re.escape, sorted(switches, key=len, reverse=True))), text)
    if message.get("role") in ANSWER_ROLES and switches:
        pieces = pieces[-1:]
    return (
        all(_squeezed(piece) in prompt for piece in pieces)
        if switches
        else (_squeezed(text) in prompt)
    )


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def _left_out(source: str, messages: Sequence[Message], at: int, what: str) -> str:
    role = str(messages[at].get("role"))
    alone = sum(message.get("role") == role for message in messages) == 1
    which = f"the {role} message" if alone else f"message {at + 1} of {len(messages)} ({role})"
    return f"the chat template {what} {which}{_wants(source, role)}"


def _wants(source: str, role: str) -> str:
    """Return what the template reads instead, if its source shows that."""
    if "messages" not in source:
        return ": it does not read the messages"
    names = "|".join(map(re.escape, {*LOOP.findall(source)})) or "(?!)"
    key = re.compile(rf"\b(?:{names}|messages\[[^\]]*\])(?:\.get\(|\.|\[)['\"]?([A-Za-z_]\w*)")
    keys = sorted(set(key.findall(source)) - {"role"})
    if keys and "content" not in keys:
        return f": from each message it reads {_listed(keys)}, not content"
    roles = sorted(set(ROLE.findall(source)))
    return "" if not roles or role in roles else f": the only roles it knows are {_listed(roles)}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8])
