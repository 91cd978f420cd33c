"""The options that commands share: their names, ranges, help and environment variables.

Every option is also read from CONIFER_<NAME>; what is typed wins. Checks live here, so that a value
out of range ends before anything is loaded.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    """Which implementation multiplies."""

    AUTO = "auto"
    NATIVE = "native"
    STOCK = "stock"


class KVType(StrEnum):
    """How the cache stores keys and values."""

    F16 = "f16"
    Q8 = "q8"
    F32 = "f32"


def parse_context(text: str) -> int:
    """Read a number of tokens: 4096, 64k (k is 1,024)."""
    match = _CONTEXT.fullmatch(text.strip())
    tokens = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= tokens <= MAX_CONTEXT:
        raise typer.BadParameter(
            f"{text!r} is not a number of tokens from 1 to {MAX_CONTEXT:,}, such as 8192 or 64k"
        )
    return tokens


def parse_memory(text: str) -> int:
    """Read an amount of memory: 32GB (10^9), 32GiB (2^30)."""
    match = _MEMORY.fullmatch(text.strip())
    size_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not MIN_MEMORY <= size_bytes <= MAX_MEMORY:
        raise typer.BadParameter(
            f"{text!r} is not an amount of memory from 1GiB to 64TiB, such as 32GB or 32GiB"
        )
    return size_bytes


@dataclass(frozen=True)
class Lengths:
    """Several numbers of tokens, in rising order, each once."""

    tokens: tuple[int, ...]


def parse_prompts(text: str) -> Lengths:
    """Read numbers of tokens: 128,512 or 1k."""
    return Lengths(tuple(sorted({parse_context(word) for word in text.split(",")})))


def parse_depths(text: str) -> Lengths:
    """Read numbers of tokens, of which one may be 0: 0,4096 or 0,4k."""
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
    """Say where Conifer keeps its own files: CONIFER_HOME, or the platform's place for data."""
    try:
        return conifer_folder("XDG_DATA_HOME", ".local/share")
    except RuntimeError as error:  # no such user, or one without a home
        chosen = os.environ.get("CONIFER_HOME")
        what = f"CONIFER_HOME: {chosen!r} names no" if chosen else "this user has no"
        raise UsageError(f"{what} home folder", "Set CONIFER_HOME to a folder.") from error


Context = Annotated[
    int | None,
    typer.Option(
        "-c",
        "--context",
        metavar="TOKENS",
        parser=parse_context,
        envvar="CONIFER_CONTEXT",
        help="Context to reserve, such as 8192 or 64k. Default: what fits, 32k at most.",
    ),
]
KV = Annotated[
    KVType,
    typer.Option("--kv-type", envvar="CONIFER_KV_TYPE", help="Precision of the KV cache."),
]
KernelChoice = Annotated[
    KernelName,
    typer.Option(
        "--kernels",
        envvar="CONIFER_KERNELS",
        help="native: our C++ (CPU); stock: plain MLX; auto: native where there is one.",
    ),
]
Total = Annotated[
    bool,
    typer.Option(
        "--total", envvar="CONIFER_TOTAL", help="Judge this machine as if nothing else ran."
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_memory,
        envvar="CONIFER_MEMORY",
        help="Judge for so much memory, idle: 32GB (10^9) or 32GiB (2^30).",
    ),
]
Machine = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="NAME",
        envvar="CONIFER_MACHINE",
        help="Judge for another machine, offline: m4-max-64gb, m4-max-32core-36gb, rtx-4090.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", envvar="CONIFER_FORCE", help="Go on although it does not fit."),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", envvar="CONIFER_YES", help="Answer questions with yes.")
]
Json = Annotated[
    bool, typer.Option("--json", envvar="CONIFER_JSON", help="Print one JSON document.")
]
BenchPrompt = Annotated[
    Lengths | None,
    typer.Option(
        "--prompt",
        metavar="TOKENS,...",
        parser=parse_prompts,
        envvar="CONIFER_BENCH_PROMPT",
        help="Lengths of the prompts to read. Default: 128,512.",
    ),
]
BenchDepth = Annotated[
    Lengths | None,
    typer.Option(
        "--depth",
        metavar="TOKENS,...",
        parser=parse_depths,
        envvar="CONIFER_BENCH_DEPTH",
        help="How many tokens come before the answer. Default: 0,4096 where the context allows it.",
    ),
]
BenchTokens = Annotated[
    int,
    typer.Option(
        "--tokens",
        metavar="COUNT",
        min=1,
        max=MAX_TOKENS,
        envvar="CONIFER_BENCH_TOKENS",
        help="Length of each answer.",
    ),
]
BenchRepeat = Annotated[
    int,
    typer.Option(
        "--repeat",
        metavar="COUNT",
        min=5,
        max=1000,
        envvar="CONIFER_BENCH_REPEAT",
        help="Runs of each measurement.",
    ),
]
