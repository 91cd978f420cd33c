"""The commands of a conversation: one table from words to what they do.

A command is a word such as /clear; a path such as /etc/hosts is a message. What is no command is
never sent to the model. `settings` has what /set and /show do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conifer_cli import errors
from conifer_cli.chat import files
from conifer_cli.chat.completing import Words, models, none, paths
from conifer_cli.chat.settings import set_words, show_words, shown, turn
from conifer_cli.chat.turn import answer, send
from conifer_cli.errors import UsageError
from conifer_cli.session import checkpoint, router_report
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from conifer_cli.chat.conversation import Conversation

KEYS = (
    ("Enter", "send; Alt-Enter or Ctrl-J begins a new line"),
    ('"""', "begins and ends a message of several lines"),
    ("Ctrl-G", "write the message in $EDITOR"),
    ("Ctrl-O", "fold the thinking, or show it again"),
    ("Ctrl-C", "stop an answer; what was said of it is kept"),
    ("Ctrl-D", "leave"),
)
_COMMAND = re.compile(r"/(?:[A-Za-z_-]+|\?)")


class Leave(Exception):
    """The person wants to go."""


@dataclass(frozen=True)
class Command:
    """A command: its names, the first of which is shown, what follows it, what it is for.

    act: gets the conversation and the rest of the line. complete: what may follow, by what is
    typed of it.
    """

    names: tuple[str, ...]
    usage: str
    about: str
    act: Callable[[Conversation, str], None]
    complete: Words = none


def is_command(text: str) -> bool:
    """Tell whether a message is a command, known or not."""
    first, *_ = text.split(maxsplit=1) or [""]
    return _COMMAND.fullmatch(first) is not None


def carry_out(text: str, conversation: Conversation) -> None:
    """Do what a command says; what it cannot do it says. Raises Leave."""
    name, *rest = text.split(maxsplit=1)
    command = _find(name)
    if command is None:
        console.log(f"Unknown command '{name}'. Type /? for help.")
        return
    try:
        command.act(conversation, rest[0].strip() if rest else "")
    except errors.foreseen() as error:
        if isinstance(error, console.OutputError):
            raise
        _, message, hint = errors.explain(error)
        console.log(f"conifer: {message}")
        for line in hint.splitlines():
            console.log(line)


def complete(text: str) -> tuple[int, list[str]]:
    """Complete what stands before the cursor: where its last word begins, and what that may be."""
    name, space, rest = text.partition(" ")
    command = _find(name)
    if space and command is not None:
        word = rest if command.complete is paths else rest.rpartition(" ")[2]
        return len(text) - len(word), command.complete(rest)
    if not space and text.startswith("/") and text.count("/") == 1:
        names = (name for known in COMMANDS for name in known.names)
        return 0, [f"{name} " for name in names if name.startswith(text)]
    word = text.split("\n")[-1].rpartition(" ")[2]
    return len(text) - len(word), paths(word) if re.match(r"[~./]", word) else []


def _find(name: str) -> Command | None:
    return next((command for command in COMMANDS if name in command.names), None)


def _help(conversation: Conversation, rest: str) -> None:
    rows = [(" ".join((*command.names[:1], command.usage)), command) for command in COMMANDS]
    width = max(len(shown) for shown, _ in rows) + 2
    lines = [f"{shown:{width}}{command.about}{_aliases(command)}" for shown, command in rows]
    lines += ["", *(f"{key:{width}}{about}" for key, about in KEYS)]
    console.log_text("\n".join(lines))


def _aliases(command: Command) -> str:
    return f" (also {', '.join(command.names[1:])})" if command.names[1:] else ""


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _clear(conversation: Conversation, rest: str) -> None:
    conversation.clear()
    console.log("The conversation is forgotten.")


