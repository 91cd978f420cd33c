"""Options shared by several commands: their names, ranges, help text and environment variables.

The command line overrides the environment. Invalid values are rejected before anything is loaded.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conifer_cli.errors import UsageError
from conifer_cli.terminal import console
from conifer_cli.terminal.console import Colour
from conifer_cli.usage import quoted

if TYPE_CHECKING:
    from catalog.store.store import Store

MAX_CONTEXT = 1 << 24
MAX_TOKENS = 1 << 24
MAX_SEED = (1 << 64) - 1
MIN_MEMORY, MAX_MEMORY = 10**9, 1 << 46

_MEMORY = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([mMgGtT](?:[iI]?[bB])?)")
_UNITS = {"mb": 10**6, "mib": 1 << 20, "gb": 10**9, "gib": 1 << 30, "tb": 10**12, "tib": 1 << 40}
_UNITS |= {unit[0]: size for unit, size in _UNITS.items() if "i" in unit}  # as memory is sold
_CONTEXT = re.compile(r"([0-9]{1,9})([kK]?)")


class SortName(StrEnum):
    """What the catalog is sorted by."""

    TOTAL = "total"
    ACTIVE = "active"
    CONTEXT = "context"
    MMLU_PRO = "mmlu-pro"
    GPQA = "gpqa-diamond"
    LIVECODEBENCH = "livecodebench-v6"
    SWE_BENCH = "swe-bench-verified"


class PurposeName(StrEnum):
    """What a model is for."""

    CHAT = "chat"
    CODE = "code"
    REASONING = "reasoning"
    LONG_CONTEXT = "long-context"


class KernelName(StrEnum):
    """The matrix kernels to use."""

    AUTO = "auto"
    NATIVE = "native"
    BLOCKS = "blocks"
    STOCK = "stock"


class KVType(StrEnum):
    """KV cache precision."""

    F16 = "f16"
    Q8 = "q8"
    F32 = "f32"


class Shell(StrEnum):
    """A shell that Conifer has a completion script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class PresetAction(StrEnum):
    """What `conifer presets` does."""

    LIST = "list"
    SHOW = "show"
    EDIT = "edit"
    RM = "rm"


class ChatsAction(StrEnum):
    """What `conifer chats` does."""

    LIST = "list"
    SEARCH = "search"
    SHOW = "show"
    EXPORT = "export"
    RM = "rm"


class ConfigAction(StrEnum):
    """What `conifer config` does."""

    SHOW = "show"
    EDIT = "edit"
    PATH = "path"


def option(names: str, help: str, group: str = "", env: str = "", **settings: Any) -> Any:
    """Declare an option that an environment variable can also set.

    names: separated by spaces. group: the heading in --help, for commands with many options. env:
    the variable's name without CONIFER_; by default, the long option name in upper case.
    """
    words = names.split()
    variable = f"CONIFER_{env}" if env else variable_of([word.split("/")[0] for word in words])
    return typer.Option(
        *words, envvar=variable, help=help, rich_help_panel=group or None, **settings
    )


def variable_of(names: Sequence[str]) -> str:
    """Return the environment variable for an option, from its long name."""
    long = next((name for name in names if name.startswith("--")), "")
    return "CONIFER_" + long.removeprefix("--").replace("-", "_").upper()


def parse_context(text: str) -> int:
    """Parse a token count, such as 4096 or 64k (k means 1,024)."""
    match = _CONTEXT.fullmatch(text.strip())
    tokens = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= tokens <= MAX_CONTEXT:
        raise typer.BadParameter(
            f"must be from 1 to {MAX_CONTEXT:,} tokens, such as 8192 or 64k; got {quoted(text)}"
        )
    return tokens


def parse_memory(text: str) -> int:
    """Parse a memory size: 32GB (GB is 10^9 bytes), 32GiB (GiB is 2^30 bytes) or 32G (GiB)."""
    match = _MEMORY.fullmatch(text.strip())
    size_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not MIN_MEMORY <= size_bytes <= MAX_MEMORY:
        raise typer.BadParameter(
            f"must be a memory size from 1GB to 64TiB, such as 32GB or 32GiB; got {quoted(text)}"
        )
    return size_bytes


def parse_isa(text: str) -> str:
    """Return an instruction set's name. Raises BadParameter if this processor lacks it."""
    from engine.errors import BackendError
    from engine.kernels.native import check_isa

    try:
        return check_isa(text)
    except BackendError as error:
        raise typer.BadParameter(str(error)) from error


@dataclass(eq=False, repr=False)
class Lengths:
    """Token counts in ascending order, without duplicates."""

    tokens: tuple[int, ...]


