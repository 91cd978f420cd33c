"""Format `--help`: grouped options, examples, environment variables and exit codes.

The output is plain text, no wider than the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from conifer_cli import usage
from conifer_cli.errors import UsageError, prompt_hint

WIDTH = 100  # maximum, in columns
GROUPED_FROM = 12  # minimum number of options to group
Rows = Iterable[tuple[str, str]]
_TYPE = re.compile(r" <(str|list\[str\])>$")  # argument types, omitted from help
_RANGE = re.compile(r"([\d.]+)<=x<=([\d.]+)")

# Option group headings, in display order. Options without a group come last.
GROUPS = (
    *("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports", "Machine", "Network"),
)
EXIT_CODES = (
    ("0", "success, even if --max-tokens ended the answer"),
    ("1", "a runtime failure"),
    ("2", "invalid usage, a missing path or an unknown name"),
    ("3", "a damaged or unsupported model file"),
    ("4", "not enough memory, disk space or context, or an answer cut off by a full context"),
    ("5", "a problem with the network, the Hub or the model cache"),
    ("130", "interrupted by Ctrl-C"),
    ("141", "a broken pipe on standard output"),
)
ENVIRONMENT = (
    ("CONIFER_<OPTION>", "any option, such as CONIFER_CONTEXT=16k; overrides config.toml"),
    ("CONIFER_HOME", "the folder for Conifer's own files, such as config.toml"),
    ("HF_HOME, HF_HUB_CACHE", "the folder for model weights"),
    ("HF_TOKEN", "the access token for gated repositories"),
    ("HF_ENDPOINT", "the URL of a Hub mirror"),
    ("HF_HUB_OFFLINE", "set to 1 to make no connections"),
    ("HTTPS_PROXY, NO_PROXY", "proxy settings"),
    ("NO_COLOR", "set to disable colours and styles"),
)


class CommandHelp(TyperCommand):
    """A command's help, and its error for unexpected arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UsageError if there are too many of them."""
        ctx.allow_extra_args = True  # typer's own message contains "(s)"
        try:
            super().parse_args(ctx, args)
        except typer.TyperException as error:
            vars(error)["ctx"] = getattr(error, "ctx", None) or ctx
            raise
        if ctx.args:
            raise UsageError(
                f"unexpected argument {usage.quoted(ctx.args[0])}", usage.help_hint(ctx)
            )
        return []

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group."""
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
    """The program's help, and its error for an unknown command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names. Raises UsageError if there is none."""
        name, *_ = args
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        known = [known for known, command in self.commands.items() if not command.hidden]
        meant = prompt_hint(name) or usage.did_you_mean(name, known, "`conifer {}`")
        raise UsageError(f"unknown command {usage.quoted(name)}", meant or usage.help_hint(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, the environment variables and the exit codes."""
        _epilog(self, formatter, {"Environment": ENVIRONMENT, "Exit codes": EXIT_CODES})


class Program(typer.Typer):
    """A Typer app whose commands use CommandHelp."""

    def command(  # type: ignore[override]
        self, short_help: str = "", *lines: str, **settings: Any
    ) -> Callable[..., Any]:
        """Register a command. short_help: shown in the list of commands. lines: examples."""
        return super().command(
            cls=CommandHelp, short_help=short_help, epilog=examples(*lines), **settings
        )


def examples(*lines: str) -> str:
    """Format examples so that --help prints them without wrapping."""
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
