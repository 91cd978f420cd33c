"""The options of `run` alone, and what becomes of two that exclude each other.

What is typed goes before the environment, that before the config file, that before the defaults:
of a pair that excludes each other the weaker one is dropped, and two of equal rank are an error.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from conifer_cli.errors import UsageError
from conifer_cli.options import MAX_SEED, MAX_TOKENS

SAMPLING = ("temperature", "top_p", "top_k", "min_p")
RANKS = {"DEFAULT": 0, "DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}


def parse_stop(text: str) -> str:
    """Read a text that ends an answer."""
    if not text:
        raise typer.BadParameter("a text to stop before must not be empty")
    return text


class Effort(StrEnum):
    """How long to think, by the names that templates know."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Format(StrEnum):
    """What an answer has to be."""

    JSON = "json"


Prompt = Annotated[
    str | None,
    typer.Option("-p", "--prompt", metavar="TEXT", envvar="CONIFER_PROMPT", help="The prompt."),
]
System = Annotated[
    str | None,
    typer.Option(
        "-s", "--system", metavar="TEXT", envvar="CONIFER_SYSTEM", help="The system message."
    ),
]
Interactive = Annotated[
    bool,
    typer.Option(
        "-i",
        "--interactive",
        envvar="CONIFER_INTERACTIVE",
        help="Go on as a conversation after the first answer.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        min=0,
        max=10,
        envvar="CONIFER_TEMPERATURE",
        help="0 always takes the likeliest token.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        min=0.01,
        max=1,
        envvar="CONIFER_TOP_P",
        help="Keep the likeliest tokens up to this share.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        min=1,
        max=MAX_TOKENS,
        envvar="CONIFER_TOP_K",
        help="Keep this many of the likeliest.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        min=0,
        max=0.99,
        envvar="CONIFER_MIN_P",
        help="Keep tokens at least this likely, relative to the likeliest.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="NUMBER", min=0, max=MAX_SEED, envvar="CONIFER_SEED", help="Same seed, same answer."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        min=1,
        max=MAX_TOKENS,
        envvar="CONIFER_MAX_TOKENS",
        help="Stop the answer after so many.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        parser=parse_stop,
        envvar="CONIFER_STOP",
        help="End the answer before this text; may be given several times.",
    ),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        envvar="CONIFER_THINK",
        help="Ask the chat template for reasoning, or for none.",
    ),
]
ReasoningEffort = Annotated[
    Effort | None,
    typer.Option(
        "--effort", envvar="CONIFER_EFFORT", help="How long to reason, for templates that know it."
    ),
]
ReasoningBudget = Annotated[
    int | None,
    typer.Option(
        "--reasoning-budget",
        metavar="COUNT",
        min=0,
        max=MAX_TOKENS,
        envvar="CONIFER_REASONING_BUDGET",
        help="End the reasoning after so many tokens, and have the answer begin.",
    ),
]
ShowThinking = Annotated[
    bool | None,
    typer.Option(
        "--show-thinking/--hide-thinking",
        envvar="CONIFER_SHOW_THINKING",
        help="Print the reasoning to stderr. Default: where that is a terminal.",
    ),
]
Stats = Annotated[
    bool, typer.Option("--stats", envvar="CONIFER_STATS", help="Print counts and rates to stderr.")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        envvar="CONIFER_JSON",
        help="Print one JSON object: answer, thinking, usage, rates, finish reason.",
    ),
]
Extract = Annotated[
    bool,
    typer.Option(
        "-x",
        "--extract",
        envvar="CONIFER_EXTRACT",
        help="Print only the first code block of the answer, without its fences.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="FILE",
        envvar="CONIFER_SCHEMA",
        help="Hold the answer to the JSON schema in this file, or to this one: '{...}'.",
    ),
]
AnswerFormat = Annotated[
    Format | None,
    typer.Option("--format", envvar="CONIFER_FORMAT", help="Have the answer be a JSON object."),
]
Save = Annotated[
    str | None,
    typer.Option(
        "--save",
        metavar="FILE",
        envvar="CONIFER_SAVE",
        help="Keep the conversation in this file, with the state of the model.",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        envvar="CONIFER_RESUME",
        help="Go on with a conversation that --save kept; its model need not be named.",
    ),
]
UseCache = Annotated[
    bool,
    typer.Option(
        "--cache",
        envvar="CONIFER_CACHE",
        help="Store the prompt as it was read, and start from what earlier ones share with it.",
    ),
]
NoStream = Annotated[
    bool,
    typer.Option(
        "--no-stream", envvar="CONIFER_NO_STREAM", help="Print the answer when it is complete."
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        envvar="CONIFER_RAW",
        help="Print what the model wrote as it is, terminal escapes too, and add no newline.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="CONIFER_OFFLINE", help="Fetch nothing; open no socket."),
]
Experts = Annotated[
    bool,
    typer.Option(
        "--experts",
        envvar="CONIFER_EXPERTS",
        help="Draw on stderr how each router spread the tokens over its experts.",
    ),
]
ExpertsOut = Annotated[
    Path | None,
    typer.Option(
        "--experts-out",
        metavar="FILE",
        envvar="CONIFER_EXPERTS_OUT",
        help="Write that to FILE.png, a picture, or FILE.json, all counts.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        envvar="CONIFER_VERBOSE",
        help="Say on stderr which file runs and where each setting came from; has --stats.",
    ),
]

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
PLACES = {"COMMANDLINE": "typed", "DEFAULT_MAP": "config file", "DEFAULT": "default"}


def settle(command_line: typer.Context) -> dict[str, Any]:
    """Return the values of `run` by parameter, of each excluded pair only the stronger one.

    Raises UsageError where both were given in the same place.
    """
    chosen = dict(command_line.params)
    if _rank(command_line, "stop") == RANKS["ENVIRONMENT"]:
        chosen["stop"] = [os.environ["CONIFER_STOP"]]  # one text: white space may belong to it
    for first, second in EXCLUSIVE:
        if not (_given(chosen, first) and _given(chosen, second)):
            continue
        ranks = _rank(command_line, first), _rank(command_line, second)
        if ranks[0] == ranks[1]:
            raise UsageError(f"{_flag(first)} and {_flag(second)} exclude each other")
        weaker = first if ranks[0] < ranks[1] else second
        chosen[_parameter(weaker)] = False if isinstance(chosen[_parameter(weaker)], bool) else None
        if weaker == "no_think":
            chosen["think"] = None
    return chosen


def origins(command_line: typer.Context) -> dict[str, str]:
    """Say of each parameter that has a value where that came from."""
    found = {}
    for parameter in command_line.command.params:
        source = command_line.get_parameter_source(parameter.name or "")
        if source is not None and parameter.name:
            place = PLACES.get(source.name)
            found[parameter.name] = place or str(parameter.envvar)
    return found


def _given(chosen: dict[str, Any], name: str) -> bool:
    if name == "no_think":
        return chosen["think"] is False
    return chosen.get(name) not in (None, False, (), [])


def _rank(command_line: typer.Context, name: str) -> int:
    source = command_line.get_parameter_source(_parameter(name))
    return RANKS[source.name] if source is not None else 0


def _parameter(name: str) -> str:
    return "think" if name == "no_think" else name


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))