def _regen(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is no answer to give anew")
    before = messages.pop()
    conversation.attempts += 1
    try:
        answer(conversation, otherwise="The answer of before stays.")
    finally:
        if not messages or messages[-1]["role"] != "assistant":
            messages.append(before)


def _undo(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not any(message["role"] == "user" for message in messages):
        raise UsageError("there is nothing to undo")
    while (gone := messages.pop())["role"] != "user":
        pass
    first, *more = gone["content"].split("\n")
    console.log(f"Forgotten: {first[:60]}{' ...' if more or first[60:] else ''}")


def _stats(conversation: Conversation, rest: str) -> None:
    for line in [*conversation.turns.lines(), conversation.meter()]:
        console.log(line)


def _read(conversation: Conversation, rest: str) -> None:
    path, question = files.path_and_words(rest)
    text = files.read_text(path)
    conversation.staged.append(f"{path.name}:\n{text.rstrip()}")
    if question:
        send(conversation, question)
    else:
        console.log(f"{path.name}, {len(text):,} characters, goes with your next message.")


def _model(conversation: Conversation, rest: str) -> None:
    if not rest:
        console.log(f"{conversation.session.judged.name}. /model NAME changes it.")
        return
    conversation.switch(rest)
    console.log(
        f"{conversation.session.judged.name}, context {conversation.context:,} tokens, "
        "answers from here on."
    )


def _save(conversation: Conversation, rest: str) -> None:
    path = files.only_path(rest)
    checkpoint.require_place(path)
    try:
        conversation.session.save(path, conversation.messages)
    except console.OutputError as error:
        raise UsageError(str(error)) from error
    console.log(f"Saved to {path}. /load takes it up again, and `conifer run --resume`.")


def _load(conversation: Conversation, rest: str) -> None:
    session = conversation.session
    messages = session.resume(files.only_path(rest))
    conversation.clear()
    conversation.messages[:] = messages
    if session.cache is not None:
        conversation.context = session.cache.context
    count = sum(message["role"] == "user" for message in messages)
    console.log(f"A conversation of {count:,} turns goes on.")


def _export(conversation: Conversation, rest: str) -> None:
    name = conversation.session.judged.name
    console.log(f"Written to {files.export(rest, conversation.messages, name)}.")


def _experts(conversation: Conversation, rest: str) -> None:
    if not rest:
        router_report.draw(conversation.session)
        return
    path = files.only_path(rest)
    try:
        router_report.write(conversation.session, path)
    except console.OutputError as error:
        raise UsageError(str(error)) from error
    console.log(f"Written to {path}.")


def _copy(conversation: Conversation, rest: str) -> None:
    said = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
    if not said:
        raise UsageError("there is no answer to copy")
    console.log(f"Copied, by {files.copy(said[-1])}: {len(said[-1]):,} characters.")


COMMANDS = (
    Command(("/?", "/help"), "", "these commands", _help),
    Command(("/bye", "/exit", "/quit"), "", "leave", _leave),
    Command(("/clear", "/reset", "/new"), "", "forget the conversation", _clear),
    Command(("/set",), "WHAT [VALUE]", "change a setting; /set alone lists them", turn, set_words),
    Command(("/show",), "WHAT", "info, system, template, parameters, thinking", shown, show_words),
    Command(("/save",), "FILE", "keep the conversation", _save, paths),
    Command(("/load",), "FILE", "take up a conversation that was kept", _load, paths),
    Command(("/regen", "/retry"), "", "answer the last message anew", _regen),
    Command(("/undo",), "", "forget the last message and its answer", _undo),
    Command(("/read",), "FILE [TEXT]", "send a file, with TEXT or the next message", _read, paths),
    Command(("/model",), "[NAME]", "let another model go on", _model, models),
    Command(("/stats",), "", "what the answers took", _stats),
    Command(("/experts",), "[FILE]", "which experts ran for the last answer", _experts, paths),
    Command(("/copy",), "", "copy the last answer to the clipboard", _copy),
    Command(("/export",), "FILE", "write the conversation as Markdown", _export, paths),
)
