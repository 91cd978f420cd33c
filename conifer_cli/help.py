"""Help: the page of commands, the short `-h` and the long `--help` of a command, and topics.

A page is plain text with bold headings, and no wider than the terminal.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from conifer_cli import options, usage
from conifer_cli.errors import UsageError, prompt_hint
from conifer_cli.terminal import console
from conifer_cli.terminal.inline import BOLD
from conifer_cli.terminal.layout import Column, Grid, Line

WIDTH = 100  # maximum, in columns
NARROWEST = 28  # minimum
NAMES = 30  # the most columns that the names of options get
EXAMPLE_INDENT = 6  # of an example's further lines
GROUPED_FROM = 12  # minimum number of options to group
Rows = Iterable[tuple[str, str]]
_TYPE = re.compile(r" <(str|list\[str\])>$")  # argument types, omitted from help
_RANGE = re.compile(r"([\d.]+)<=x<=([\d.]+)")
_VARIABLE = re.compile(r"(  )?\[env var: (\w+)(?:; )?(\])?")
_HEADING = re.compile(r"^(?:Usage|\w[\w ]*(?=:$)|Also)", re.MULTILINE)

# Option group headings, in display order. Options without a group come last.
GROUPS = (
    *("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports", "Machine", "Network"),
)
# Options that only the long help of a command shows.
RARE = {
    *("--color", "--quiet", "--isa", "--kernels", "--kv-type", "--experts", "--experts-out"),
    *("--no-stream", "--raw", "--stop", "--top-p", "--top-k", "--min-p", "--seed", "--cache"),
    *("--repeat-penalty", "--presence-penalty", "--effort", "--reasoning-budget", "--verbose"),
    *("--show-thinking", "--save", "--resume", "--format", "--offline", "--log", "--force"),
    *("--save-preset", "--stats", "--plain", "--var", "--interactive", "--history"),
}
# Other tools' names for commands, and what to type for commands that Conifer lacks.
ALIASES = {"ls": "list"}
FAMILIAR = {
    **dict.fromkeys(("chat", "ask", "generate", "prompt"), "run"),
    **dict.fromkeys(("remove", "delete", "uninstall", "clean", "prune", "disk", "free"), "rm"),
    **dict.fromkeys(("download", "install", "get", "fetch"), "pull"),
    **dict.fromkeys(("search", "catalog", "browse"), "list --catalog"),
    **dict.fromkeys(("models", "installed"), "list"),
    **dict.fromkeys(("settings", "set"), "config"),
    **dict.fromkeys(("use", "select", "switch"), "default"),
    **dict.fromkeys(("continue", "resume"), "run --continue"),
    **dict.fromkeys(("best", "recommend", "suggest", "machine"), "fit"),
    **dict.fromkeys(("update", "upgrade"), "pull --update"),
    **dict.fromkeys(("system", "status", "diagnose"), "doctor"),
    **dict.fromkeys(("server", "api", "start"), "serve"),
    **dict.fromkeys(("stop", "top", "loaded"), "ps"),
    **dict.fromkeys(("templates", "create"), "presets"),
    "aliases": "alias",
    **dict.fromkeys(("logs", "history", "sessions"), "chats"),
    **dict.fromkeys(("info", "inspect"), "show"),
    **dict.fromkeys(("version",), "--version"),
    **dict.fromkeys(("benchmark",), "bench"),
    **dict.fromkeys(("check",), "doctor"),
}
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
    ("CONIFER_MODEL", "the model to use if the command line names none"),
    ("CONIFER_HOME", "the folder for Conifer's own files, such as config.toml"),
    ("CONIFER_NOHISTORY", "set to 1 to keep neither messages nor conversations"),
    ("HF_HOME, HF_HUB_CACHE", "the folder for model weights"),
    ("HF_TOKEN", "the access token for gated repositories"),
    ("HF_ENDPOINT", "the URL of a Hub mirror"),
    ("HF_HUB_OFFLINE", "set to 1 to make no connections"),
    ("HTTPS_PROXY, NO_PROXY", "proxy settings"),
    ("NO_COLOR", "set to disable colours and styles"),
    ("CLICOLOR_FORCE", "set to 1 to print colours into pipes and files too"),
    ("VISUAL, EDITOR", "the editor for messages and presets"),
)
TOPICS: dict[str, Rows] = {"environment": ENVIRONMENT, "exit-codes": EXIT_CODES}
TITLE = "Conifer runs Mixture-of-Experts models and says in advance whether they fit."
FOOTER = "See `conifer help COMMAND`, `conifer help environment` or `conifer help exit-codes`."
TEXT_ONLY = "Conifer reads and writes text. It sees no images and hears no audio."


class _PlainValues:
    """Lets parameters convert simple values without loading pydantic."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, including --help."""
        parameters = super().get_params(ctx)  # type: ignore[misc]
        usage.convert_plain_values(parameters)
        return parameters


