"""One table: a foreseen exception -> exit code and what to do about it.

The engine and the catalog say what went wrong and where; this file says what to type next. Classes
are named, not imported: one that was raised is loaded already, and `--help` must load neither wing.
An exception that is not in the table is a bug of ours and stays a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

OK, FAILURE, USAGE, BAD_MODEL, NO_ROOM, UNREACHABLE, INTERRUPTED, READER_GONE = (
    *range(6),
    130,
    141,
)


class UsageError(Exception):
    """What was typed makes no sense. `hint` says what would."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NoRoom(Exception):
    """The model does not fit this machine: memory, disk or context. `hints` are ways out."""

    def __init__(self, message: str, hints: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hints = hints


class Unreadable(Exception):
    """The disk refuses a model's file."""


class NoCode(Exception):
    """A code block was asked for, and the answer has none."""


class Offline(Exception):
    """Something would have to be fetched, and --offline forbids it."""


class BadSaved(Exception):
    """A file of a saved conversation or prompt cannot be written, read or believed."""


class Declined(Exception):
    """A person was asked and said no."""


Hint = str | Callable[[Any], str]

TABLE: dict[str, tuple[int, Hint]] = {
    "conifer_cli.errors.UsageError": (USAGE, lambda error: error.hint),
    "conifer_cli.errors.NoRoom": (NO_ROOM, lambda error: "\n".join(error.hints)),
    "conifer_cli.errors.Unreadable": (FAILURE, "Check who may read it."),
    "conifer_cli.errors.Declined": (FAILURE, ""),
    "conifer_cli.errors.BadSaved": (BAD_MODEL, ""),
    "conifer_cli.errors.Offline": (UNREACHABLE, "`conifer list` shows the models that are here."),
    "conifer_cli.errors.NoCode": (FAILURE, "Without -x the whole answer is printed."),
    "conifer_cli.terminal.console.OutputError": (FAILURE, ""),
    "typer.exceptions.TyperException": (USAGE, lambda error: _usage_hint(error)),
    "catalog.errors.UnknownModel": (USAGE, lambda error: _closest(error)),
    "catalog.errors.ModelNotFound": (
        UNREACHABLE,
        "Check the name; `conifer list --catalog` shows the models Conifer knows.",
    ),
    "catalog.errors.AccessDenied": (
        UNREACHABLE,
        "Accept the terms on the model's page, and set HF_TOKEN to a token that may read it.",
    ),
    "catalog.errors.BadSetting": (UNREACHABLE, "Correct that variable, or unset it."),
    "catalog.errors.IndexUnreachable": (
        UNREACHABLE,
        "Check the network, HTTPS_PROXY, PIP_INDEX_URL (for uv: UV_DEFAULT_INDEX), and that pip or "
        "uv is there. Models that `conifer list` shows run without a network.",
    ),
    "catalog.errors.HubUnreachable": (
        UNREACHABLE,
        "Check the network, HTTPS_PROXY, HF_ENDPOINT and HF_HUB_OFFLINE. Models that "
        "`conifer list` shows run without a network.",
    ),
    "catalog.errors.VerificationError": (
        UNREACHABLE,
        "The damaged bytes were not kept. Try again; if it comes back, the source has changed.",
    ),
    "catalog.errors.NoSpace": (
        NO_ROOM,
        "Remove models with `conifer rm`, or set HF_HOME or CONIFER_HOME to another disk.",
    ),
    "catalog.errors.StoreError": (
        UNREACHABLE,
        "Weights go to HF_HOME (or HF_HUB_CACHE), everything else to CONIFER_HOME: "
        "either can be set to another folder.",
    ),
    "catalog.errors.CatalogError": (UNREACHABLE, ""),
    # whoever knows that a file was fetched adds how to fetch it again
    "engine.errors.GGUFError": (BAD_MODEL, lambda error: "\n".join(_notes(error))),
    "engine.errors.UnsupportedError": (
        BAD_MODEL,
        "`conifer fit` lists the models, and of each the quantisation, that run here.",
    ),
    "engine.errors.TemplateError": (BAD_MODEL, ""),
    "engine.errors.ModelFileError": (BAD_MODEL, ""),
    "engine.errors.SchemaError": (
        USAGE,
        "docs/scripting.md says which schemas an answer can be held to.",
    ),
    "engine.errors.ConstraintError": (FAILURE, "Try another --seed, or a simpler schema."),
    "engine.errors.CacheStateError": (BAD_MODEL, ""),
    "engine.errors.BackendError": (FAILURE, ""),
    "engine.errors.DoesNotFit": (
        NO_ROOM,
        "`conifer fit` lists what fits; --force goes on regardless.",
    ),
    "engine.errors.ContextOverflow": (
        NO_ROOM,
        "Shorten the prompt or ask for a larger context with -c; `conifer fit MODEL` "
        "prints the largest that fits.",
    ),
    "engine.errors.NumericError": (
        FAILURE,
        "The file or its quantisation is probably bad: `conifer run MODEL --kernels stock` "
        "tells whether it is ours.",
    ),
    "engine.errors.EngineError": (FAILURE, ""),
    "builtins.MemoryError": (NO_ROOM, "Close other programs, or try a smaller context with -c."),
}


def foreseen() -> tuple[type[BaseException], ...]:
    """Return the classes of the table that this process has loaded: no other can be in flight."""
    found = []
    for name in TABLE:
        module, _, attribute = name.rpartition(".")
        if module in sys.modules:
            found.append(getattr(sys.modules[module], attribute))
    return tuple(found)


def explain(error: BaseException) -> tuple[int, str, str]:
    """Return (exit code, message, hint) for an exception of the table; the hint may be empty."""
    for kind in type(error).__mro__:
        entry = TABLE.get(f"{kind.__module__}.{kind.__qualname__}")
        if entry is not None:
            code, hint = entry
            return code, _message(error), hint if isinstance(hint, str) else hint(error)
    raise KeyError(type(error).__name__)


def _message(error: BaseException) -> str:
    """Say what went wrong in one sentence without a full stop."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if hasattr(error, "format_message"):
        return option_message(error)
    return str(error)


def option_message(error: Any) -> str:
    """Name the option that a value was wrong for, what it was given and what it takes."""
    message: str = error.format_message().replace("Value error, ", "").rstrip(".")
    param = getattr(error, "param", None)
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if param is None or low is None:
        return message
    name = f"{'/'.join(param.opts)} (or {param.envvar})" if param.envvar else param.opts[0]
    return f"{name} takes a number from {low:,} to {high:,}"


def _usage_hint(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "conifer"
    return f"`{command} --help` explains it."


def prompt_hint(name: str) -> str:
    """Say how to ask what was typed where a model's name belongs; empty if it is no sentence."""
    sentence = any(character.isspace() for character in name.strip())
    return f'Did you mean `conifer run -p "{name}"`?' if sentence else ""


def _notes(error: Any) -> list[str]:
    return getattr(error, "__notes__", [])


def _closest(error: Any) -> str:
    if hint := prompt_hint(error.name):
        return hint
    known = "`conifer list --catalog` shows every model."
    return f"Did you mean {error.closest}? {known}" if error.closest else known