def parse_prompts(text: str) -> Lengths:
    """Parse comma-separated prompt lengths in tokens, such as 128,512 or 1k."""
    return Lengths(tuple(sorted({parse_context(word) for word in text.split(",")})))


def parse_depths(text: str) -> Lengths:
    """Parse comma-separated context lengths in tokens, such as 0,4096 or 0,4k. Allows 0."""
    words = [word.strip() for word in text.split(",")]
    return Lengths(tuple(sorted({0 if word == "0" else parse_context(word) for word in words})))


def conifer_folder(variable: str, below_home: str) -> Path:
    """Return the folder for Conifer's files: CONIFER_HOME if set, or the platform's default.

    variable: an environment variable, such as XDG_DATA_HOME, that overrides the default.
    below_home: the default on Linux, relative to the user's home folder. Raises RuntimeError if the
    home folder is unknown.
    """
    if chosen := os.environ.get("CONIFER_HOME"):
        return Path(chosen).expanduser()
    if base := os.environ.get(variable):
        return Path(base) / "conifer"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "conifer"
    return Path.home() / below_home / "conifer"


def gpu_verdicts() -> Path:
    """Return the file that keeps which kernels work on this GPU."""
    return home() / "gpu.json"


def home() -> Path:
    """Return the folder for Conifer's data. Raises UsageError if the home folder is unknown."""
    try:
        return conifer_folder("XDG_DATA_HOME", ".local/share")
    except RuntimeError as error:
        chosen = os.environ.get("CONIFER_HOME")
        where = f"CONIFER_HOME={chosen!r}: " if chosen else ""
        raise UsageError(
            f"{where}cannot find the home folder", "Set CONIFER_HOME to an absolute path."
        ) from error


@cache
def open_store() -> Store:
    """Return the store of models on disk."""
    from catalog.hub.session import cache_folder
    from catalog.store.store import Store

    return Store(home(), cache_folder())


def hub_endpoint() -> str | None:
    """Return the URL of the Hub that the user has set, or None for the default."""
    return os.environ.get("HF_ENDPOINT", "").strip() or None


def choose_colour(choice: Colour | None) -> None:
    """Apply --color, if given."""
    if choice is not None:
        console.policy.colour = choice


def choose_quiet(quiet: bool) -> None:
    """Apply --quiet, if given."""
    console.policy.quiet = quiet or console.policy.quiet


# Options of every command. They take effect when they are read.
Color = Annotated[
    Colour | None,
    option(
        "--color",
        "When to use colours. Default: auto, in a terminal.",
        callback=choose_colour,
        is_eager=True,
        expose_value=False,
    ),
]
Quiet = Annotated[
    bool,
    option(
        "--quiet -q",
        "Print no notes and no progress to stderr, only errors.",
        callback=choose_quiet,
        is_eager=True,
        expose_value=False,
    ),
]


