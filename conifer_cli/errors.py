"""One table of known exceptions: the exit code and the hint for each.

The engine and the catalog say what is wrong and where; this table says what to do next. Any other
exception is a bug and stays a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

OK, FAILURE, USAGE, BAD_MODEL, NO_ROOM, UNREACHABLE = range(6)
INTERRUPTED, READER_GONE = 130, 141


class UsageError(Exception):
    """The command line or its input is invalid. `hint` shows a valid alternative."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NoRoom(Exception):
    """The model does not fit this machine: memory, disk or context. `hints` are alternatives."""

    def __init__(self, message: str, hints: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hints = hints


class Unreadable(Exception):
    """A model file cannot be read from disk."""


class NoCode(Exception):
    """The answer has no code block, but -x needs one."""


class Offline(Exception):
    """A download is needed, but --offline forbids it."""


class BadSaved(Exception):
    """A saved conversation or prompt is damaged, or cannot be read or written."""


class OutputError(Exception):
    """Standard output or an output file cannot be written."""


class Declined(Exception):
    """The user answered no."""


Hint = str | Callable[[Any], str]
Table = dict[type[BaseException], tuple[int, Hint]]


@cache
def table() -> Table:
    """Return the exit code and the hint of every known exception.

    Importing the catalog takes milliseconds, so a command that succeeds never builds the table.
    """
    import typer

    return {
        UsageError: (USAGE, lambda error: error.hint),
        NoRoom: (NO_ROOM, lambda error: "\n".join(error.hints)),
        Unreadable: (FAILURE, "Check the file's permissions and the disk."),
        Declined: (FAILURE, ""),
        BadSaved: (BAD_MODEL, ""),
        Offline: (UNREACHABLE, "`conifer list` shows the models on this machine."),
        NoCode: (FAILURE, "Drop -x to print the whole answer."),
        OutputError: (FAILURE, ""),
        MemoryError: (NO_ROOM, "Close other programs, or use a smaller context with -c."),
        typer.TyperException: (USAGE, _usage_hint),
        **_catalog_errors(),
        **_engine_errors(),
    }


def _catalog_errors() -> Table:
    from catalog import errors

    offline = "Models listed by `conifer list` run without a network."
    unreachable: dict[type[BaseException], Hint] = {
        errors.ModelNotFound: "`conifer list --catalog` shows every model in the catalog.",
        errors.AccessDenied: "Accept the terms on the model's page, then set HF_TOKEN to a token "
        "with read access.",
        errors.BadSetting: "Correct the variable, or unset it.",
        errors.IndexUnreachable: "Check the network, HTTPS_PROXY and PIP_INDEX_URL (for uv: "
        f"UV_DEFAULT_INDEX), and that pip or uv is installed. {offline}",
        errors.HubUnreachable: "Check the network, HTTPS_PROXY, HF_ENDPOINT and HF_HUB_OFFLINE. "
        + offline,
        errors.VerificationError: "The damaged data was not kept. Try again; if it fails again, "
        "the source has changed.",
        errors.StoreError: "Weights are stored in HF_HOME (or HF_HUB_CACHE), all other files in "
        "CONIFER_HOME; set either to another folder.",
        errors.CatalogError: "",
    }
    no_space = "Remove models with `conifer rm`, or set HF_HOME or CONIFER_HOME to another disk."
    return {
        **{kind: (UNREACHABLE, hint) for kind, hint in unreachable.items()},
        errors.UnknownModel: (USAGE, _closest),
        errors.NoSpace: (NO_ROOM, no_space),
    }


def _engine_errors() -> Table:
    from engine import errors

    bad_model: dict[type[BaseException], Hint] = {
        # For a downloaded file, a note says how to download it again.
        errors.GGUFError: lambda error: "\n".join(getattr(error, "__notes__", [])),
        errors.UnsupportedError: "`conifer fit` lists the models and quantisations that run here.",
        errors.TemplateError: "",
        errors.ModelFileError: "",
        errors.CacheStateError: "",
    }
    larger = (
        "Shorten the prompt, or reserve a larger context with -c; `conifer fit MODEL` prints the "
        "largest that fits."
    )
    not_a_number = (
        "The file or its quantisation is probably damaged. If `conifer run MODEL --kernels stock` "
        "works, please report a bug in Conifer."
    )
    return {
        **{kind: (BAD_MODEL, hint) for kind, hint in bad_model.items()},
        errors.SchemaError: (USAGE, "docs/scripting.md lists the supported schemas."),
        errors.ConstraintError: (FAILURE, "Try another --seed, or a simpler schema."),
        errors.BackendError: (FAILURE, ""),
        errors.DoesNotFit: (NO_ROOM, "`conifer fit` lists what fits; --force tries anyway."),
        errors.ContextOverflow: (NO_ROOM, larger),
        errors.NumericError: (FAILURE, not_a_number),
        errors.EngineError: (FAILURE, ""),
    }


def known_exceptions() -> tuple[type[BaseException], ...]:
    """Return the classes in the table, for an `except` clause."""
    return tuple(table())


def explain(error: BaseException) -> tuple[int, str, str]:
    """Return (exit code, message, hint) for a known exception; the hint may be empty."""
    code, hint = next(entry for kind in type(error).__mro__ if (entry := table().get(kind)))
    message = option_message(error) if hasattr(error, "format_message") else str(error)
    if isinstance(error, MemoryError):
        message = "out of memory"
    return code, message, hint if isinstance(hint, str) else hint(error)


def option_message(error: Any) -> str:
    """Return what is wrong with an option's value; for a number out of range, the range."""
    message: str = error.format_message().replace("Value error, ", "").rstrip(".")
    param = getattr(error, "param", None)
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    if param is None or low is None:
        return message
    name = f"{'/'.join(param.opts)} (or {param.envvar})" if param.envvar else param.opts[0]
    return f"{name} must be a number from {low:,} to {high:,}"


def _usage_hint(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "conifer"
    return f"See `{command} --help`."


def prompt_hint(name: str) -> str:
    """Return a hint if a prompt was given in place of a model name, else an empty string."""
    sentence = any(character.isspace() for character in name.strip())
    return f'Did you mean `conifer run -p "{name}"`?' if sentence else ""


def _closest(error: Any) -> str:
    if hint := prompt_hint(error.name):
        return hint
    known = "`conifer list --catalog` shows every model."
    return f"Did you mean {error.closest}? {known}" if error.closest else known
