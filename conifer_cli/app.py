"""The `conifer` command: which subcommands there are, and what becomes of what they raise.

Errors become exit codes (`errors`), a signal that ends us becomes 128 and its number, a reader that
left becomes a silent 141.
Commands import what they need when they run: `--help` loads neither wing.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from conifer_cli import errors, interrupts, options, run_options
from conifer_cli.commands.completion import QUERY, Shell
from conifer_cli.help import WIDTH, Contents, Program
from conifer_cli.terminal import console

HELP = ["-h", "--help"]
UNCONFIGURED = (QUERY, "completion", "doctor")  # which work whatever the config file says
WINDOWS = "conifer: Windows is not supported; inside WSL2 (Ubuntu, x86-64) Conifer runs as on Linux"


def _examples(*lines: str) -> str:
    """Lay out a command's examples so that help prints them as they are."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


app = Program(
    cls=Contents,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP, "max_content_width": WIDTH},
    epilog=_examples(
        "conifer run                                   a first answer, from a 98 MB model",
        'conifer run qwen3-30b-a3b "Why is the sky blue?"',
        "conifer fit                                   which models fit this machine",
    ),
)

MaybeModels = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Names as `conifer list` shows them."),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A catalog id, hf:org/repo[/file][:QUANT], or a path."),
]
MaybeModel = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A catalog id, hf:org/repo[/file][:QUANT], or a path."),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="The prompt; its words are joined by a space."),
]


def main() -> NoReturn:
    """Run the program and leave with its exit code."""
    if sys.platform == "win32":
        sys.stderr.write(WINDOWS + "\n")
        sys.exit(errors.FAILURE)
    console.prepare()
    interrupts.catch_signals()
    console.finish(_outcome(sys.argv[1:]))


def _outcome(arguments: list[str]) -> int:
    """Run one command line; print what went wrong, if we foresaw it."""
    try:
        code = _run(arguments)
        console.write("")
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    except interrupts.Ended as signal:
        return 128 + signal.number
    except console.ReaderGone:
        return errors.READER_GONE
    except errors.known_exceptions() as error:
        return console.report(error)
    return code


def _run(arguments: list[str]) -> int:
    try:
        return int(app(arguments, prog_name="conifer", standalone_mode=False) or errors.OK)
    except SystemExit as error:  # how typer leaves when nobody reads the help that it writes
        raise console.ReaderGone from error
    except OSError as error:
        if not set(arguments) & set(HELP):  # typer writes help by itself; any other is our bug
            raise
        raise errors.OutputError(f"cannot write to standard output: {error.strerror}") from error


@app.callback(invoke_without_command=True)
def conifer(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and leave.")
    ] = False,
) -> int:
    """Run Mixture-of-Experts language models on this machine, and say beforehand what fits it."""
    if version:
        console.out([f"conifer {_version()}"])
    elif context.invoked_subcommand is None:
        console.out([context.get_help()])
    elif context.invoked_subcommand not in UNCONFIGURED:
        from conifer_cli.config_file import defaults

        context.default_map = defaults(context)
    return errors.OK


def _typed(command_line: typer.Context, name: str) -> bool:
    """Tell whether an option stands on the command line."""
    source = command_line.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("conifer-cli")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: running from its source)"