class CommandHelp(_PlainValues, TyperCommand):
    """A command's help, and its error for unexpected arguments.

    rare: left out of the list. implied: the actions that a number means in place of an action, and
    that another word probably means.
    """

    rare = False
    implied = ("", "")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UsageError if there are too many of them."""
        ctx.allow_extra_args = True  # typer's own message contains "(s)"
        ctx.meta["brief"] = "-h" in args and "--help" not in args
        of_number, of_word = self.implied
        if of_number and args and args[0].isdecimal():
            args = [of_number, *args]
        first = next((word for word in args if not word.startswith("-")), "")
        try:
            super().parse_args(ctx, args)
        except typer.TyperException as error:
            vars(error)["ctx"] = getattr(error, "ctx", None) or ctx
            parameter: Any = getattr(error, "param", None)
            if of_word and _is(parameter, "argument"):
                known = map(str, parameter.type_descriptor.choices or ())
                meant = usage.did_you_mean(first, known, f"`{ctx.command_path} {{}}`")
                meant = meant or f"Did you mean `{ctx.command_path} {of_word} {first}`?"
                raise UsageError(usage.message(error), meant) from error
            raise
        if ctx.args:
            raise UsageError(
                f"unexpected argument {usage.quoted(ctx.args[0])}", usage.help_hint(ctx)
            )
        return []

    def get_help(self, ctx: Any) -> str:
        """Return the page, with bold headings if standard output shows styles."""
        _fit(ctx)
        return _headed(super().get_help(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group. In the short help, only common ones."""
        parameters = self.get_params(ctx)
        _section(ctx, formatter, "Arguments", (p for p in parameters if _is(p, "argument")))
        options = [p for p in parameters if _is(p, "option")]
        if ctx.meta.get("brief"):
            common = [option for option in options if RARE.isdisjoint(option.opts)]
            _section(ctx, formatter, "Options", common)
            return
        if len(options) < GROUPED_FROM:
            _section(ctx, formatter, "Options", options)
            return
        for title in (*GROUPS, None):
            found = [option for option in options if _group(option) == title]
            _section(ctx, formatter, title or "Other options", found)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description. In the short help, only its first line."""
        if not ctx.meta.get("brief"):
            super().format_help_text(ctx, formatter)
            return
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text((self.help or "").partition("\n")[0])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples. In the short help, only one, and how to get the long help."""
        formatter.write_paragraph()
        if ctx.meta.get("brief"):
            example = (self.epilog or "").split("\n")[-1].strip()
            lines = ["Examples:", *_wrapped(f"  {example}", formatter.width)]
            formatter.write("".join(f"{line}\n" for line in lines))
            formatter.write_paragraph()
            formatter.write_text(f"`{ctx.command_path} --help` lists every option.")
            return
        for line in (self.epilog or "").split("\n")[1:]:
            formatter.write("".join(f"{part}\n" for part in _wrapped(line, formatter.width)))


class ProgramHelp(_PlainValues, TyperGroup):
    """The program's page, and its error for an unknown command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names. Raises UsageError if there is none."""
        name, *rest = args
        if name in ALIASES:
            return super().resolve_command(ctx, [ALIASES[name], *rest])
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        known = [known for known, command in self.commands.items() if not command.hidden]
        meant = prompt_hint(name)
        if not meant and (other := FAMILIAR.get(name.lower())):
            meant = f"Did you mean `conifer {other}`?"
        meant = meant or usage.did_you_mean(name, known, "`conifer {}`")
        if not meant and len(args) > 1 and not any(word.startswith("-") for word in rest):
            meant = prompt_hint(" ".join(args))
        raise UsageError(f"unknown command {usage.quoted(name)}", meant or usage.help_hint(ctx))

    def get_help(self, ctx: Any) -> str:
        """Return the page of commands, which fits a terminal of 80 columns and 24 lines."""
        _fit(ctx)
        return _headed("\n".join(self._page(ctx)))

    def _page(self, ctx: Any) -> Iterable[str]:
        shown = {name: each for name, each in self.commands.items() if not each.hidden}
        common = [n for n, each in shown.items() if not getattr(each, "rare", False)]
        width = ctx.make_formatter().width
        yield from _wrapped(TITLE, width)
        yield from ("", "Usage: conifer COMMAND [OPTIONS]", "", "Commands:")
        for name in common:
            about = shown[name].get_short_help_str(WIDTH)
            yield from _wrapped(f"  {name:10}  {about}", width)
        others = ", ".join(sorted(name for name in shown if name not in common))
        yield from _wrapped(f"Also: {others}", width)
        yield ""
        for line in (self.epilog or "").split("\n")[1:]:
            yield from _wrapped(line, width)
        yield ""
        yield from _wrapped(FOOTER.replace("`", ""), width)


