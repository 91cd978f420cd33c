"""The slash commands of a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conifer_cli import errors
from conifer_cli.chat import attachments, clipboard
from conifer_cli.chat.command import Command, expected, find, names_of
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import complete_model, complete_path, edit_externally, words
from conifer_cli.chat.settings import (
    PARAMETERS,
    SETTINGS,
    VIEWS,
    change_setting,
    complete_setting,
    parameter_of,
    parameter_value,
    set_system,
    show_view,
)
from conifer_cli.chat.turn import answer, send
from conifer_cli.errors import UsageError
from conifer_cli.session import checkpoint, files, history, output_file, router_report
from conifer_cli.terminal import console
from conifer_cli.terminal.code_block import first_code_block
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.layout import Column, Grid
from conifer_cli.usage import did_you_mean, quoted

KEYS = (
    ("Enter", "send the message; Alt-Enter or Ctrl-J starts a new line"),
    ('"""', "start and end a multi-line message"),
    ("Ctrl-G", "write the message in $EDITOR"),
    ("Ctrl-O", "fold or show thinking"),
    ("Ctrl-C", "stop the answer and keep its text"),
    ("Ctrl-D", "exit"),
)
KEPT = ("num_ctx", "stop")  # parameters that /retry cannot change
# Other programs' names for commands.
FAMILIAR = {
    **dict.fromkeys(("/file", "/files", "/open", "/attach", "/add", "/f", "/glob"), "/read"),
    **dict.fromkeys(("/continue", "/history", "/chats", "/sessions", "/search"), "/resume"),
    **dict.fromkeys(("/params", "/settings", "/config"), "/set"),
    "/prompt": "/system",
    "/list": "/model",
    "/write": "/export",
}
RECENT = 10  # conversations that /resume lists
_COMMAND = re.compile(r"/(?:[A-Za-z_-]+|\?)")


class Leave(Exception):
    """Raised when the user exits the conversation."""


def is_command(text: str) -> bool:
    """True if a message looks like a command, even an unknown one. /etc/hosts does not."""
    first, *_ = text.split(maxsplit=1) or [""]
    return _COMMAND.fullmatch(first) is not None


def run_command(text: str, conversation: Conversation) -> None:
    """Run a command and report any error. Raises Leave if the user exits."""
    name, *rest = text.split(maxsplit=1)
    command = find(COMMANDS, name)
    if command is None:
        meant = FAMILIAR.get(name)
        if meant is None and (parameter_of(name[1:]) or find(SETTINGS, name[1:])):
            meant = f"/set {name[1:]}"
        hint = f"Did you mean {meant}?" if meant else did_you_mean(name, names_of(COMMANDS))
        console.log(f"Unknown command '{name}'. {hint or 'Type /? for help.'}")
        return
    try:
        command.run(name, conversation, rest[0].strip() if rest else "")
    except errors.known_exceptions() as error:
        if isinstance(error, errors.OutputError):
            raise
        message, hint = errors.explain_in_chat(error)
        console.problem(message, hint)


def complete(text: str) -> tuple[int, list[str]]:
    """Complete the text before the cursor. Return the start of the last word, and candidates."""
    name, space, rest = text.partition(" ")
    command = find(COMMANDS, name)
    if space and command is not None:
        word = rest if command.complete is complete_path else rest.rpartition(" ")[2]
        return len(text) - len(word), command.complete(rest)
    if not space and text.startswith("/") and text.count("/") == 1:
        return 0, [f"{name} " for name in names_of(COMMANDS) if name.startswith(text)]
    word = text.split("\n")[-1].rpartition(" ")[2]
    return len(text) - len(word), complete_path(word) if re.match(r"[~./]", word) else []


def _help(conversation: Conversation, rest: str) -> None:
    named = [rest, f"/{rest}"]
    chosen = [command for command in COMMANDS if not rest or {*named} & {*command.names}]
    if not chosen:
        raise UsageError(f"unknown command {quoted(rest)}", did_you_mean(rest, names_of(COMMANDS)))
    rows = []
    for command in chosen:
        name, *aliases = command.names
        also = f" (also {', '.join(aliases)})" if aliases else ""
        rows.append((f"{name} {command.usage}", command.help + also))
    rows += () if rest else (("", ""), *KEYS)
    console.log_lines([Grid([Column(), Column()], rows)])


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _clear(conversation: Conversation, rest: str) -> None:
    conversation.clear()
    console.log("Started a new conversation.")


