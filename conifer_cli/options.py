"""Options that several commands share: names, ranges, help and environment variables.

The command line overrides the environment. An invalid value fails before anything is loaded.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from conifer_cli.errors import UsageError

MAX_CONTEXT = 1 << 24
MAX_TOKENS = 1 << 24
MAX_SEED = (1 << 64) - 1
MIN_MEMORY, MAX_MEMORY = 10**9, 1 << 46

_MEMORY = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ?([mMgGtT][iI]?[bB])")
_UNITS = {"mb": 10**6, "mib": 1 << 20, "gb": 10**9, "gib": 1 << 30, "tb": 10**12, "tib": 1 << 40}
_CONTEXT = re.compile(r"(\d{1,9})([kK]?)")


class KernelName(StrEnum):
    """The matrix kernels."""

    AUTO = "auto"
    NATIVE = "native"
    STOCK = "stock"


class KVType(StrEnum):
    """Precision of keys and values in the cache."""

    F16 = "f16"
    Q8 = "q8"
    F32 = "f32"


class Shell(StrEnum):
    """A shell with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def option(names: str, help: str, group: str = "", env: str = "", **settings: Any) -> Any:
    """Declare an option that can also be set by CONIFER_<LONG NAME>, or by CONIFER_<env>.

    names: separated by spaces. group: the heading in --help, for commands with many options.
    """
    words = names.split()
    long = next(name for name in words if name.startswith("--")).split("/")[0]
    variable = env or long.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        *words, envvar=f"CONIFER_{variable}", help=help, rich_help_panel=group or None, **settings
    )


def parse_context(text: str) -> int:
    """Parse a number of tokens: 4096, 64k (k is 1,024)."""
    match = _CONTEXT.fullmatch(text.strip())
    tokens = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= tokens <= MAX_CONTEXT:
        raise typer.BadParameter(
            f"{text!r} is not a number of tokens from 1 to {MAX_CONTEXT:,}, such as 8192 or 64k"
        )
    return tokens


def parse_memory(text: str) -> int:
    """Parse a memory size: 32GB (10^9), 32GiB (2^30)."""
    match = _MEMORY.fullmatch(text.strip())
    size_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not MIN_MEMORY <= size_bytes <= MAX_MEMORY:
        raise typer.BadParameter(
            f"{text!r} is not a memory size from 1GiB to 64TiB, such as 32GB or 32GiB"
        )
    return size_bytes


@dataclass(eq=False, repr=False)
class Lengths:
    """Numbers of tokens, sorted, without duplicates."""

    tokens: tuple[int, ...]


def parse_prompts(text: str) -> Lengths:
    """Parse numbers of tokens: 128,512 or 1k."""
    return Lengths(tuple(sorted({parse_context(word) for word in text.split(",")})))


def parse_depths(text: str) -> Lengths:
    """Parse numbers of tokens, 0 included: 0,4096 or 0,4k."""
    words = [word.strip() for word in text.split(",")]
    return Lengths(tuple(sorted({0 if word == "0" else parse_context(word) for word in words})))


def conifer_folder(variable: str, below_home: str) -> Path:
    """Return the folder for Conifer's files: CONIFER_HOME, else the platform's.

    variable: overrides the platform's folder (XDG_DATA_HOME). below_home: its default on Linux.
    Raises RuntimeError if the user's home folder is unknown.
    """
    if chosen := os.environ.get("CONIFER_HOME"):
        return Path(chosen).expanduser()
    if base := os.environ.get(variable):
        return Path(base) / "conifer"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "conifer"
    return Path.home() / below_home / "conifer"


def home() -> Path:
    """Return the folder for Conifer's data. Raises UsageError if there is no home folder."""
    try:
        return conifer_folder("XDG_DATA_HOME", ".local/share")
    except RuntimeError as error:
        chosen = os.environ.get("CONIFER_HOME")
        what = f"CONIFER_HOME: no home folder for {chosen!r}" if chosen else "no home folder found"
        raise UsageError(what, "Set CONIFER_HOME to a folder.") from error


_COUNT = {"metavar": "COUNT", "max": MAX_TOKENS}
Context = Annotated[
    int | None,
    option(
        "-c --context",
        "Context to reserve, such as 8192 or 64k. Default: what fits, 32k at most.",
        group="Machine",
        metavar="TOKENS",
        parser=parse_context,
    ),
]
KV = Annotated[KVType, option("--kv-type", "Precision of the KV cache.", "Machine")]
KernelChoice = Annotated[
    KernelName,
    option(
        "--kernels",
        "native: our C++ kernels (CPU); stock: plain MLX; auto: native if available.",
        "Machine",
    ),
]
Total = Annotated[bool, option("--total", "Assume that nothing else runs on this machine.")]
Memory = Annotated[
    int | None,
    option(
        "--memory",
        "Assume this much memory and nothing else running: 32GB (10^9) or 32GiB (2^30).",
        metavar="SIZE",
        parser=parse_memory,
    ),
]
Machine = Annotated[
    str | None,
    option(
        "--machine",
        "Check another machine, offline: m4-max-64gb, m4-max-32core-36gb, rtx-4090.",
        metavar="NAME",
    ),
]
Force = Annotated[bool, option("--force", "Try even if the model does not fit.", "Machine")]
Yes = Annotated[bool, option("--yes -y", "Answer yes to every question.", "Network")]
Json = Annotated[bool, option("--json", "Print one JSON document.")]
Update = Annotated[
    bool, option("--update", "Download the newest revision even if an older one is installed.")
]
ForcePull = Annotated[
    bool,
    option("--force", "Download even if the model does not fit; re-download damaged files."),
]
Catalog = Annotated[bool, option("--catalog", "List every model in the catalog instead.")]
Speeds = Annotated[
    bool,
    option("--speeds", "List measured and predicted speeds of every model that ran here."),
]
BenchPrompt = Annotated[
    Lengths | None,
    option(
        "--prompt",
        "Prompt lengths. Default: 128,512.",
        env="BENCH_PROMPT",
        metavar="TOKENS,...",
        parser=parse_prompts,
    ),
]
BenchDepth = Annotated[
    Lengths | None,
    option(
        "--depth",
        "Tokens in the context before each answer. Default: 0,4096 if the context allows.",
        env="BENCH_DEPTH",
        metavar="TOKENS,...",
        parser=parse_depths,
    ),
]
BenchTokens = Annotated[
    int, option("--tokens", "Length of each answer.", env="BENCH_TOKENS", min=1, **_COUNT)
]
BenchRepeat = Annotated[
    int,
    option(
        "--repeat",
        "Runs of each measurement.",
        env="BENCH_REPEAT",
        metavar="COUNT",
        min=5,
        max=1000,
    ),
]
