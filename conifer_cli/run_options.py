"""The options for `run`. Each is declared once: its type, default, names, range and help text.

`RunOptions` defines the command's signature, environment variables, --help text and config keys.
Annotations are real types, not strings, because typer would have to compile every string.
"""

# ruff: noqa: RUF009 - the calls return dataclass fields

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer

from conifer_cli import options
from conifer_cli.errors import UsageError
from conifer_cli.options import MAX_SEED, MAX_TOKENS, option

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
TYPED = "command line"
# The sources of a value, lowest precedence first. ENVIRONMENT is reported by variable name.
SOURCES = {
    "DEFAULT": "default",
    "DEFAULT_MAP": "config file",
    "ENVIRONMENT": "",
    "COMMANDLINE": TYPED,
}

Command = TypeVar("Command", bound=Callable[..., int])


def _group(title: str) -> Callable[..., Any]:
    """Return a function that declares an option listed under `title` in --help."""

    def declare(names: str, help: str, default: Any = None, **settings: Any) -> Any:
        declared = option(names, help, group=title, **settings)
        return field(default=default, metadata={"option": declared})

    return declare


_prompt, _answer, _sampling, _thinking, _conversation, _reports, _network = map(
    _group,
    ("Prompt", "Answer", "Sampling", "Thinking", "Conversation", "Reports", "Network"),
)
_COUNT = {"metavar": "COUNT", "min": 1, "max": MAX_TOKENS}


def parse_stop(text: str) -> str:
    """Return the stop text. Raises BadParameter if it is empty."""
    if not text:
        raise typer.BadParameter("must not be empty")
    return text


