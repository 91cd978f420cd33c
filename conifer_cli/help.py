"""Format `--help`: grouped options, examples, environment variables and exit codes.

Plain text, no wider than the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 100  # columns at most
GROUPED_FROM = 12  # options
Rows = Iterable[tuple[str, str]]
_TYPE = re.compile(r" <(str|list\[str\])>$")  # of arguments; not informative
_RANGE = re.compile(r"([\d.]+)<=x<=([\d.]+)")

# Headings of grouped options, in the order shown; options without a group come last.
GROUPS = (
    *("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports", "Machine", "Network"),
)
EXIT_CODES = (
    ("0", "success, even if --max-tokens ended the answer"),
    ("1", "a failure at run time"),
    ("2", "invalid usage, a missing path, an unknown name"),
    ("3", "a damaged or unsupported model file"),
    ("4", "not enough memory, disk or context, or an answer cut off at the end of the context"),
    ("5", "a problem with the network, the Hub or the model cache"),
    ("130", "Ctrl-C"),
    ("141", "the reader of standard output is gone"),
)
ENVIRONMENT = (
    ("CONIFER_<OPTION>", "any option, as in CONIFER_CONTEXT=16k; overrides config.toml"),
    ("CONIFER_HOME", "the folder for Conifer's own files, such as config.toml"),
    ("HF_HOME, HF_HUB_CACHE", "the folder for weights"),
    ("HF_TOKEN", "the token for gated repositories"),
    ("HF_ENDPOINT", "a mirror of the Hub"),
    ("HF_HUB_OFFLINE", "1: make no connections"),
    ("HTTPS_PROXY, NO_PROXY", "proxy settings"),
    ("NO_COLOR", "disables colours and styles"),
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
        _epilog(self, formatter, {"Exit codes": EXIT_CODES})


class ProgramHelp(TyperGroup):
    """The help of the program."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, the environment and the exit codes."""
        _epilog(self, formatter, {"Environment": ENVIRONMENT, "Exit codes": EXIT_CODES})


class Program(typer.Typer):
    """A Typer app whose commands use CommandHelp."""

    def command(  # type: ignore[override]
        self, short_help: str = "", *lines: str, **settings: Any
    ) -> Callable[..., Any]:
        """Register a command with its line in the program's help and its examples."""
        return super().command(
            cls=CommandHelp, short_help=short_help, epilog=examples(*lines), **settings
        )


def examples(*lines: str) -> str:
    """Format examples so that help prints them unchanged."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def _epilog(command: Any, formatter: Any, sections: dict[str, Rows]) -> None:
    formatter.write_paragraph()
    formatter.write_text(command.epilog)
    for title, rows in sections.items():
        _list(formatter, title, rows)


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


def _list(formatter: Any, title: str, rows: Rows) -> None:
    rows = list(rows)
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