def _regenerate(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is no answer to regenerate")
    changes = _changes(rest)
    previous = messages.pop()
    conversation.attempts += 1
    try:
        answer(conversation, otherwise="The previous answer was kept.", **changes)
    finally:
        if not messages or messages[-1]["role"] != "assistant":
            messages.append(previous)
        elif messages[-1]["content"] == previous["content"]:
            console.log("The answer is the same; /retry temperature 1 changes more.")


def _changes(text: str) -> dict[str, Any]:
    """Parse NAME VALUE pairs into changes of the settings. Raises UsageError."""
    typed, changes = text.split(), {}
    for name, value in zip(typed[::2], [*typed[1::2], ""], strict=False):
        known = parameter_of(name)
        if known is None or known in KEPT:
            raise expected("parameter", name, [each for each in PARAMETERS if each not in KEPT])
        changes[PARAMETERS[known]] = parameter_value(known, value)
    return changes


def _system(conversation: Conversation, rest: str) -> None:
    if rest:
        set_system(conversation, rest)
    else:
        show_view(conversation, "system")


def _edit(conversation: Conversation, rest: str) -> None:
    asked = [message for message in conversation.messages if message["role"] == "user"]
    if not asked:
        raise UsageError("there is no message to edit")
    text = edit_externally(asked[-1]["content"])
    if not text or not text.strip():
        console.log("Nothing was sent.")
        return
    while conversation.messages.pop()["role"] != "user":
        pass
    send(conversation, text)


def _undo(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not any(message["role"] == "user" for message in messages):
        raise UsageError("there is nothing to undo")
    while (removed := messages.pop())["role"] != "user":
        pass
    first, *more = removed["content"].split("\n")
    console.log(f"Removed: {first[:60]}{' ...' if more or first[60:] else ''}")


def _stats(conversation: Conversation, rest: str) -> None:
    console.log_lines([*conversation.totals.lines(), conversation.meter()])


def _read(conversation: Conversation, rest: str) -> None:
    paths, question = attachments.split_paths(rest)
    read = [(path.name, files.read_text(path)) for path in paths]
    conversation.staged += [files.introduced(name, text) for name, text in read]
    if question:
        send(conversation, question)
        return
    what = read[0][0] if len(read) == 1 else counted(len(read), "file")
    length = counted(sum(len(text) for _, text in read), "character")
    console.log(f"{what} ({length}) will be sent with your next message.")


def _drop(conversation: Conversation, rest: str) -> None:
    if not conversation.staged:
        raise UsageError("no file waits to be sent")
    dropped, conversation.staged = conversation.staged, []
    console.log(f"{counted(len(dropped), 'file')} dropped.")


def _model(conversation: Conversation, rest: str) -> None:
    if not rest:
        console.log(f"The model is {conversation.session.report.name}. Type /model NAME to switch.")
        return
    conversation.switch_model(rest)
    name = conversation.session.report.name
    console.log(f"Now using {name} with a context of {counted(conversation.context, 'token')}.")


def _save(conversation: Conversation, rest: str) -> None:
    path = attachments.whole_path(rest)
    checkpoint.require_writable(path)
    try:
        conversation.session.save(path, conversation.messages)
    except errors.OutputError as error:
        raise UsageError(str(error)) from error
    console.log(f"Saved to {path}. To continue it, use /load or `conifer run --resume`.")


def _load(conversation: Conversation, rest: str) -> None:
    session = conversation.session
    messages = session.resume(attachments.whole_path(rest))
    conversation.clear()
    conversation.messages[:] = messages
    if session.cache is not None:
        conversation.context = session.cache.context
    turns = sum(message["role"] == "user" for message in messages)
    console.log(f"Loaded a conversation with {counted(turns, 'message')} of yours.")


def _resume(conversation: Conversation, rest: str) -> None:
    if not rest:
        found = [past for past in history.latest(RECENT + 1) if past.id != conversation.number]
        if not found:
            raise UsageError("there is no earlier conversation")
        columns = [Column("ID", True), Column("CHANGED"), Column("FIRST MESSAGE")]
        rows = [(str(p.id), p.changed[:16].replace("T", " "), p.title[:60]) for p in found[:RECENT]]
        console.log_lines([Grid(columns, rows), "Type /resume ID to continue one."])
        return
    if not rest.isdecimal():
        raise UsageError(f"expected a conversation's ID, got {quoted(rest)}")
    past = history.get(int(rest))
    conversation.clear()
    conversation.messages[:], conversation.number = past.messages, past.id
    system = past.messages[0]["content"] if past.messages[0]["role"] == "system" else None
    conversation.session.change(system=system)
    turns = sum(message["role"] == "user" for message in past.messages)
    console.log(f"Continuing conversation {past.id}, with {counted(turns, 'message')} of yours.")


def _export(conversation: Conversation, rest: str) -> None:
    path, session = attachments.whole_path(rest), conversation.session
    text = attachments.markdown(conversation.messages, session.report.name)
    with _writing(conversation, path):
        output_file.require_new(path, session.options.yes)
        output_file.write(path, text.encode(errors="replace"), mode=0o600)


def _experts(conversation: Conversation, rest: str) -> None:
    if not rest:
        router_report.show(conversation.session)
        return
    path, session = attachments.whole_path(rest), conversation.session
    with _writing(conversation, path):
        router_report.require_target(path, session.options.yes)
        router_report.write(session, path)


@contextmanager
def _writing(conversation: Conversation, path: Path) -> Iterator[None]:
    """Report that the block wrote `path`. Ctrl-C cancels its question or its wait for a reader."""
    try:
        with conversation.interrupts.propagate():
            yield
    except errors.OutputError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt as interrupt:
        raise UsageError(f"stopped; {path} was not written") from interrupt
    console.log(f"Written to {path}.")


def _copy(conversation: Conversation, rest: str) -> None:
    answers = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
    if not answers:
        raise UsageError("there is no answer to copy")
    text = _part(answers, rest)
    length = counted(len(text), "character")
    console.log(f"Copied {length} with {clipboard.copy(text)}.")


def _part(answers: list[str], rest: str) -> str:
    """Return the last answer, its code, or the answer that is so many back."""
    if rest == "code":
        try:
            return "".join(first_code_block([answers[-1]])).rstrip("\n")
        except errors.NoCode as error:
            raise UsageError(str(error)) from error
    if rest and not (rest.isdecimal() and 1 <= int(rest) <= len(answers)):
        most = "1, the only answer" if len(answers) == 1 else f"a number from 1 to {len(answers)}"
        raise UsageError(f"expected code or {most}, got {quoted(rest)}")
    return answers[-int(rest or 1)]


COMMANDS = (
    Command("/? /help", "[COMMAND]", "show this help", _help),
    Command("/bye /exit /quit", "", "exit", _leave),
    Command("/clear /reset /new", "", "start a new conversation", _clear),
    Command(
        "/set",
        "NAME [VALUE]",
        "change a setting, or list the settings",
        change_setting,
        complete_setting,
    ),
    Command("/show", "[VIEW]", f"show {', '.join(VIEWS)}", show_view, words(*VIEWS)),
    Command("/save", "FILE", "save the conversation", _save, complete_path),
    Command("/load", "FILE", "continue a saved conversation", _load, complete_path),
    Command("/resume", "[ID]", "continue an earlier conversation, or list them", _resume),
    Command(
        "/regen /retry",
        "[NAME VALUE]",
        "answer the last message again, with a setting changed for once",
        _regenerate,
    ),
    Command("/edit", "", "edit the last message in $EDITOR, and send it again", _edit),
    Command("/system", "[TEXT]", "show or set the system message", _system),
    Command("/undo", "", "remove the last message and its answer", _undo),
    Command(
        "/read",
        "FILE... [TEXT]",
        "send text files with TEXT, or with the next message",
        _read,
        complete_path,
    ),
    Command("/drop", "", "do not send the files that /read has read", _drop),
    Command("/model", "[NAME]", "show or switch the model", _model, complete_model),
    Command("/stats", "", "show token counts and speed", _stats),
    Command(
        "/experts", "[FILE]", "show the experts chosen for the last answer", _experts, complete_path
    ),
    Command("/copy", "[code|N]", "copy the last answer, its code, or the Nth last", _copy),
    Command("/export", "FILE", "write the conversation as Markdown", _export, complete_path),
)