_COUNT = {"metavar": "COUNT", "max": MAX_TOKENS}
Context = Annotated[
    int | None,
    option(
        "-c --context",
        "Context to reserve, such as 8192 or 64k. Default: the largest that fits, up to 32k.",
        group="Machine",
        metavar="TOKENS",
        parser=parse_context,
    ),
]
KV = Annotated[KVType, option("--kv-type", "KV cache precision.", "Machine")]
KernelChoice = Annotated[
    KernelName,
    option(
        "--kernels",
        "native: Conifer's C++ kernels (CPU); blocks: its GPU kernels; stock: MLX's own; "
        "auto: the first that is available.",
        "Machine",
    ),
]
Isa = Annotated[
    str | None,
    option(
        "--isa",
        "The instruction set for Conifer's C++ kernels, such as avx2. Default: the best available.",
        "Machine",
        metavar="NAME",
        parser=parse_isa,
    ),
]
Total = Annotated[bool, option("--total", "Assume that nothing else is running on this machine.")]
Memory = Annotated[
    int | None,
    option(
        "--memory",
        "Assume this much memory and nothing else running, such as 32G. "
        "GB is 10^9 bytes; GiB and G are 2^30 bytes.",
        metavar="SIZE",
        parser=parse_memory,
    ),
]
Machine = Annotated[
    str | None,
    option(
        "--machine",
        "Check another machine, such as m4-max-64gb, m4-max-32core-36gb or rtx-4090. "
        "Works offline.",
        metavar="NAME",
    ),
]
Ram = Annotated[
    int | None,
    option(
        "--ram",
        "The memory of the PC that holds the card of --machine, such as 64GB: judges its CPU, too.",
        metavar="SIZE",
        parser=parse_memory,
    ),
]
Bandwidth = Annotated[
    float | None,
    option(
        "--bandwidth",
        "The memory bandwidth of the CPU of --machine.",
        metavar="GB/S",
        min=1,
        max=100_000,
    ),
]
Purpose = Annotated[
    PurposeName | None,
    option("--for", "List what fits and serves this purpose, the best model first."),
]
Buy = Annotated[
    bool, option("--buy", "List the machines that MODEL fits, each with its least memory.")
]
Stream = Annotated[
    bool,
    option(
        "--stream",
        "If not all experts fit in memory, read the others from the disk when they are chosen.",
        "Machine",
    ),
]
Budget = Annotated[
    int | None,
    option(
        "--budget",
        "Use at most this much memory, such as 12GB. Implies --stream.",
        "Machine",
        metavar="SIZE",
        parser=parse_memory,
    ),
]
Force = Annotated[bool, option("--force", "Run the model even if it does not fit.", "Machine")]
Yes = Annotated[bool, option("--yes -y", "Answer yes to every question.", "Network")]
Json = Annotated[bool, option("--json", "Print the result as one JSON document.")]
GpuCheck = Annotated[
    bool, option("--gpu", "Try the kernels of every block type on this machine's GPU.")
]
Update = Annotated[
    bool, option("--update", "Download the newest revision even if an older one is installed.")
]
ForcePull = Annotated[
    bool,
    option("--force", "Download even if the model does not fit, and replace damaged files."),
]
Catalog = Annotated[bool, option("--catalog", "List every model in the catalog instead.")]
Sort = Annotated[
    SortName | None,
    option("--sort", "Sort the catalog, the largest first; by scores, list models that have any."),
]
Speeds = Annotated[
    bool,
    option(
        "--speeds",
        "List measured and predicted speeds for each model that has run on this machine.",
    ),
]
AllModels = Annotated[
    bool, typer.Option("--all", help="List every model, not only the best. A pipe always gets all.")
]
AllChats = Annotated[bool, typer.Option("--all", help="All conversations, not only the latest.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be downloaded, and download nothing.")
]
Unset = Annotated[bool, typer.Option("--unset", help="Have no default model.")]
RemoveAlias = Annotated[
    str | None, typer.Option("--remove", metavar="NAME", help="Remove this alias.")
]
BenchPrompt = Annotated[
    Lengths | None,
    option(
        "--prompt",
        "Prompt lengths to measure. Default: 128,512.",
        env="BENCH_PROMPT",
        metavar="TOKENS,...",
        parser=parse_prompts,
    ),
]
BenchDepth = Annotated[
    Lengths | None,
    option(
        "--depth",
        "Context lengths at which to measure generation. Default: 0,4096 if the context is "
        "large enough.",
        env="BENCH_DEPTH",
        metavar="TOKENS,...",
        parser=parse_depths,
    ),
]
BenchTokens = Annotated[
    int,
    option("--tokens", "Tokens to generate per answer.", env="BENCH_TOKENS", min=1, **_COUNT),
]
BenchRepeat = Annotated[
    int,
    option(
        "--repeat",
        "Runs per measurement.",
        env="BENCH_REPEAT",
        metavar="COUNT",
        min=5,
        max=1000,
    ),
]
Offline = Annotated[
    bool, option("--offline", "Make no network connections, and download nothing.", "Network")
]
ServeHost = Annotated[
    str, option("--host", "The address to serve. Others than loopback require a key.")
]
ServePort = Annotated[
    int, option("--port", "The port to serve.", metavar="NUMBER", min=1, max=65535)
]
ApiKey = Annotated[
    str,
    option(
        "--api-key",
        "The key that requests must contain. In the environment, it is not in the process list.",
        metavar="KEY",
        show_default=False,
    ),
]
Parallel = Annotated[
    int,
    option(
        "--parallel",
        "Answers that run at once, each with its own cache.",
        metavar="COUNT",
        min=1,
        max=64,
    ),
]
ServeCache = Annotated[
    bool, option("--cache", "Keep prompts on disk too, for later servers and for `run --cache`.")
]
Cors = Annotated[
    list[str] | None,
    option(
        "--cors",
        "An origin whose web pages may use the server, or '*'. Can be repeated.",
        metavar="ORIGIN",
    ),
]
PrintConfig = Annotated[
    str | None,
    option(
        "--print-config",
        "Print the configuration of a client, such as opencode, codex or zed, and exit.",
        metavar="CLIENT",
    ),
]
