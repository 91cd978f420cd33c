"""Presets: options of `run` under a name, for `run -t NAME`.

A preset is a TOML file in the folder `presets` next to config.toml. Its keys are the long names of
options, and `template`: a prompt in which `{input}` stands for the prompt that is typed or piped,
and other words in braces for the values of `--var`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.files import read_file, write_atomically
from conifer_cli.config_edit import TomlValue, literal
from conifer_cli.config_file import MAX_BYTES, checked, long_name, parsed, place
from conifer_cli.errors import UsageError, why
from conifer_cli.terminal import console
from conifer_cli.usage import did_you_mean, quoted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
VARIABLE = re.compile(r"\{([A-Za-z_]\w*)\}")
INPUT = "input"
TEMPLATE = "template"
# Options that choose or write a preset, or answer for one run.
EXCLUDED = ("preset", "save_preset", "var", "yes", "save", "resume", "last", "experts_out")


def folder() -> Path:
    """Return the folder of the presets."""
    return place().parent / "presets"


def names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml") if NAME.fullmatch(path.stem))


def path_of(name: str) -> Path:
    """Return the file of a preset, which may be missing. Raises UsageError for a wrong name."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{quoted(name)} is not a name for a preset",
            "Use letters, digits, dots, hyphens and underscores.",
        )
    return folder() / f"{name}.toml"


def text_of(name: str) -> str:
    """Return a preset's file as text. Raises UsageError if there is none."""
    path = path_of(name)
    try:
        return console.decoded(read_file(path, MAX_BYTES), str(path), strict=True)
    except FileNotFoundError as error:
        meant = did_you_mean(name, names(), "`-t {}`")
        hint = meant or "Run `conifer presets` to list the presets."
        raise UsageError(f"no preset is called {quoted(name)}", hint) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error


def read(context: Any, name: str) -> tuple[dict[str, Any], str | None]:
    """Return a preset's options by parameter name, as typed, and its template, if any.

    context: of the command `run`. Raises UsageError if the file is invalid.
    """
    path, values = path_of(name), {}
    data = parsed(path, text_of(name))
    template = data.pop(TEMPLATE, None)
    if not isinstance(template, str | None):
        raise UsageError(f"{path}, {TEMPLATE}: must be a string")
    known = {long_name(parameter): parameter for parameter in context.command.params}
    for key, value in data.items():
        parameter = known.get(key.replace("-", "_"))
        if parameter is None or parameter.name in EXCLUDED or not key:
            hint = did_you_mean(key, [*filter(None, known), TEMPLATE])
            raise UsageError(f"{path}, {key}: unknown option", hint)
        plain = checked(context, f"{path}, {key}", parameter, value)
        values[parameter.name] = parameter.process_value(context, plain)
    return values, template


def write(name: str, values: Mapping[str, TomlValue]) -> Path:
    """Write a preset. values: by long option name, with underscores. Return its file."""
    path = path_of(name)
    lines = [f"{key} = {literal(value)}\n" for key, value in values.items()]
    try:
        write_atomically(path, "".join(["format = 1\n", *lines]), mode=0o600)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {why(error)}") from error
    return path


def needs_input(template: str) -> bool:
    """True if a template has a place for the prompt."""
    return INPUT in VARIABLE.findall(template)


def filled(template: str, prompt: str, variables: Mapping[str, str], name: str) -> str:
    """Return the template with the prompt and the variables in it. Raises UsageError.

    A template without `{input}` comes before the prompt.
    """
    known = {**variables, INPUT: prompt}
    wanted = dict.fromkeys(VARIABLE.findall(template))
    missing = [word for word in wanted if word not in known]
    if missing:
        flags = " ".join(f"--var {word}=..." for word in missing)
        raise UsageError(f"the preset {name} needs {' and '.join(missing)}", f"Pass {flags}.")
    unknown = [word for word in variables if word not in wanted]
    if unknown:
        raise UsageError(f"the preset {name} has no {{{unknown[0]}}} in its template")
    text = VARIABLE.sub(lambda found: known[found[1]], template)
    return text if INPUT in wanted or not prompt else f"{text}\n\n{prompt}"
