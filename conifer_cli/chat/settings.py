"""The settings that /set changes, and the views that /show prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import typer

from conifer_cli.chat.command import Command, expected, find, names_of
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import history_file, words
from conifer_cli.errors import UsageError
from conifer_cli.fit.context import require_room
from conifer_cli.run_options import SAMPLING, Effort, parse_value
from conifer_cli.session import history
from conifer_cli.session.session import JSON_OBJECT
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, size
from conifer_cli.terminal.layout import Column, Grid, Line, labelled
from conifer_cli.usage import did_you_mean, problem, quoted

# Parameter name, as in other tools -> RunOptions field.
PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "num_ctx": "context",
    "num_predict": "max_tokens",
    "seed": "seed",
    "stop": "stop",
}
# Options of `run` with other names than their parameters.
OPTIONS = {
    "context": "num_ctx",
    "max_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
}
EFFORTS = tuple(Effort)
SHOWN = ("show", "fold", "hide")
FORMATS = ("json", "text")


def change_setting(conversation: Conversation, rest: str) -> None:
    """Change the setting that `rest` names, or list the settings."""
    name, _, value = rest.partition(" ")
    if not name:
        usages = [(" ".join((*setting.names, setting.usage)), setting.help) for setting in SETTINGS]
        rows = [(f"/set {usage}", effect) for usage, effect in usages]
        console.log_lines([Grid([Column(), Column()], rows)])
        return
    setting = find(SETTINGS, name)
    if setting is None and parameter_of(name) is not None:
        _set_parameter(conversation, f"{parameter_of(name)} {value}")
        return
    if setting is None:
        meant = did_you_mean(name, [*names_of(SETTINGS), *PARAMETERS], "/set {}")
        raise UsageError(f"unknown setting {quoted(name)}", meant or "Type /set to list them.")
    setting.run(f"/set {name}", conversation, value.strip())


def parameter_of(name: str) -> str | None:
    """Return the parameter that a name or an option of `run` means, or None."""
    plain = name.lstrip("-").replace("-", "_")
    plain = OPTIONS.get(plain, plain)
    return plain if plain in PARAMETERS else None


def parameter_value(name: str, text: str) -> Any:
    """Parse a parameter's value as on the command line. Raises UsageError."""
    try:
        return parse_value(PARAMETERS[name], text)
    except typer.BadParameter as error:
        raise UsageError(f"{name} {problem(error, text)}") from error


def _set_parameter(conversation: Conversation, rest: str) -> None:
    name, _, text = rest.partition(" ")
    text = text.strip()
    if not name:
        show_view(conversation, "parameters")
        return
    if name not in PARAMETERS:
        raise expected("parameter", name, PARAMETERS)
    field, value = PARAMETERS[name], parameter_value(name, text)
    if field == "context":
        if not conversation.session.options.force:
            require_room(conversation.session.report, conversation.context, value)
        conversation.resize(value)
    else:
        conversation.session.change(**{field: value})
    console.log(f"{name} is now {text if field == 'stop' else value}.")


def set_system(conversation: Conversation, rest: str) -> None:
    """Set the system message, or remove it if `rest` is empty."""
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
        raise expected("effort", rest, EFFORTS)
    if not conversation.session.can_think:
        raise UsageError(f"{conversation.session.report.name} does not reason")
    conversation.session.change(think=True, effort=rest or None)
    console.log("Thinking is on.")


def _set_nothink(conversation: Conversation, rest: str) -> None:
    conversation.session.change(think=False, effort=None)
    console.log("Thinking is off, if the model can turn it off.")


def _set_thinking(conversation: Conversation, rest: str) -> None:
    if rest not in SHOWN:
        raise expected("mode", rest, SHOWN)
    conversation.folds = rest == "fold"
    conversation.session.change(show_thinking=rest != "hide")
    console.log(f"Thinking: {rest}.")


def _set_format(conversation: Conversation, rest: str) -> None:
    if rest not in FORMATS:
        raise expected("format", rest, FORMATS)
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
    conversation.keeps = history.is_on(on)
    console.log(f"Message history: {'on' if path else 'off'}.")
    console.log(f"Keeping this conversation: {'on' if conversation.keeps else 'off'}.")
    if on and not path:
        console.log("CONIFER_NOHISTORY is set, or this terminal does not support line editing.")


SETTINGS = (
    Command("parameter", "[NAME VALUE]", ", ".join(PARAMETERS), _set_parameter, words(*PARAMETERS)),
    Command("system", "TEXT", "set the system message; without TEXT, remove it", set_system),
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
    Command("history", "", "keep messages and conversations", partial(_set_history, on=True)),
    Command(
        "nohistory",
        "",
        "keep no messages and no conversation",
        partial(_set_history, on=False),
    ),
)


def complete_setting(typed: str) -> list[str]:
    """Return the candidates for the last word after /set."""
    name, space, rest = typed.partition(" ")
    if not space:
        return words(*(setting.names[0] for setting in SETTINGS), *PARAMETERS)(typed)
    setting = find(SETTINGS, name)
    return setting.complete(rest) if setting else []


def show_view(conversation: Conversation, rest: str) -> None:
    """Print the view that `rest` names, by default the first."""
    view = rest or next(iter(VIEWS))
    if view not in VIEWS:
        raise expected("view", view, VIEWS)
    console.log_lines(VIEWS[view](conversation))


def _show_info(conversation: Conversation) -> list[Line]:
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
    return [labelled(rows)]


def _show_template(conversation: Conversation) -> list[Line]:
    template = conversation.session.model.template
    return [template.source if template is not None else "This model has no chat template."]


def _show_parameters(conversation: Conversation) -> list[Line]:
    settings = conversation.session.settings
    fields = {name: field for name, field in PARAMETERS.items() if field in SAMPLING}
    rows = [(name, str(getattr(settings, field))) for name, field in fields.items()]
    rows += [
        ("num_ctx", str(conversation.context)),
        ("num_predict", str(settings.max_tokens or "limited only by the context")),
        ("seed", "random for each answer" if settings.seed is None else str(settings.seed)),
        ("stop", ", ".join(map(repr, settings.stop)) or "none"),
    ]
    return [labelled(rows)]


VIEWS: dict[str, Callable[[Conversation], list[Line]]] = {
    "info": _show_info,
    "system": lambda talk: [talk.session.options.system or "There is no system message."],
    "template": _show_template,
    "parameters": _show_parameters,
    "thinking": lambda talk: [talk.last_thinking or "The last answer contains no thinking."],
}
