"""The exit code and hint for each known exception.

The engine and the catalog report what is wrong and where. The hint tells the user what to do next.
Any other exception is a bug and prints a traceback.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cache
from typing import Any

from conifer_cli import usage

OK, FAILURE, USAGE, BAD_MODEL, NO_ROOM, UNREACHABLE = range(6)
INTERRUPTED, READER_GONE = 130, 141


class UsageError(Exception):
    """The command line or its input is invalid. hint: a valid alternative."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NoRoom(Exception):
    """There is not enough memory, disk space or context. hints: alternatives for the user."""

    def __init__(self, message: str, hints: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hints = hints


class Unreadable(Exception):
    """A model file cannot be read from disk."""


class NoCode(Exception):
    """The answer has no code block, but -x requires one."""


class Offline(Exception):
    """A download is required, but --offline forbids it."""


class BadSaved(Exception):
    """A saved conversation or cached prompt is damaged, or cannot be read or written."""


class OutputError(Exception):
    """Standard output or an output file cannot be written."""


class Declined(Exception):
    """The user declined to continue."""


Hint = str | Callable[[Any], str]
Table = dict[type[BaseException], tuple[int, Hint]]


@cache
def table() -> Table:
    """Return the exit code and hint for every known exception.

    Built only after a failure, because importing the catalog takes milliseconds.
    """
    import typer

    return {
        UsageError: (USAGE, lambda error: error.hint),
        NoRoom: (NO_ROOM, lambda error: "\n".join(error.hints)),
        Unreadable: (FAILURE, "Check the file's permissions and the disk."),
        Declined: (FAILURE, ""),
        BadSaved: (BAD_MODEL, ""),
        Offline: (UNREACHABLE, "Run `conifer list` to see the models on this machine."),
        NoCode: (FAILURE, "The answer is above. Omit -x to print it to standard output."),
        OutputError: (FAILURE, ""),
        MemoryError: (NO_ROOM, "Close other programs, or pass -c to reserve a smaller context."),
        typer.TyperException: (USAGE, usage.hint),
        **_catalog_errors(),
        **_engine_errors(),
    }


def _catalog_errors() -> Table:
    from catalog import errors

    offline = "Models listed by `conifer list` work offline."
    unreachable: dict[type[BaseException], Hint] = {
        errors.ModelNotFound: "Run `conifer list --catalog` to see every model.",
        errors.AccessDenied: "Accept the terms on the model's page, then set HF_TOKEN to a token "
        "with read access.",
        errors.BadSetting: "Correct or unset the environment variable.",
        errors.IndexUnreachable: "Check your network connection, HTTPS_PROXY and PIP_INDEX_URL "
        f"(UV_DEFAULT_INDEX for uv). Make sure that pip or uv is installed. {offline}",
        errors.HubUnreachable: "Check your network connection, HTTPS_PROXY, HF_ENDPOINT and "
        f"HF_HUB_OFFLINE. {offline}",
        errors.VerificationError: "The damaged data was discarded. Try again. If verification "
        "fails again, the source has changed.",
        errors.StoreError: "Set HF_HOME (or HF_HUB_CACHE) to another folder for weights, or "
        "CONIFER_HOME to another folder for all other files.",
        errors.CatalogError: "",
    }
    no_space = (
        "Run `conifer rm` to remove models, or set HF_HOME or CONIFER_HOME to a folder on another "
        "disk."
    )
    return {
        **{kind: (UNREACHABLE, hint) for kind, hint in unreachable.items()},
        errors.UnknownModel: (USAGE, _closest),
        errors.NoSpace: (NO_ROOM, no_space),
    }


def _engine_errors() -> Table:
    from engine import errors

    bad_model: dict[type[BaseException], Hint] = {
        errors.GGUFError: _notes,  # how to download the file again, if it was downloaded
        errors.UnsupportedError: "Run `conifer fit` to see which models and quantisations work.",
        errors.TemplateError: "",
        errors.FileShrank: "Download or copy the file again.",
        errors.ModelFileError: "",
        errors.CacheStateError: "",
    }
    not_a_number = (
        "The model file is probably damaged or badly quantised. If `conifer run MODEL --kernels "
        "stock` works, please report a bug in Conifer."
    )
    return {
        **{kind: (BAD_MODEL, hint) for kind, hint in bad_model.items()},
        errors.SchemaError: (USAGE, "Change or remove that part of the schema."),
        errors.EmptyPrompt: (USAGE, ""),
        errors.MessageLeftOut: (
            USAGE,
            "Use another file of this model, with a chat template that writes every message.",
        ),
        errors.ConstraintError: (FAILURE, "Try a different --seed or a simpler schema."),
        errors.BackendError: (FAILURE, ""),
        errors.DoesNotFit: (
            NO_ROOM,
            "Close other programs, pass -c to reserve a smaller context, or run `conifer fit` to "
            "see which models fit.",
        ),
        errors.ContextOverflow: (NO_ROOM, _notes),  # how to get a larger context
        errors.NumericError: (FAILURE, not_a_number),
        errors.ReadFailed: (FAILURE, "Check the disk, or the connection to it."),
        errors.EngineError: (FAILURE, ""),
    }


def known_exceptions() -> tuple[type[BaseException], ...]:
    """Return every known exception class, for use in an `except` clause."""
    return tuple(table())


def explain(error: BaseException) -> tuple[int, str, str]:
    """Return (exit code, message, hint) for a known exception. The hint may be empty."""
    code, hint = next(entry for kind in type(error).__mro__ if (entry := table().get(kind)))
    message = usage.message(error) if hasattr(error, "format_message") else str(error)
    if isinstance(error, MemoryError):
        message = "out of memory"
    return code, message, hint if isinstance(hint, str) else hint(error)


def why(error: Exception) -> str:
    """Return why a file could not be used, without an error number and without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or "unknown reason"


def explain_in_chat(error: BaseException) -> tuple[str, str]:
    """Return (message, hint) for a known exception, with a hint that works in a chat."""
    from engine.errors import ConstraintError, DoesNotFit

    _, message, hint = explain(error)
    if isinstance(error, MemoryError | DoesNotFit):
        hint = "Close other programs, or lower the context with /set parameter num_ctx."
    elif isinstance(error, ConstraintError):
        hint = "Type /set format text to allow any answer."
    return message, hint


def _notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def prompt_hint(name: str, sure: bool = False) -> str:
    """Return a hint if `name` looks like a prompt, otherwise an empty string.

    sure: it is a prompt, whatever it looks like.
    """
    sentence = sure or any(character.isspace() for character in name.strip())
    plain = not any(character in name for character in '"\\$`!\n\t')
    quoted = f'"{name}"' if plain else shlex.quote(name)
    return f"Did you mean `conifer run -p {quoted}`?" if sentence else ""


def _closest(error: Any) -> str:
    if hint := prompt_hint(error.name):
        return hint
    known = "Run `conifer list --catalog` to see every model."
    return f"Did you mean {error.closest}? {known}" if error.closest else known
