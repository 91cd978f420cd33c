"""The `conifer` program: its subcommands and exit codes.

The exit code for a known exception is in `errors`. For a signal it is 128 plus the signal number;
for a broken pipe on standard output it is 141. Each command imports its code when it runs, so that
`--help` starts fast. For the same reason, annotations are not strings, which Typer would have to
compile.
"""

import sys
from typing import Annotated, Any, NoReturn

import typer

from conifer_cli import errors, interrupts, kept_commands, options, run_options
from conifer_cli.help import WIDTH, Program, ProgramHelp, examples, show_help
from conifer_cli.terminal import console
from conifer_cli.versions import NOT_INSTALLED, installed_version

HELP = ["-h", "--help"]
QUERY = "__complete"  # a hidden command, run by the completion scripts
UNCONFIGURED = (
    QUERY,
    "completion",
    "doctor",
    "help",
    "config",
)  # these work even if config.toml is invalid
WINDOWS = "conifer: Windows is not supported; run Conifer in WSL2 (Ubuntu, x86-64) instead"

app = Program(
    cls=ProgramHelp,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP, "max_content_width": WIDTH},
    epilog=examples(
        "conifer fit                      which models fit this machine?",
        'conifer run qwen3-30b-a3b "Why is the sky blue?"',
        "conifer run                      try a 98 MB model",
    ),
)

_MODEL = typer.Argument(
    metavar="MODEL", help="A catalog id, hf:org/repo[/file][:QUANT], or a path."
)
_MODELS = typer.Argument(metavar="MODEL", help="Model names, as shown by `conifer list`.")
_WORDS = typer.Argument(metavar="PROMPT", help="The prompt. Multiple words are joined with spaces.")
Model = Annotated[str, _MODEL]
MaybeModel = Annotated[str | None, _MODEL]
MaybeModels = Annotated[list[str] | None, _MODELS]
Words = Annotated[list[str] | None, _WORDS]
Version = Annotated[
    bool, typer.Option("--version", "-V", is_eager=True, help="Print the version and exit.")
]
All = Annotated[
    bool, typer.Option("--all", help="Remove every file written by Conifer, and nothing else.")
]


def main() -> NoReturn:
    """Run the program and exit with its exit code."""
    if sys.platform == "win32":
        sys.stderr.write(WINDOWS + "\n")
        sys.exit(errors.FAILURE)
    console.prepare()
    interrupts.catch_signals()
    console.finish(_outcome(sys.argv[1:]))


def _outcome(arguments: list[str]) -> int:
    """Run a command line and return the exit code. Reports known exceptions on stderr."""
    try:
        code = _run(arguments)
        console.write_stdout("")
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    except interrupts.Ended as signal:
        return 128 + signal.number
    except console.ReaderGone:
        return errors.READER_GONE
    except errors.known_exceptions() as error:
        return console.report(error)
    except RuntimeError as error:
        from engine.limits import NO_THREADS, lacks_threads

        if not lacks_threads(error):
            raise
        console.log(f"conifer: {NO_THREADS}")
        return errors.FAILURE
    return code


def _run(arguments: list[str]) -> int:
    try:
        code = int(app(arguments, prog_name="conifer", standalone_mode=False) or errors.OK)
    except interrupts.Ended:
        raise
    except SystemExit as error:  # a broken pipe while typer prints help
        raise console.ReaderGone from error
    except OSError as error:
        if not set(arguments) & set(HELP):  # typer itself writes only help
            raise
        raise errors.OutputError(f"cannot write to standard output: {errors.why(error)}") from error
    if sys.stdout is None and set(arguments) & set(HELP):  # which typer then omits
        raise errors.OutputError("standard output is closed")
    return code


@app.callback(invoke_without_command=True)
def conifer(
    context: typer.Context,
    version: Version = False,
    quiet: options.Quiet = False,
) -> int:
    """Run Mixture-of-Experts language models, and see in advance which ones fit this machine."""
    if version:
        console.print_lines([f"conifer {installed_version() or NOT_INSTALLED}"])
    elif context.invoked_subcommand is None:
        show_help(context, None)
    elif context.invoked_subcommand not in UNCONFIGURED:
        from conifer_cli.config_file import defaults

        context.default_map = defaults(context)
    return errors.OK


@app.command(
    "Answer a prompt or start a chat.",
    "conifer run",
    'conifer run qwen3-30b-a3b "Why is the sky blue?"',
    'git diff | conifer run qwen3-coder-30b-a3b "Write a commit message for this."',
    'conifer run ./model.gguf -c 16k --temperature 0 -p "Once upon a time"',
)
@run_options.with_run_options
def run(
    command_line: typer.Context, model: MaybeModel = None, words: Words = None, **_: Any
) -> int:
    """Answer a prompt. In a terminal, omit the prompt to start a conversation.

    If standard input is not a terminal, its text is placed before the prompt. Without MODEL,
    Conifer runs the default model or, if there is none, the starter model, a 135M-parameter demo.
    Standard output contains only the answer. Conifer reads text only, no images and no audio.
    """
    from conifer_cli.commands.run import run_model, save_preset

    if (kept := command_line.params["save_preset"]) is not None:
        return save_preset(kept, run_options.typed_options(command_line))
    return run_model(*run_options.parse(command_line))


