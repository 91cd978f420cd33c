"""Convert the values of a command line, and describe its errors in Conifer's own words.

Typer converts values with pydantic, which takes longer to load than the rest of the program.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, get_args, get_origin

_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")
_ODD = object()  # a value that typer has to convert


def convert_plain_values(parameters: Iterable[Any]) -> None:
    """Let typer's parameters convert valid values of simple types without pydantic."""
    for parameter in parameters:
        if "process_value" not in vars(parameter):
            parameter.process_value = _converter(parameter, parameter.process_value)


def _converter(parameter: Any, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def process_value(context: Any, value: Any) -> Any:
        several = parameter.multiple or parameter.nargs == -1
        plain = _plain(parameter.type_descriptor, value, several)
        if plain is _ODD or (parameter.required and plain in (None, (), [])):
            return otherwise(context, value)
        act = parameter.callback
        return plain if act is None else act(context, parameter, plain)

    return process_value


def _plain(descriptor: Any, value: Any, several: bool) -> Any:
    """Return the converted value, or _ODD unless it is valid and simple."""
    kind, about = descriptor.annotation, descriptor.parameter_info
    if several:
        inner = get_args(kind)[0] if get_origin(kind) is list else kind
        found = [_one(inner, about, each) for each in value or ()]
        return _ODD if _ODD in found or isinstance(value, str) else found or ()
    return None if value is None else _one(kind, about, value)


def _one(kind: Any, about: Any, value: Any) -> Any:
    if about.parser is not None:
        return about.parser(value) if type(value) is str else _ODD
    if kind in (bool, str) and type(value) is kind:
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next((each for each in kind if value in (each, each.value)), _ODD)
    if kind not in (int, float) or not (type(value) is kind or _NUMBER.fullmatch(str(value))):
        return _ODD
    number = kind(value) if kind is float or "." not in str(value) else None
    if number is None or about.clamp:
        return _ODD
    low, high = about.min, about.max
    fits = (low is None or number >= low) and (high is None or number <= high)
    return number if fits else _ODD


def message(error: Any) -> str:
    """Return the message for a typer exception."""
    say = _MESSAGES.get(type(error).__name__)
    return say(error) if say else str(error.message).rstrip(".")


def hint(error: Any) -> str:
    """Return the option that was probably meant or, failing that, the command's --help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        options = [name for p in context.command.params for name in (*p.opts, *p.secondary_opts)]
        if found := did_you_mean(error.option_name, [o for o in options if o.startswith("--")]):
            return found
    return help_hint(context)


def help_hint(context: Any) -> str:
    """Return a hint that names the --help of a command. context: typer's, or None."""
    return f"See `{context.command_path if context else 'conifer'} --help`."


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """Return a question with the most similar word, or an empty string if there is none.

    form: how the word is shown, such as "`conifer {}`".
    """
    words = {name.strip("-/").replace("_", "-"): name for name in known}
    plain = word.strip("-/").replace("_", "-").lower()
    begun = [name for name in words if plain and name.startswith(plain)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(plain, words, 1)
    return f"Did you mean {form.format(words[close[0]])}?" if close else ""


def quoted(text: object) -> str:
    """Return the user's text in quotes, shortened to about 60 characters."""
    plain = repr(text)
    return plain if len(plain) <= 64 else f"{plain[:60]}...{plain[-1]}"


def problem(error: Any, value: object = None) -> str:
    """Return what is wrong with a value, such as "must be a number from 0 to 10, got 'hot'"."""
    wanted = _wanted(error.param)
    text = str(error.message).removeprefix("Value error, ").rstrip(".")
    got = "" if value is None else f", got {quoted(value)}"
    return f"must be {wanted}{got}" if wanted else text


def _wanted(parameter: Any) -> str:
    """Describe a parameter's values, or return an empty string if any text will do."""
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    descriptor = getattr(parameter, "type_descriptor", None)
    if choices := getattr(descriptor, "choices", None):
        return f"one of {', '.join(repr(str(choice)) for choice in choices)}"
    if low is not None:
        whole = "whole " if getattr(descriptor, "annotation", None) is int else ""
        return f"a {whole}number from {low:,} to {high:,}"
    return "true or false" if getattr(parameter, "is_flag", False) else ""


def _name(error: Any) -> str:
    """Return the name of the option, argument or environment variable that the user set."""
    parameter, source = error.param, None
    if error.ctx is not None:
        source = error.ctx.get_parameter_source(parameter.name)
    if source is not None and source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper()
    return "/".join(parameter.opts)


def _bad_value(error: Any) -> str:
    return problem(error) if error.param is None else f"{_name(error)} {problem(error)}"


def _missing(error: Any) -> str:
    wanted = _wanted(error.param)
    return f"{_name(error)} is missing" + (f"; it must be {wanted}" if wanted else "")


def _bad_use(error: Any) -> str:
    parameters = error.ctx.command.params if error.ctx else ()
    parameter = next((p for p in parameters if error.option_name in p.opts), None)
    if parameter is None or parameter.is_flag:
        return f"{error.option_name} takes no value"
    wanted = _wanted(parameter)
    return f"{error.option_name} needs a value" + (f": {wanted}" if wanted else "")


_MESSAGES: dict[str, Callable[[Any], str]] = {
    "BadParameter": _bad_value,
    "MissingParameter": _missing,
    "NoSuchOption": lambda error: f"unknown option {error.option_name}",
    "BadOptionUsage": _bad_use,
}