@app.command(
    short_help="Answer a prompt, or talk.",
    epilog=_examples(
        "conifer run",
        'conifer run qwen3-30b-a3b "Why is the sky blue?"',
        'git diff | conifer run qwen3-coder-30b-a3b "Write a commit message for this."',
        'conifer run ./model.gguf -c 16k --temperature 0 -p "Once upon a time"',
    ),
)
def run(
    command_line: typer.Context,
    model: MaybeModel = None,
    words: Words = None,
    prompt: run_options.Prompt = None,
    system: run_options.System = None,
    interactive: run_options.Interactive = False,
    context: options.Context = None,
    temperature: run_options.Temperature = None,
    top_p: run_options.TopP = None,
    top_k: run_options.TopK = None,
    min_p: run_options.MinP = None,
    seed: run_options.Seed = None,
    max_tokens: run_options.MaxTokens = None,
    stop: run_options.Stop = None,
    think: run_options.Think = None,
    effort: run_options.ReasoningEffort = None,
    reasoning_budget: run_options.ReasoningBudget = None,
    show_thinking: run_options.ShowThinking = None,
    as_json: run_options.AsJson = False,
    schema: run_options.Schema = None,
    format: run_options.AnswerFormat = None,
    extract: run_options.Extract = False,
    no_stream: run_options.NoStream = False,
    raw: run_options.Raw = False,
    stats: run_options.Stats = False,
    verbose: run_options.Verbose = False,
    experts: run_options.Experts = False,
    experts_out: run_options.ExpertsOut = None,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    save: run_options.Save = None,
    resume: run_options.Resume = None,
    cache: run_options.UseCache = False,
    offline: run_options.Offline = False,
    force: options.Force = False,
    yes: options.Yes = False,
) -> int:
    """Answer a prompt, or talk: with no prompt, in a terminal, a conversation begins.

    Standard input, when it is not a terminal, is read first and comes before the prompt. Without
    MODEL the starter answers, a 135M demonstration. Standard output is the answer and nothing else.
    """
    from conifer_cli.commands.run import run_model
    from conifer_cli.session.session import RunOptions

    chosen = run_options.settle(command_line)
    name, said = chosen.pop("model"), chosen.pop("words")
    sampling = {name: chosen.pop(name) for name in run_options.SAMPLING}
    return run_model(
        name,
        " ".join(said) if said else None,
        RunOptions(
            sampling={name: value for name, value in sampling.items() if value is not None},
            stop=tuple(chosen.pop("stop") or ()),
            origins=run_options.origins(command_line),
            **chosen,
        ),
    )


@app.command(
    short_help="Fetch a model's weights.",
    epilog=_examples(
        "conifer pull qwen3-30b-a3b",
        "conifer pull qwen3-30b-a3b:Q8_0 --yes",
        "conifer pull hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q8_0",
    ),
)
def pull(
    model: Model,
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            envvar="CONIFER_UPDATE",
            help="Fetch the newest revision although an older one is here.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            envvar="CONIFER_FORCE",
            help="Go on although it does not fit; of what is here, fetch again what is damaged.",
        ),
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> int:
    """Fetch a model's weights, after saying whether they fit this machine.

    An interrupted transfer goes on where it stopped. What comes is verified before it is used. Of a
    model that is here already, a newer revision on the hub is reported.
    """
    from conifer_cli.commands.pull import pull_model
    from conifer_cli.fit.plan import FitRequest

    return pull_model(model, FitRequest(context, kv_type.value, force, yes), update, as_json)


@app.command(
    short_help="Check models against their hashes.",
    epilog=_examples("conifer verify", "conifer verify qwen3-30b-a3b"),
)
def verify(models: MaybeModels = None, as_json: options.Json = False) -> int:
    """Read models again and compare their SHA-256 with the promised one; without MODEL, all.

    The exit code is 3 if one is damaged.
    """
    from conifer_cli.commands.verify import verify_models

    return verify_models(models or [], as_json)


@app.command(
    short_help="Say which models fit this machine.",
    epilog=_examples(
        "conifer fit",
        "conifer fit qwen3-30b-a3b",
        "conifer fit qwen3-30b-a3b:Q8_0 -c 64k",
        "conifer fit --machine m4-max-64gb",
        "conifer fit ./model.gguf --json",
    ),
)
def fit(
    model: MaybeModel = None,
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    total: options.Total = False,
    memory: options.Memory = None,
    machine: options.Machine = None,
    as_json: options.Json = False,
) -> int:
    """Say whether a model fits this machine, with how much context, and how fast; without MODEL,
    all of them.

    The exit code is 0 for one that fits, 4 for one that does not, 5 where it cannot be told; with
    --machine, which asks no hub, 2 where nothing is known of it on this machine.
    """
    from conifer_cli.commands.fit import FitOptions, fit_all, fit_model
    from conifer_cli.fit.plan import FitRequest

    request = FitRequest(context, kv_type.value, kernels=kernels.value)
    asked = FitOptions(request, machine, memory, total, as_json)
    return fit_all(asked) if model is None else fit_model(model, asked)