@app.command(
    "Download models that fit this machine.",
    "conifer pull qwen3-30b-a3b",
    "conifer pull qwen3-30b-a3b:Q8_0 --yes",
    "conifer pull hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q8_0",
)
def pull(
    command_line: typer.Context,
    models: Annotated[list[str], _MODEL],
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
    update: options.Update = False,
    stream: options.Stream = False,
    budget: options.Budget = None,
    force: options.ForcePull = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> int:
    """Check that models fit this machine, then download them.

    An interrupted download resumes where it stopped. Files are verified before use. If the model is
    already installed, Conifer reports whether the Hub has a newer revision.
    """
    from conifer_cli.commands.pull import pull_models
    from conifer_cli.fit.verdict import FitRequest

    force, stream, budget = run_options.streaming(command_line)
    request = FitRequest(
        context,
        kv_type.value,
        force,
        yes,
        pulled=True,
        stream=stream,
        budget_bytes=budget,
    )
    return pull_models(models, request, update, dry_run, as_json)


@app.command(
    "Verify the hashes of model files.",
    "conifer verify",
    "conifer verify qwen3-30b-a3b",
    rare=True,
)
def verify(models: MaybeModels = None, as_json: options.Json = False) -> int:
    """Compare the SHA-256 hashes of model files with the published hashes.

    Without MODEL, verify every model on this machine. The exit code is 3 if a file is damaged.
    """
    from conifer_cli.commands.verify import verify_models

    return verify_models(models or [], as_json)


@app.command(
    "Show which models fit this machine.",
    "conifer fit",
    "conifer fit qwen3-30b-a3b",
    "conifer fit qwen3-30b-a3b:Q8_0 -c 64k",
    "conifer fit --machine m4-max-64gb",
    "conifer fit --for code --machine rtx-4090 --ram 64GB",
    "conifer fit gpt-oss-120b --buy",
    "conifer fit ./model.gguf --json",
)
def fit(
    model: MaybeModel = None,
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    total: options.Total = False,
    memory: options.Memory = None,
    machine: options.Machine = None,
    ram: options.Ram = None,
    bandwidth: options.Bandwidth = None,
    stream: options.Stream = False,
    budget: options.Budget = None,
    purpose: options.Purpose = None,
    buy: options.Buy = False,
    everything: options.AllModels = False,
    as_json: options.Json = False,
) -> int:
    """Check whether a model fits this machine, and show its largest context and expected speed.

    Without MODEL, check every model in the catalog and list the best. The exit code is 0 if the
    model fits, or if it streams and --stream is given, 4 if it does not, and 5 if that cannot be
    determined. With --machine, which never connects to the Hub, the exit code is 2 if nothing is
    known about the model.
    """
    from conifer_cli.commands.fit import FitOptions, fit_all, fit_model
    from conifer_cli.fit.verdict import FitRequest

    request = FitRequest(
        context,
        kv_type.value,
        kernels=kernels.value,
        stream=stream,
        budget_bytes=budget,
    )
    asked = FitOptions(
        request,
        machine,
        memory,
        total,
        as_json,
        ram_bytes=ram,
        bytes_per_s=bandwidth * 1e9 if bandwidth else None,
        purpose=purpose.value if purpose else None,
        buy=buy,
        everything=everything,
    )
    return fit_all(asked) if model is None else fit_model(model, asked)


@app.command(
    "Measure how fast a model runs.",
    "conifer bench",
    "conifer bench qwen3-30b-a3b --prompt 512 --depth 0,4k,16k",
    "conifer bench ./model.gguf --json > result.json",
    rare=True,
)
def bench(
    command_line: typer.Context,
    model: MaybeModel = None,
    prompt: options.BenchPrompt = None,
    depth: options.BenchDepth = None,
    tokens: options.BenchTokens = 64,
    repeat: options.BenchRepeat = 5,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    isa: options.Isa = None,
    stream: options.Stream = False,
    budget: options.Budget = None,
    force: options.Force = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> int:
    """Measure how fast a model processes prompts and generates tokens.

    Without MODEL, measure the starter model. The report shows the median, slowest and fastest runs.
    For generation, it also shows the share of this machine's memory bandwidth that was used, or,
    if experts stay on the disk, how many were found in memory and how much was read. The last line
    of standard output contains all results as JSON.
    """
    from conifer_cli.commands.bench import BenchOptions, bench_model

    prompts, depths = (each.tokens if each else None for each in (prompt, depth))
    settings = (tokens, repeat, kv_type.value, kernels.value, isa)
    memory = run_options.streaming(command_line)
    return bench_model(model, BenchOptions(prompts, depths, *settings, *memory, yes, as_json))


@app.command(
    "Serve models to editors, agents and SDKs over HTTP.",
    "conifer serve qwen3-30b-a3b",
    "conifer serve qwen3-coder-30b-a3b -c 64k --parallel 2",
    "conifer serve qwen3-235b-a22b-instruct-2507 --budget 48GB",
    "conifer serve ./model.gguf --port 9000",
)
def serve(
    command_line: typer.Context,
    model: MaybeModel = None,
    host: options.ServeHost = "127.0.0.1",
    port: options.ServePort = 8321,
    api_key: options.ApiKey = "",
    parallel: options.Parallel = 1,
    cache: options.ServeCache = False,
    cors: options.Cors = None,
    print_config: options.PrintConfig = None,
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
    kernels: options.KernelChoice = options.KernelName.AUTO,
    isa: options.Isa = None,
    stream: options.Stream = False,
    budget: options.Budget = None,
    force: options.Force = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
) -> int:
    """Serve models over HTTP with the APIs of OpenAI and Anthropic, until Ctrl-C.

    Without MODEL, each request chooses among the models on this machine, and one at a time is
    loaded. docs/serving.md has the configuration of editors, agents and SDKs.
    """
    from conifer_cli.commands.serve import ServeOptions, serve

    if print_config is not None:
        from conifer_cli.commands.serve import print_client_config

        typed = run_options.is_typed(command_line, "api_key")
        return print_client_config(print_config, model, host, port, context, api_key, typed)
    where = (model, host, port, api_key, context, parallel, tuple(cors or ()))
    machine = (kv_type.value, kernels.value, isa, *run_options.streaming(command_line))
    return serve(ServeOptions(*where, *machine, offline, yes, cache))


@app.command("Show what a running server has loaded.", "conifer ps", "conifer ps --json", rare=True)
def ps(
    host: options.ServeHost = "127.0.0.1",
    port: options.ServePort = 8321,
    as_json: options.Json = False,
) -> int:
    """Show the model that `conifer serve` has loaded, its memory, its answers and their speed."""
    from conifer_cli.commands.ps import show_server

    return show_server(host, port, as_json)


@app.command(
    "List the models on this machine.",
    "conifer list",
    "conifer list --catalog",
    "conifer list --speeds",
    name="list",
)
def list_(
    catalog: options.Catalog = False,
    sort: options.Sort = None,
    speeds: options.Speeds = False,
    as_json: options.Json = False,
) -> int:
    """List the models on this machine. With --catalog, list every available model."""
    from conifer_cli.commands.list import list_catalog, list_installed, list_speeds

    if catalog and speeds:
        raise errors.UsageError("--catalog and --speeds cannot be used together")
    if speeds:
        return list_speeds(as_json)
    if sort is not None and not catalog:
        raise errors.UsageError("--sort needs --catalog")
    by = sort.value if sort else None
    return list_catalog(as_json, by) if catalog else list_installed(as_json)


@app.command(
    "Show details of a model.", "conifer show qwen3-30b-a3b", "conifer show ./model.gguf --json"
)
def show(model: Model, as_json: options.Json = False) -> int:
    """Show details of a model. If the model is on this machine, include details of its file."""
    from conifer_cli.commands.show import show_model

    return show_model(model, as_json)


@app.command(
    "Remove models from this machine.",
    "conifer rm qwen3-30b-a3b",
    "conifer rm smollm2-135m --yes",
    "conifer rm --all",
)
def rm(models: MaybeModels = None, everything: All = False, yes: options.Yes = False) -> int:
    """List the files to delete, ask for confirmation, then delete them."""
    from conifer_cli.commands.rm import remove_models

    return remove_models(models or [], everything, yes)


@app.command("Check this machine and the installation.", "conifer doctor", "conifer doctor --json")
def doctor(
    context: typer.Context, as_json: options.Json = False, gpu: options.GpuCheck = False
) -> int:
    """Check this machine and the installation, and print advice for each problem.

    The first failed check determines the exit code: 1 for the backend, the kernels or package
    versions, 2 for the config file, 4 for memory or a full disk, and 5 for the model cache or the
    Hub. Set HF_HUB_OFFLINE=1 to skip the Hub check.
    """
    from conifer_cli.commands.doctor import examine

    return examine(context.find_root(), as_json, gpu)


@app.command(
    "Print a shell completion script.",
    "conifer completion bash > ~/.local/share/bash-completion/completions/conifer",
    'conifer completion zsh > "${fpath[1]}/_conifer"',
    "conifer completion fish > ~/.config/fish/completions/conifer.fish",
    rare=True,
)
def completion(
    shell: Annotated[options.Shell, typer.Argument(help="The shell to generate a script for.")],
) -> int:
    """Print a script that makes a shell complete commands, options and model names."""
    from conifer_cli.commands.completion import print_script

    return print_script(shell)


app.registered_commands += kept_commands.app.registered_commands


@app.command("Show help on a command or a topic.", "conifer help run", rare=True)
def help(
    context: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(help="A command, environment or exit-codes.")
    ] = None,
) -> int:
    """Show help on a command, on environment variables (environment) or on exit codes."""
    show_help(context.find_root(), topic)
    return errors.OK


@app.command(
    name=QUERY,
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def complete(command_line: typer.Context, words: Words = None) -> int:
    """Print completions for the last word. The completion scripts run this command."""
    from conifer_cli.commands.completion import print_candidates

    return print_candidates(command_line.find_root().command, words or [])
