"""The options of `run`, each declared once: type, default, option names, range and help.

The signature of the command, the environment variables, the groups of --help and the keys of the
config file are all derived from `RunOptions`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import typer

from conifer_cli import options
from conifer_cli.errors import UsageError
from conifer_cli.options import MAX_SEED, MAX_TOKENS, option

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
TYPED = "command line"
SOURCES = {"COMMANDLINE": TYPED, "DEFAULT_MAP": "config file", "DEFAULT": "default"}
RANKS = {"DEFAULT": 0, "DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}

_prompt, _answer, _sampling, _thinking, _conversation, _reports = (
    partial(option, group=group)
    for group in ("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports")
)

Command = TypeVar("Command", bound=Callable[..., int])


def parse_stop(text: str) -> str:
    """Parse a stop text."""
    if not text:
        raise typer.BadParameter("a stop text must not be empty")
    return text


class Effort(StrEnum):
    """How long to reason, by the names chat templates use."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Format(StrEnum):
    """The format an answer must have."""

    JSON = "json"


@dataclass(frozen=True)
class RunOptions:
    """The options of `run`; None leaves the choice to the model.

    Fields without an `option` are not on the command line. grammar: the JSON schema that answers
    must match. sources: where each value came from.
    """

    prompt: Annotated[str | None, _prompt("-p", "--prompt", metavar="TEXT", help="The prompt.")] = (
        None
    )
    system: Annotated[
        str | None, _prompt("-s", "--system", metavar="TEXT", help="The system message.")
    ] = None
    interactive: Annotated[
        bool,
        _prompt("-i", "--interactive", help="Continue as a conversation after the first answer."),
    ] = False

    format: Annotated[
        Format | None, _answer("--format", help="Require the answer to be a JSON object.")
    ] = None
    schema: Annotated[
        str | None,
        _answer(
            "--schema",
            metavar="FILE",
            help="Require the answer to match the JSON schema in this file, or given as '{...}'.",
        ),
    ] = None
    as_json: Annotated[
        bool,
        _answer(
            "--json", help="Print one JSON object: answer, thinking, usage, rates, finish reason."
        ),
    ] = False
    extract: Annotated[
        bool,
        _answer(
            "-x",
            "--extract",
            help="Print only the first code block of the answer, without its fences.",
        ),
    ] = False
    no_stream: Annotated[
        bool, _answer("--no-stream", help="Print the answer only when it is complete.")
    ] = False
    raw: Annotated[
        bool,
        _answer(
            "--raw",
            help="Print the model's output unchanged: keep terminal escapes, add no newline.",
        ),
    ] = False
    max_tokens: Annotated[
        int | None,
        _answer(
            "--max-tokens",
            metavar="COUNT",
            min=1,
            max=MAX_TOKENS,
            help="Stop the answer after this many tokens.",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        _answer(
            "--stop",
            metavar="TEXT",
            parser=parse_stop,
            help="End the answer before this text; may be repeated.",
        ),
    ] = None

    temperature: Annotated[
        float | None,
        _sampling(
            "--temperature",
            metavar="NUMBER",
            min=0,
            max=10,
            help="0 always picks the most likely token.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        _sampling(
            "--top-p",
            metavar="SHARE",
            min=0.01,
            max=1,
            help="Keep the most likely tokens up to this total probability.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        _sampling(
            "--top-k",
            metavar="COUNT",
            min=1,
            max=MAX_TOKENS,
            help="Keep this many of the most likely tokens.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        _sampling(
            "--min-p",
            metavar="SHARE",
            min=0,
            max=0.99,
            help="Keep tokens at least this likely, relative to the most likely one.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        _sampling(
            "--seed",
            metavar="NUMBER",
            min=0,
            max=MAX_SEED,
            help="The same seed gives the same answer.",
        ),
    ] = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None

    think: Annotated[
        bool | None,
        _thinking(
            "--think/--no-think", help="Turn reasoning on or off, if the chat template supports it."
        ),
    ] = None
    effort: Annotated[
        Effort | None,
        _thinking("--effort", help="How long to reason, if the chat template supports it."),
    ] = None
    reasoning_budget: Annotated[
        int | None,
        _thinking(
            "--reasoning-budget",
            metavar="COUNT",
            min=0,
            max=MAX_TOKENS,
            help="End the reasoning after this many tokens and start the answer.",
        ),
    ] = None
    show_thinking: Annotated[
        bool | None,
        _thinking(
            "--show-thinking/--hide-thinking",
            help="Print the reasoning to stderr. Default: only if stderr is a terminal.",
        ),
    ] = None

    save: Annotated[
        str | None,
        _conversation(
            "--save", metavar="FILE", help="Save the conversation and its KV cache to this file."
        ),
    ] = None
    resume: Annotated[
        str | None,
        _conversation(
            "--resume", metavar="FILE", help="Continue a saved conversation; MODEL may be omitted."
        ),
    ] = None
    cache: Annotated[
        bool,
        _conversation(
            "--cache",
            help="Cache the processed prompt on disk, and reuse what earlier prompts share.",
        ),
    ] = False

    stats: Annotated[bool, _reports("--stats", help="Print token counts and speeds to stderr.")] = (
        False
    )
    verbose: Annotated[
        bool,
        _reports(
            "--verbose",
            help="Print the file and the source of each setting to stderr; implies --stats.",
        ),
    ] = False
    experts: Annotated[
        bool,
        _reports(
            "--experts", help="Plot on stderr how each router distributed tokens over its experts."
        ),
    ] = False
    experts_out: Annotated[
        Path | None,
        _reports(
            "--experts-out",
            metavar="FILE",
            help="Write this report to FILE.png (a picture) or FILE.json (all counts).",
        ),
    ] = None

    context: options.Context = None
    kv_type: options.KV = options.KVType.F16
    kernels: options.KernelChoice = options.KernelName.AUTO
    force: options.Force = False
    offline: Annotated[
        bool, option("--offline", group="Network", help="Download nothing; make no connections.")
    ] = False
    yes: options.Yes = False

    grammar: str | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling settings that have a value."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in values.items() if value is not None}

    def is_explicit(self, name: str) -> bool:
        """True if an option was given on the command line, not by the environment or a file."""
        return self.sources.get(name, TYPED) == TYPED


def with_run_options(command: Command) -> Command:
    """Replace the `**` parameter of a command by the options of `RunOptions`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(RunOptions, include_extras=True)
    declared = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=types[each.name],
        )
        for each in fields(RunOptions)
        if get_origin(types[each.name]) is Annotated
    ]
    new = signature.replace(parameters=[*own, *declared])
    command.__signature__ = new  # type: ignore[attr-defined]
    return command


# Pairs that exclude each other, by parameter; "no_think" is --no-think.
EXCLUSIVE = (
    ("words", "prompt"),
    ("effort", "no_think"),
    ("show_thinking", "no_think"),
    ("reasoning_budget", "no_think"),
    ("schema", "format"),
    ("extract", "schema"),
    ("extract", "format"),
    ("as_json", "raw"),
    ("as_json", "interactive"),
    ("extract", "interactive"),
)
FLAGS = {
    "words": "a prompt after the model",
    "prompt": "-p/--prompt",
    "as_json": "--json",
    "interactive": "-i/--interactive",
    "extract": "-x/--extract",
}


def parse(command_line: typer.Context) -> tuple[str | None, str | None, RunOptions]:
    """Return the model, the prompt after it and the options. Raises UsageError."""
    values = resolve_conflicts(command_line)
    model, words = values.pop("model"), values.pop("words")
    chosen = RunOptions(**values, sources=sources(command_line))
    return model, " ".join(words) if words else None, chosen


def resolve_conflicts(command_line: typer.Context) -> dict[str, Any]:
    """Return the values by parameter, with the weaker value of each exclusive pair removed.

    The command line overrides the environment, and that the config file. Raises UsageError if both
    options of a pair come from the same source.
    """
    values = dict(command_line.params)
    if _rank(command_line, "stop") == RANKS["ENVIRONMENT"]:
        values["stop"] = [os.environ["CONIFER_STOP"]]  # typer would split it at white space
    for first, second in EXCLUSIVE:
        if not (_given(values, first) and _given(values, second)):
            continue
        ranks = _rank(command_line, first), _rank(command_line, second)
        if ranks[0] == ranks[1]:
            raise UsageError(f"{_flag(first)} and {_flag(second)} exclude each other")
        weaker = first if ranks[0] < ranks[1] else second
        values[_parameter(weaker)] = False if isinstance(values[_parameter(weaker)], bool) else None
        if weaker == "no_think":
            values["think"] = None
    return values


def sources(command_line: typer.Context) -> dict[str, str]:
    """Return where the value of each parameter came from."""
    found = {}
    for parameter in command_line.command.params:
        source = command_line.get_parameter_source(parameter.name or "")
        if source is not None and parameter.name:
            found[parameter.name] = SOURCES.get(source.name) or str(parameter.envvar)
    return found


def _given(values: dict[str, Any], name: str) -> bool:
    if name == "no_think":
        return values["think"] is False
    return values.get(name) not in (None, False, (), [])


def _rank(command_line: typer.Context, name: str) -> int:
    source = command_line.get_parameter_source(_parameter(name))
    return RANKS[source.name] if source is not None else 0


def _parameter(name: str) -> str:
    return "think" if name == "no_think" else name


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))