class Program(typer.Typer):
    """A Typer app whose commands use CommandHelp and have --color and --quiet."""

    def command(  # type: ignore[override]
        self,
        short_help: str = "",
        *lines: str,
        rare: bool = False,
        implied: tuple[str, str] = ("", ""),
        **settings: Any,
    ) -> Callable[..., Any]:
        """Register a command.

        short_help: shown in the list of commands. lines: examples. rare: the list shows only its
        name. implied: see CommandHelp.
        """
        kind = type("CommandHelp", (CommandHelp,), {"rare": rare, "implied": implied})
        register = super().command(
            cls=kind, short_help=short_help, epilog=examples(*lines), **settings
        )

        def declare(callback: Callable[..., Any]) -> Callable[..., Any]:
            # Reading --color loads pydantic, which completion has no time for.
            hidden = settings.get("hidden", False)
            return register(callback if hidden else _with_common_options(callback))

        return declare


def _with_common_options(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that has the options of every command too. They act when read."""

    def command(*args: Any, **values: Any) -> Any:
        for name in COMMON:
            values.pop(name, None)
        return callback(*args, **values)

    signature = inspect.signature(callback)
    parameters = list(signature.parameters.values())
    for name, (kind, default) in COMMON.items():
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=kind))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = callback.__name__, callback.__doc__
    return command


COMMON = {"color": (options.Color, None), "quiet": (options.Quiet, False)}


def examples(*lines: str) -> str:
    """Format examples so that --help prints them without wrapping."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def show_help(root: Any, topic: str | None) -> None:
    """Print the page of a command or a topic. Raises UsageError if there is none."""
    program = root.command
    topic = ALIASES.get(topic, topic) if topic else None
    if topic is None:
        console.write_stdout(program.get_help(root) + "\n")
    elif topic in TOPICS:
        console.print_lines(_topic(topic))
    elif topic in program.commands and not program.commands[topic].hidden:
        context = typer.Context(program.commands[topic], info_name=topic, parent=root)
        console.write_stdout(context.command.get_help(context) + "\n")
    else:
        known = [name for name, command in program.commands.items() if not command.hidden]
        meant = usage.did_you_mean(topic, [*known, *TOPICS], "`conifer help {}`")
        topics = f"Topics: {', '.join(TOPICS)}, and the name of every command."
        raise UsageError(f"no help on {usage.quoted(topic)}", meant or topics)


def _topic(name: str) -> list[Line]:
    title: Line = [(BOLD, f"{name.replace('-', ' ').capitalize()}:")]
    lines = [title, Grid([Column(), Column()], TOPICS[name])]
    if name == "environment":
        lines += ["", "The command line overrides the environment, which overrides config.toml."]
    return lines


def _fit(ctx: Any) -> None:
    """Make a page fit the terminal. Typer's are never narrower than 50 columns."""
    columns, _ = console.dimensions()
    ctx.terminal_width = max(NARROWEST, min(columns, WIDTH) - 2)


def _headed(text: str) -> str:
    if not console.paints(sys.stdout):
        return text
    return _HEADING.sub(lambda found: f"\x1b[{BOLD}m{found[0]}\x1b[0m", text)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    found = re.match(r" +\S+  +(?=\S)| *", text)
    indent = " " * max(len(found[0]) if found else 0, EXAMPLE_INDENT * text.startswith("  "))
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _group(option: Any) -> str | None:
    return getattr(option, "rich_help_panel", None)


def _is(parameter: Any, kind: str) -> bool:
    return bool(getattr(parameter, "param_type_name", None) == kind)


def _section(ctx: Any, formatter: Any, title: str, parameters: Iterable[Any]) -> None:
    rows = []
    for parameter in parameters:
        if record := parameter.get_help_record(ctx):
            name, about = record
            about = _RANGE.sub(r"\1 to \2", about)
            rows.append((_TYPE.sub("", name), _without_variable(parameter, about)))
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=min(NAMES, formatter.width // 2))


def _without_variable(parameter: Any, about: str) -> str:
    """Return the text without the environment variable, if that is CONIFER_ and the option."""
    if parameter.envvar != options.variable_of(parameter.opts):
        return about
    return _VARIABLE.sub(lambda found: "" if found[3] else f"{found[1] or ''}[", about, count=1)
