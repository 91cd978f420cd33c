"""How `--help` is laid out: options in groups, examples, the environment, exit codes.

Plain text, no wider than a terminal: nothing is imported for it that the program has not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 100  # columns at most
GROUPED_FROM = 12  # options
_TYPE = re.compile(r" <(str|list\[str\])>$")  # of arguments, that say nothing
_RANGE = re.compile(r"([\d.]+)<=x<=([\d.]+)")

# Headings of grouped options, in the order shown; options without a group come last.
GROUPS = (
    *("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports", "Machine", "Network"),
)
EXIT_CODES = (
    ("0", "done; also an answer that --max-tokens has ended"),
    ("1", "a failure while running"),
    ("2", "something typed that makes no sense, a path that is missing, an unknown name"),
    ("3", "a damaged model file, or one with something that Conifer does not have"),
    ("4", "it does not fit: memory, disk, context; or the context's end has cut an answer"),
    ("5", "the network, the hub, the cache of models"),
    ("130", "Ctrl-C"),
    ("141", "whoever read the output has gone"),
)
ENVIRONMENT = (
    (
        "CONIFER_<OPTION>",
        "any option, as CONIFER_CONTEXT=16k: before config.toml, after what is typed",
    ),
    ("CONIFER_HOME", "the folder for Conifer's own files, config.toml among them"),
    ("HF_HOME, HF_HUB_CACHE", "the folder for weights"),
    ("HF_TOKEN", "for repositories that want one"),
    ("HF_ENDPOINT", "a mirror of the hub"),
    ("HF_HUB_OFFLINE", "1: open no socket"),
    ("HTTPS_PROXY, NO_PROXY", "the way to the network"),
    ("NO_COLOR", "no colours, no styles"),
)


class CommandHelp(TyperCommand):
    """The help of one command."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by group."""
        parameters = self.get_params(ctx)
        _section(ctx, formatter, "Arguments", (p for p in parameters if _is(p, "argument")))
        options = [p for p in parameters if _is(p, "option")]
        if len(options) < GROUPED_FROM:
            _section(ctx, formatter, "Options", options)
            return
        for title in (*GROUPS, None):
            found = [option for option in options if _group(option) == title]
            _section(ctx, formatter, title or "Other options", found)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples and the exit codes."""
        _examples(self, formatter)
        _list(formatter, "Exit codes", EXIT_CODES)


class ProgramHelp(TyperGroup):
    """The help of the program."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, the environment and the exit codes."""
        _examples(self, formatter)
        _list(formatter, "Environment", ENVIRONMENT)
        _list(formatter, "Exit codes", EXIT_CODES)


class Program(typer.Typer):
    """An app whose commands have such help."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """Register a command, as `typer.Typer.command` does."""
        return super().command(name, cls=CommandHelp, **settings)


def _examples(command: Any, formatter: Any) -> None:
    if command.epilog:
        formatter.write_paragraph()
        formatter.write_text(command.epilog)


def _group(option: Any) -> str | None:
    return getattr(option, "rich_help_panel", None)


def _is(parameter: Any, kind: str) -> bool:
    return bool(parameter.param_type_name == kind)


def _section(ctx: Any, formatter: Any, title: str, parameters: Iterable[Any]) -> None:
    records = (parameter.get_help_record(ctx) for parameter in parameters)
    rows = [
        (_TYPE.sub("", name), _RANGE.sub(r"\1 to \2", about))
        for name, about in filter(None, records)
    ]
    _list(formatter, title, rows)


def _list(formatter: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
