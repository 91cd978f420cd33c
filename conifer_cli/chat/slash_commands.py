"""Slash commands, the settings that /set changes and the views that /show prints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from conifer_cli import errors, options
from conifer_cli.chat import attachments, clipboard
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import (
    Complete,
    complete_model,
    complete_nothing,
    complete_path,
    history_file,
    words,
)
from conifer_cli.chat.turn import answer, send
from conifer_cli.errors import UsageError
from conifer_cli.session import checkpoint, router_report
from conifer_cli.session.session import JSON_OBJECT
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, labelled, size

# Parameter name, as in other tools -> (RunOptions field, parser for its value).
SAMPLING = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repeat_penalty": ("repetition_penalty", float),
    "presence_penalty": ("presence_penalty", float),
}
FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    **SAMPLING,
    "num_predict": ("max_tokens", int),
    "seed": ("seed", int),
    "stop": ("stop", lambda text: [text]),
}
PARAMETERS = (*SAMPLING, "num_ctx", "num_predict", "seed", "stop")
EFFORTS = ("low", "medium", "high")
SHOWN = ("show", "fold", "hide")
FORMATS = ("json", "text")
KEYS = (
    ("Enter", "send the message; Alt-Enter or Ctrl-J starts a new line"),
    ('"""', "start and end a multi-line message"),
    ("Ctrl-G", "write the message in $EDITOR"),
    ("Ctrl-O", "fold or show thinking"),
    ("Ctrl-C", "stop the answer and keep its text"),
    ("Ctrl-D", "exit"),
)
_COMMAND = re.compile(r"/(?:[A-Za-z_-]+|\?)")


class Leave(Exception):
    """Raised when the user exits the conversation."""


@dataclass(frozen=True)
class Command:
    """A slash command, or a setting that /set changes.

    `run` and `complete` receive the rest of the line.
    """

    spellings: str
    usage: str
    help: str
    run: Callable[[Conversation, str], None]
    complete: Complete = complete_nothing

    @property
    def names(self) -> list[str]:
        return self.spellings.split()


def is_command(text: str) -> bool:
    """True if a message looks like a command, even an unknown one. /etc/hosts does not."""
    first, *_ = text.split(maxsplit=1) or [""]
    return _COMMAND.fullmatch(first) is not None


def run_command(text: str, conversation: Conversation) -> None:
    """Run a command and report any error. Raises Leave if the user exits."""
    name, *rest = text.split(maxsplit=1)
    command = _find(COMMANDS, name)
    if command is None:
        console.log(f"Unknown command '{name}'. Type /? for help.")
        return
    try:
        command.run(conversation, rest[0].strip() if rest else "")
    except errors.known_exceptions() as error:
        if isinstance(error, errors.OutputError):
            raise
        console.report(error)


def complete(text: str) -> tuple[int, list[str]]:
    """Complete the text before the cursor. Return the start of the last word, and candidates."""
    name, space, rest = text.partition(" ")
    command = _find(COMMANDS, name)
    if space and command is not None:
        word = rest if command.complete is complete_path else rest.rpartition(" ")[2]
        return len(text) - len(word), command.complete(rest)
    if not space and text.startswith("/") and text.count("/") == 1:
        names = (name for known in COMMANDS for name in known.names)
        return 0, [f"{name} " for name in names if name.startswith(text)]
    word = text.split("\n")[-1].rpartition(" ")[2]
    return len(text) - len(word), complete_path(word) if re.match(r"[~./]", word) else []


def _find(commands: Sequence[Command], name: str) -> Command | None:
    return next((command for command in commands if name in command.names), None)


def _help(conversation: Conversation, rest: str) -> None:
    rows = []
    for command in COMMANDS:
        name, *aliases = command.names
        also = f" (also {', '.join(aliases)})" if aliases else ""
        rows.append((f"{name} {command.usage}", command.help + also))
    width = max(len(usage) for usage, _ in rows) + 2
    lines = [f"{usage:{width}}{effect}".rstrip() for usage, effect in (*rows, ("", ""), *KEYS)]
    console.log_text("\n".join(lines))


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _clear(conversation: Conversation, rest: str) -> None:
    conversation.clear()
    console.log("Started a new conversation.")