class Effort(StrEnum):
    """Reasoning effort levels, named as in chat templates."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Format(StrEnum):
    """The required format of the answer."""

    JSON = "json"


@dataclass(eq=False, repr=False)
class RunOptions:
    """The options for `run`. None means the model's default.

    Fields without an option cannot be set on the command line. grammar: the JSON schema that
    answers must match. template: the preset's. sources: the source of each value, by field name.
    """

    named: str | None = _prompt(
        "-m --model", "The model; then all words are the prompt.", metavar="MODEL"
    )
    prompt: str | None = _prompt(
        "-p --prompt", "The prompt. @FILE in it stands for a file's text.", metavar="TEXT"
    )
    files: list[str] | None = _prompt(
        "-f --file",
        "Send a text file with the prompt. Can be repeated; a pattern such as 'src/*.py' works.",
        metavar="FILE",
    )
    preset: str | None = _prompt(
        "-t --preset", "Use the options kept under this name.", metavar="NAME"
    )
    var: list[str] | None = _prompt(
        "--var", "A value for {NAME} in the preset's template.", metavar="NAME=VALUE"
    )
    save_preset: str | None = _prompt(
        "--save-preset", "Keep the options just typed under this name, and exit.", metavar="NAME"
    )
    system: str | None = _prompt("-s --system", "The system message.", metavar="TEXT")
    tools: Path | None = _prompt(
        "--tools",
        "Offer the functions in this JSON file to the model, and print its calls as JSON.",
        metavar="FILE",
    )
    tool_results: Path | None = _prompt(
        "--tool-results",
        "Continue with the printed calls in this JSON file, each with its result.",
        metavar="FILE",
    )
    interactive: bool = _prompt(
        "-i --interactive", "Continue the conversation after the first answer.", False
    )

    format: Format | None = _answer("--format", "Require the answer to be a JSON object.")
    schema: str | None = _answer(
        "--schema",
        "Require the answer to match a JSON schema, given as a file or as '{...}'.",
        metavar="FILE",
    )
    as_json: bool = _answer(
        "--json",
        "Print one JSON object with the answer, reasoning, usage, speeds and finish reason.",
        False,
    )
    extract: bool = _answer(
        "-x --extract", "Print only the first code block in the answer, without the fences.", False
    )
    no_stream: bool = _answer("--no-stream", "Print the answer only when it is complete.", False)
    raw: bool = _answer(
        "--raw",
        "Print the model's output exactly, with terminal escapes and no added newline.",
        False,
    )
    plain: bool = _answer(
        "--plain", "Print the answer as it is in a terminal too, without rendering Markdown.", False
    )
    max_tokens: int | None = _answer(
        "--max-tokens -n", "Stop the answer after this many tokens.", **_COUNT
    )
    stop: list[str] | None = _answer(
        "--stop",
        "End the answer before this text. Can be repeated.",
        metavar="TEXT",
        parser=parse_stop,
    )

    temperature: float | None = _sampling(
        "--temperature",
        "Sampling temperature. 0 always picks the most likely token.",
        metavar="NUMBER",
        min=0,
        max=10,
    )
    top_p: float | None = _sampling(
        "--top-p",
        "Sample from the most likely tokens, up to this total probability.",
        metavar="SHARE",
        min=0.01,
        max=1,
    )
    top_k: int | None = _sampling(
        "--top-k", "Sample from this many of the most likely tokens.", **_COUNT
    )
    min_p: float | None = _sampling(
        "--min-p",
        "Sample from tokens at least this likely, relative to the most likely token.",
        metavar="SHARE",
        min=0,
        max=0.99,
    )
    seed: int | None = _sampling(
        "--seed",
        "Random seed. The same seed produces the same answer.",
        metavar="NUMBER",
        min=0,
        max=MAX_SEED,
    )
    repetition_penalty: float | None = _sampling(
        "--repeat-penalty",
        "Make recent tokens less likely by this factor. 1 has no effect.",
        metavar="NUMBER",
        min=0.01,
        max=100,
    )
    presence_penalty: float | None = _sampling(
        "--presence-penalty",
        "Make recent tokens less likely by this amount. 0 has no effect.",
        metavar="NUMBER",
        min=-2,
        max=2,
    )

    think: bool | None = _thinking(
        "--think/--no-think", "Turn reasoning on or off, if the chat template supports it."
    )
    effort: Effort | None = _thinking(
        "--effort", "Reasoning effort, if the chat template supports it."
    )
    reasoning_budget: int | None = _thinking(
        "--reasoning-budget",
        "End the reasoning after this many tokens and start the answer.",
        **_COUNT | {"min": 0},
    )
    show_thinking: bool | None = _thinking(
        "--show-thinking/--hide-thinking",
        "Print the reasoning to stderr. Default: only if stderr is a terminal.",
    )

    save: str | None = _conversation(
        "--save", "Save the conversation and its KV cache to this file.", metavar="FILE"
    )
    resume: str | None = _conversation(
        "--resume", "Continue a saved conversation. MODEL can be omitted.", metavar="FILE"
    )
    last: bool = _conversation(
        "--continue", "Continue the last conversation. MODEL can be omitted.", False
    )
    history: bool = _conversation(
        "--history/--no-history", "Keep the conversation for `conifer chats`.", True
    )
    log: bool = _conversation(
        "--log", "Keep the answer to a single prompt for `conifer chats` too.", False
    )
    cache: bool = _conversation(
        "--cache",
        "Cache the processed prompt on disk, and reuse any prefix shared with earlier prompts.",
        False,
    )

    stats: bool = _reports("--stats", "Print token counts and speeds to stderr.", False)
    verbose: bool = _reports(
        "--verbose",
        "Print the model file and the source of each setting to stderr. Implies --stats.",
        False,
    )
    experts: bool = _reports(
        "--experts", "Plot on stderr how each router distributed tokens among its experts.", False
    )
    experts_out: Path | None = _reports(
        "--experts-out",
        "Write the expert report to FILE.png (a plot) or FILE.json (all counts).",
        metavar="FILE",
    )

    context: options.Context = None
    kv_type: options.KV = options.KVType.F16
    kernels: options.KernelChoice = options.KernelName.AUTO
    isa: options.Isa = None
    stream: options.Stream = False
    budget: options.Budget = None
    force: options.Force = False
    offline: bool = _network(
        "--offline", "Make no network connections, and download nothing.", False
    )
    yes: options.Yes = False

    grammar: str | None = None
    template: str | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling settings that are not None."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in values.items() if value is not None}

    def is_explicit(self, name: str) -> bool:
        """Return False if an option came from a default, the environment or the config file."""
        return self.sources.get(name, TYPED) == TYPED


def with_run_options(command: Command) -> Command:
    """Replace a command's `**` parameter with the options in `RunOptions`."""
    signature, keyword = inspect.signature(command), inspect.Parameter.KEYWORD_ONLY
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for each in fields(RunOptions):
        kind: Any = each.type
        if "option" in each.metadata:
            kind = Annotated[kind, each.metadata["option"]]
        if get_origin(kind) is Annotated:
            declared = inspect.Parameter(each.name, keyword, default=each.default, annotation=kind)
            parameters.append(declared)
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


@cache
def _command() -> Any:
    """Return a typer command with the options in `RunOptions`."""

    @with_run_options
    def run(**_: Any) -> int:
        return 0

    app = typer.Typer()
    app.command()(run)
    return typer.main.get_command(app)


def parse_value(name: str, text: str) -> Any:
    """Return the value that `text` has for a RunOptions field, as on the command line.

    Raises BadParameter.
    """
    parameter = next(p for p in _command().params if p.name == name)
    try:
        return parameter.process_value(
            typer.Context(_command()), [text] if parameter.multiple else text
        )
    except typer.BadParameter as error:
        error.param = parameter
        raise


Pairs = tuple[tuple[str, str], ...]
# Mutually exclusive options, by parameter name. "no_think" stands for --no-think.
STREAMING: Pairs = (("stream", "force"), ("budget", "force"))
EXCLUSIVE: Pairs = (
    ("words", "prompt"),
    ("effort", "no_think"),
    ("show_thinking", "no_think"),
    ("reasoning_budget", "no_think"),
    ("schema", "format"),
    ("extract", "schema"),
    ("extract", "format"),
    ("last", "resume"),
    ("last", "system"),
    ("as_json", "raw"),
    ("as_json", "interactive"),
    ("tools", "interactive"),
    ("tools", "as_json"),
    ("tools", "extract"),
    ("tools", "schema"),
    ("tools", "format"),
    ("tools", "save"),
    ("tools", "resume"),
    ("extract", "interactive"),
    *STREAMING,
)
FLAGS = {
    "words": "a prompt after the model",
    "prompt": "-p/--prompt",
    "as_json": "--json",
    "last": "--continue",
    "interactive": "-i/--interactive",
    "extract": "-x/--extract",
}