@app.command(
    short_help="Measure how fast a model runs.",
    epilog=_examples(
        "conifer bench",
        "conifer bench qwen3-30b-a3b --prompt 512 --depth 0,4k,16k",
        "conifer bench ./model.gguf --json > result.json",
    ),
)
def bench(
    model: MaybeModel = None,
    prompt: options.BenchPrompt = None,
    depth: options.BenchDepth = None,
    tokens: options.BenchTokens = 64,
    repeat: options.BenchRepeat = 5,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    force: options.Force = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> int:
    """Measure how fast a model reads prompts and answers here; without MODEL, the starter.

    Medians, with the lowest and highest run; for answers also the share of the rate at which this
    machine reads memory. The last line on standard output is the whole as one line of JSON.
    """
    from conifer_cli.commands.bench import BenchOptions, bench_model

    return bench_model(
        model,
        BenchOptions(
            prompts=prompt.tokens if prompt else None,
            depths=depth.tokens if depth else None,
            tokens=tokens,
            repeat=repeat,
            kv_type=kv_type.value,
            kernels=kernels.value,
            force=force,
            yes=yes,
            as_json=as_json,
        ),
    )


@app.command(
    "list",
    short_help="List the models on this machine.",
    epilog=_examples("conifer list", "conifer list --catalog", "conifer list --speeds"),
)
def list_(
    catalog: Annotated[
        bool,
        typer.Option(
            "--catalog",
            envvar="CONIFER_CATALOG",
            help="List every model that Conifer knows instead.",
        ),
    ] = False,
    speeds: Annotated[
        bool,
        typer.Option(
            "--speeds",
            envvar="CONIFER_SPEEDS",
            help="List what was measured here, beside the prediction, of every model that ran.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> int:
    """List the models on this machine, or with --catalog those that could be."""
    from conifer_cli.commands.list import list_catalog, list_installed, list_speeds

    if catalog and speeds:
        raise errors.UsageError("--catalog and --speeds are two lists; ask for one")
    if speeds:
        return list_speeds(as_json)
    return list_catalog(as_json) if catalog else list_installed(as_json)


@app.command(
    short_help="Show the facts of a model.",
    epilog=_examples("conifer show qwen3-30b-a3b", "conifer show ./model.gguf --json"),
)
def show(model: Model, as_json: options.Json = False) -> int:
    """Show the facts of a model, and of its file where that is on this machine."""
    from conifer_cli.commands.show import show_model

    return show_model(model, as_json)


@app.command(
    short_help="Remove models from this machine.",
    epilog=_examples(
        "conifer rm qwen3-30b-a3b", "conifer rm smollm2-135m --yes", "conifer rm --all"
    ),
)
def rm(
    models: MaybeModels = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Remove everything that Conifer wrote, and nothing of others."),
    ] = False,
    yes: options.Yes = False,
) -> int:
    """Remove models from this machine, after showing what goes."""
    from conifer_cli.commands.rm import remove_models

    return remove_models(models or [], everything, yes)


@app.command(
    short_help="Check this machine and this install.",
    epilog=_examples("conifer doctor", "conifer doctor --json"),
)
def doctor(as_json: options.Json = False) -> int:
    """Check this machine and this install, a line each, and say what to do about what is wrong.

    The exit code is that of the first check that fails: 1 for backend, kernels and versions, 4 for
    memory and a full disk, 5 for the cache and the hub. HF_HUB_OFFLINE=1 leaves the hub alone.
    """
    from conifer_cli.commands.doctor import examine

    return examine(as_json)


@app.command(
    short_help="Print completion for a shell.",
    epilog=_examples(
        "conifer completion bash > ~/.local/share/bash-completion/completions/conifer",
        'conifer completion zsh > "${fpath[1]}/_conifer"',
        "conifer completion fish > ~/.config/fish/completions/conifer.fish",
    ),
)
def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell that is to read it.")],
) -> int:
    """Print what makes a shell complete commands, options and the names of models."""
    from conifer_cli.commands.completion import print_script

    return print_script(shell)


@app.command(
    QUERY,
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def complete(
    command_line: typer.Context, words: Annotated[list[str] | None, typer.Argument()] = None
) -> int:
    """Print completions of the last word. The scripts of `completion` call this."""
    from conifer_cli.commands.completion import print_candidates

    return print_candidates(command_line.find_root().command, words or [])