def _regenerate(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is no answer to regenerate")
    previous = messages.pop()
    conversation.attempts += 1
    try:
        answer(conversation, otherwise="The previous answer was kept.")
    finally:
        if not messages or messages[-1]["role"] != "assistant":
            messages.append(previous)


def _undo(conversation: Conversation, rest: str) -> None:
    messages = conversation.messages
    if not any(message["role"] == "user" for message in messages):
        raise UsageError("there is nothing to undo")
    while (removed := messages.pop())["role"] != "user":
        pass
    first, *more = removed["content"].split("\n")
    console.log(f"Removed: {first[:60]}{' ...' if more or first[60:] else ''}")


def _stats(conversation: Conversation, rest: str) -> None:
    console.log_text("\n".join([*conversation.totals.lines(), conversation.meter()]))


def _read(conversation: Conversation, rest: str) -> None:
    path, question = attachments.split_path(rest)
    text = attachments.read_text(path)
    conversation.staged.append(f"{path.name}:\n{text.rstrip()}")
    if question:
        send(conversation, question)
    else:
        console.log(f"{path.name} ({len(text):,} characters) will be sent with your next message.")


def _model(conversation: Conversation, rest: str) -> None:
    if not rest:
        console.log(f"The model is {conversation.session.report.name}. Type /model NAME to switch.")
        return
    conversation.switch_model(rest)
    name = conversation.session.report.name
    console.log(f"Now using {name} with a context of {conversation.context:,} tokens.")


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
    console.log(f"Loaded the conversation. User messages: {turns:,}.")


def _export(conversation: Conversation, rest: str) -> None:
    name = conversation.session.report.name
    console.log(f"Written to {attachments.export(rest, conversation.messages, name)}.")


def _experts(conversation: Conversation, rest: str) -> None:
    if not rest:
        router_report.show(conversation.session)
        return
    path = attachments.whole_path(rest)
    try:
        router_report.write(conversation.session, path)
    except errors.OutputError as error:
        raise UsageError(str(error)) from error
    console.log(f"Written to {path}.")


def _copy(conversation: Conversation, rest: str) -> None:
    answers = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
    if not answers:
        raise UsageError("there is no answer to copy")
    console.log(f"Copied {len(answers[-1]):,} characters with {clipboard.copy(answers[-1])}.")


def _set(conversation: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    if not name:
        usages = [(" ".join((*setting.names, setting.usage)), setting.help) for setting in SETTINGS]
        console.log_text("\n".join(f"/set {usage:31} {effect}" for usage, effect in usages))
        return
    setting = _find(SETTINGS, name)
    if setting is None:
        raise UsageError(f"unknown setting {name!r}", "Type /set to list the settings.")
    setting.run(conversation, value.strip())


def _set_parameter(conversation: Conversation, rest: str) -> None:
    name, _, text = rest.partition(" ")
    text = text.strip()
    if name not in PARAMETERS or not text:
        raise UsageError(f"expected NAME VALUE; NAME must be one of {', '.join(PARAMETERS)}")
    try:
        _change_parameter(conversation, name, text)
    except ValueError as error:
        raise UsageError(f"invalid {name} {text!r}: {error}") from error
    console.log(f"{name} is now {text}.")


def _change_parameter(conversation: Conversation, name: str, text: str) -> None:
    session = conversation.session
    if name == "num_ctx":
        tokens, largest = options.parse_context(text), session.report.verdict.largest_context
        if tokens > largest and not session.options.force:
            raise ValueError(f"the largest context that fits is {largest:,} tokens")
        conversation.resize(tokens)
        return
    field, read = FIELDS[name]
    value = read(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    session.change(**{field: value})


def _set_system(conversation: Conversation, rest: str) -> None:
    if conversation.session.raw:
        raise UsageError("this model has no chat template, so it cannot use a system message")
    text = _unquoted(rest)
    conversation.session.change(system=text or None)
    messages = conversation.messages
    if messages and messages[0]["role"] == "system":
        del messages[0]
    messages[:0] = conversation.session.initial_messages()
    console.log("System message set." if text else "System message removed.")


def _unquoted(text: str) -> str:
    """Remove the quotes around `text`, unless the text itself contains the same quotes."""
    for quote in ('"""', '"', "'"):
        bare = text.removeprefix(quote).removesuffix(quote)
        if len(bare) == len(text) - 2 * len(quote) and quote not in bare:
            return bare
    return text


def _set_think(conversation: Conversation, rest: str) -> None:
    if rest not in ("", *EFFORTS):
        raise UsageError(f"effort must be one of {', '.join(EFFORTS)}; omit it for the default")
    conversation.session.change(think=True, effort=rest or None)
    console.log("Thinking is on, if the model supports it.")


def _set_nothink(conversation: Conversation, rest: str) -> None:
    conversation.session.change(think=False, effort=None)
    console.log("Thinking is off, if the model can turn it off.")


def _set_thinking(conversation: Conversation, rest: str) -> None:
    if rest not in SHOWN:
        raise UsageError("expected show, fold or hide")
    conversation.folds = rest == "fold"
    conversation.session.change(show_thinking=rest != "hide")
    console.log(f"Thinking: {rest}.")


def _set_format(conversation: Conversation, rest: str) -> None:
    if rest not in FORMATS:
        raise UsageError("the format must be json or text")
    conversation.session.change(grammar=JSON_OBJECT if rest == "json" else None)
    console.log(f"Answers are now {'JSON objects' if rest == 'json' else 'plain text'}.")


def _set_stats(conversation: Conversation, rest: str, on: bool) -> None:
    conversation.shows_stats = on
    console.log(f"Token counts and speed after each answer: {'on' if on else 'off'}.")


def _set_markdown(conversation: Conversation, rest: str, on: bool) -> None:
    conversation.styled = on and console.styles()
    console.log(f"Markdown rendering: {'on' if conversation.styled else 'off'}.")


def _set_history(conversation: Conversation, rest: str, on: bool) -> None:
    path = conversation.host.history = history_file() if on else None
    console.log(f"Message history: {'on' if path else 'off'}.")
    if on and not path:
        console.log("CONIFER_NOHISTORY is set, or this terminal does not support line editing.")


SETTINGS = (
    Command("parameter", "NAME VALUE", ", ".join(PARAMETERS), _set_parameter, words(*PARAMETERS)),
    Command("system", "TEXT", "set the system message; without TEXT, remove it", _set_system),
    Command("think", "[low|medium|high]", "turn thinking on", _set_think, words(*EFFORTS)),
    Command("nothink", "", "turn thinking off", _set_nothink),
    Command(
        "thinking", "show|fold|hide", "show, fold or hide thinking", _set_thinking, words(*SHOWN)
    ),
    Command("format", "json|text", "answer in JSON or text", _set_format, words(*FORMATS)),
    Command("verbose", "", "print token counts and speed", partial(_set_stats, on=True)),
    Command("quiet", "", "do not print token counts or speed", partial(_set_stats, on=False)),
    Command("markdown", "", "render Markdown", partial(_set_markdown, on=True)),
    Command("plain", "", "print answers as plain text", partial(_set_markdown, on=False)),
    Command("history", "", "save messages for later chats", partial(_set_history, on=True)),
    Command("nohistory", "", "do not save messages", partial(_set_history, on=False)),
)


def _complete_set(typed: str) -> list[str]:
    name, space, rest = typed.partition(" ")
    if not space:
        return words(*(setting.names[0] for setting in SETTINGS))(typed)
    setting = _find(SETTINGS, name)
    return setting.complete(rest) if setting else []


def _show(conversation: Conversation, rest: str) -> None:
    if rest not in VIEWS:
        raise UsageError(f"expected one of {', '.join(VIEWS)}")
    console.log_text(VIEWS[rest](conversation))


def _show_info(conversation: Conversation) -> str:
    session = conversation.session
    report, config = session.report, session.model.config
    rows = [
        ("model", report.name),
        ("file", str(report.paths[0])),
        ("size", size(report.size_bytes)),
        ("layers", f"{config.layers:,}"),
        ("vocabulary", f"{config.vocab:,}"),
        ("context", f"{conversation.context:,} of {config.context:,} tokens"),
        ("kernels", session.model.kernels.name),
    ]
    if report.entry is not None:
        rows.insert(3, ("parameters", count(report.entry.total_parameters)))
    return "\n".join(labelled(rows))


def _show_template(conversation: Conversation) -> str:
    template = conversation.session.model.template
    return template.source if template is not None else "This model has no chat template."


def _show_parameters(conversation: Conversation) -> str:
    settings = conversation.session.settings
    rows = [(name, str(getattr(settings, field))) for name, (field, _) in SAMPLING.items()]
    rows += [
        ("num_ctx", str(conversation.context)),
        ("num_predict", str(settings.max_tokens or "limited only by the context")),
        ("seed", "random for each answer" if settings.seed is None else str(settings.seed)),
        ("stop", ", ".join(map(repr, settings.stop)) or "none"),
    ]
    return "\n".join(labelled(rows))


VIEWS: dict[str, Callable[[Conversation], str]] = {
    "info": _show_info,
    "system": lambda talk: talk.session.options.system or "There is no system message.",
    "template": _show_template,
    "parameters": _show_parameters,
    "thinking": lambda talk: talk.last_thinking or "The last answer contains no thinking.",
}
COMMANDS = (
    Command("/? /help", "", "show this help", _help),
    Command("/bye /exit /quit", "", "exit", _leave),
    Command("/clear /reset /new", "", "start a new conversation", _clear),
    Command("/set", "NAME [VALUE]", "change a setting, or list the settings", _set, _complete_set),
    Command("/show", "VIEW", f"show {', '.join(VIEWS)}", _show, words(*VIEWS)),
    Command("/save", "FILE", "save the conversation", _save, complete_path),
    Command("/load", "FILE", "continue a saved conversation", _load, complete_path),
    Command("/regen /retry", "", "answer the last message again", _regenerate),
    Command("/undo", "", "remove the last message and its answer", _undo),
    Command(
        "/read",
        "FILE [TEXT]",
        "send a file with TEXT, or with the next message",
        _read,
        complete_path,
    ),
    Command("/model", "[NAME]", "show or switch the model", _model, complete_model),
    Command("/stats", "", "show token counts and speed", _stats),
    Command(
        "/experts", "[FILE]", "show the experts chosen for the last answer", _experts, complete_path
    ),
    Command("/copy", "", "copy the last answer to the clipboard", _copy),
    Command("/export", "FILE", "write the conversation as Markdown", _export, complete_path),
)