def parse(command_line: typer.Context) -> tuple[str | None, str | None, RunOptions]:
    """Return (MODEL, the prompt after it, options). Raises UsageError if options conflict."""
    values, sources = dict(command_line.params), {}
    ranks = _ranks(command_line)
    for parameter in command_line.command.params:
        if source := command_line.get_parameter_source(parameter.name):
            sources[parameter.name] = SOURCES[source.name] or str(parameter.envvar)
    if sources.get("stop") == "CONIFER_STOP":
        values["stop"] = [os.environ["CONIFER_STOP"]]  # typer would split it at whitespace
    if values["preset"]:
        _apply_preset(command_line, values, sources, ranks)
    first = values["model"]
    known = values["named"] or values["resume"] is not None or values["last"]
    if first and (sources.get("named") == TYPED or (known and _is_prompt(first))):
        values["words"] = [first, *(values["words"] or [])]
        ranks["words"] = ranks["model"]
        values["model"] = None
    _resolve_conflicts(values, ranks)
    model, words = values.pop("model"), values.pop("words")
    goes_on = values["resume"] is not None or values["last"]
    if model is None and (not goes_on or sources.get("named") == TYPED):
        model = values["named"]
    return model, " ".join(words) if words else None, RunOptions(**values, sources=sources)


def _is_prompt(text: str) -> bool:
    """True if a text cannot name a model: it has several words, and there is no such file."""
    return len(text.split()) > 1 and not os.path.exists(text)


def _apply_preset(
    command_line: typer.Context, values: dict[str, Any], sources: dict[str, str], ranks: Any
) -> None:
    """Set what the preset sets, unless the command line sets it too."""
    from conifer_cli import presets

    found, values["template"] = presets.read(command_line, values["preset"])
    for name, value in found.items():
        if sources.get(name) != TYPED:
            values[name], sources[name] = value, f"preset {values['preset']}"
            ranks[name] = len(SOURCES) - 1.5  # above the environment


def typed_options(command_line: typer.Context) -> dict[str, Any]:
    """Return the options on the command line for --save-preset, by long name.

    The model and the prompt are options too: `model` and `template`.
    """
    from conifer_cli import presets
    from conifer_cli.config_file import long_name

    found: dict[str, Any] = {}
    params = command_line.params
    for parameter in command_line.command.params:
        source = command_line.get_parameter_source(parameter.name)
        key = long_name(parameter)
        typed = source is not None and SOURCES[source.name] == TYPED
        if key and typed and parameter.name in {*params} - {*presets.EXCLUDED}:
            value = params[parameter.name]
            found[key] = value if isinstance(value, bool | int | float | list) else str(value)
    words = [word for word in (params["model"], *(params["words"] or [])) if word]
    if words and "model" not in found:
        found["model"], *words = words
    template = found.pop("prompt", None) or " ".join(words)
    return {**found, presets.TEMPLATE: template} if template else found


def _resolve_conflicts(values: dict[str, Any], ranks: dict[str, float]) -> None:
    """Resolve all options of `run` that exclude each other. Raises UsageError."""
    values["no_think"] = values["think"] is False
    ranks["no_think"] = ranks["think"]
    resolve(values, ranks, EXCLUSIVE)
    if values["think"] is False and not values["no_think"]:
        values["think"] = None
    del values["no_think"]


def resolve(values: dict[str, Any], ranks: dict[str, float], pairs: Pairs) -> None:
    """In each mutually exclusive pair, unset the option whose source has lower precedence.

    Raises UsageError if both options come from the same source.
    """
    for first, second in pairs:
        if any(values[name] in (None, False, []) for name in (first, second)):
            continue
        if ranks[first] == ranks[second]:
            raise UsageError(f"{_flag(first)} and {_flag(second)} cannot be used together")
        weaker = first if ranks[first] < ranks[second] else second
        values[weaker] = False if isinstance(values[weaker], bool) else None


def streaming(command_line: typer.Context) -> tuple[bool, bool, int | None]:
    """Return the values of --force, --stream and --budget. The first excludes the others."""
    values = dict(command_line.params)
    resolve(values, _ranks(command_line), STREAMING)
    return values["force"], values["stream"], values["budget"]


def is_typed(command_line: typer.Context, name: str) -> bool:
    """True if a parameter was given on the command line, not in the environment or a file."""
    source = command_line.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _ranks(command_line: typer.Context) -> dict[str, float]:
    """Return the rank of each option's source, by parameter name."""
    names = [parameter.name for parameter in command_line.command.params]
    sources = {name: command_line.get_parameter_source(name) for name in names}
    return {name: [*SOURCES].index(source.name) for name, source in sources.items() if source}


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))
