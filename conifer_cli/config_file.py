"""The config file: a TOML file of option defaults.

Its values override the catalog, and environment variables override its values. A table named after
a command sets that command's options, by their long names; the table `alias` names models. A
top-level key is an environment
variable's name without CONIFER_, and applies to every command that reads the variable. Values are
checked like command-line values. Errors name the file, line and key. `format = 1` is the version of
the file format.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from catalog.files import read_file
from conifer_cli import usage
from conifer_cli.errors import UsageError, why
from conifer_cli.options import conifer_folder
from conifer_cli.terminal import console

FORMAT = 1
NAME = "config.toml"
ALIAS = "alias"  # the table of models' other names
MAX_BYTES = 1 << 20
BARE = r"[A-Za-z0-9_-]+"
TABLE = re.compile(rf"\s*\[\s*({BARE})\s*\]")


def place() -> Path:
    """Return the config file's path, in CONIFER_HOME if set or the platform's config folder."""
    try:
        return conifer_folder("XDG_CONFIG_HOME", ".config") / NAME
    except RuntimeError:  # `options.home` reports this error if a command needs the folder
        return Path(os.devnull)


def defaults(context: typer.Context) -> dict[str, dict[str, Any]]:
    """Return defaults by command and parameter. Raises UsageError if the file is invalid."""
    path = place()
    text = _read(path)
    if not text:
        return {}
    data = parsed(path, text)
    commands: Mapping[str, Any] = context.command.commands  # type: ignore[attr-defined]
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    _check_aliases(path, text, data.get(ALIAS, {}))
    for table, key, value in _settings(data, commands):
        where = _where(path, text, table, key)
        wanted = [table] if table else list(commands)
        name_of = long_name if table else _variable
        parameters = [(name, _parameter(commands[name], key, name_of)) for name in wanted]
        having = [(name, parameter) for name, parameter in parameters if parameter is not None]
        if not having:
            raise _unknown(where, key, [commands[name] for name in wanted], name_of)
        for name, parameter in having:
            found[name][parameter.name] = checked(context, where, parameter, value)
    return found


def _check_aliases(path: Path, text: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise UsageError(f"{path}, {ALIAS}: must be a table")
    for name, model in found.items():
        if not isinstance(model, str) or not model:
            raise UsageError(f"{_where(path, text, ALIAS, name)}: must be a model's name")


def _is_there(path: Path) -> bool:
    """True if the file exists. If the folder cannot be searched, logs why and returns False."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _log_once(f"conifer: cannot look for {path}: {why(error)}")
        return False
    return os.path.realpath(path) != os.devnull


@functools.cache
def _log_once(line: str) -> None:
    """Log a line, although the file is looked for several times."""
    console.log(line)


def _read(path: Path) -> str:
    if not _is_there(path):
        return ""
    try:
        return console.decoded(read_file(path, MAX_BYTES), str(path), strict=True)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error


def contents() -> dict[str, Any]:
    """Return everything in the file. Raises UsageError if it is not valid TOML."""
    path = place()
    return parsed(path, text) if (text := _read(path)) else {}


def value_of(key: str) -> Any:
    """Return the value of a top-level key, or None."""
    return contents().get(key)


def aliases() -> dict[str, str]:
    """Return the models' names by alias. Ignores a file that is not valid, as its reader warns."""
    try:
        found = contents().get(ALIAS, {})
    except UsageError:
        return {}
    return found if isinstance(found, dict) else {}


def parsed(path: Path, text: str) -> dict[str, Any]:
    """Parse the file's text. Raises UsageError if it is not valid TOML."""
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        raise UsageError(f"{path} is not valid TOML: {message[:1].lower()}{message[1:]}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: the values are nested too deeply") from error
    except ValueError as error:  # int() raises this for a very long number
        raise UsageError(f"{path}: a number has too many digits") from error
    version = data.pop("format", FORMAT)
    if version != FORMAT:
        raise UsageError(f"{path}: format must be {FORMAT}, got {version!r}")
    return data


def _settings(
    data: Mapping[str, Any], commands: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """Yield (command, key, value) for each setting. For top-level keys, the command is empty."""
    for key, value in data.items():
        if key == ALIAS:
            continue
        if isinstance(value, dict) and key in commands:
            yield from ((key, inner, setting) for inner, setting in value.items())
        else:
            yield "", key, value


def _parameter(command: Any, key: str, name_of: Callable[[Any], str]) -> Any:
    for parameter in command.params:
        if getattr(parameter, "envvar", None) and name_of(parameter) == key.replace("-", "_"):
            return parameter
    return None


def long_name(parameter: Any) -> str:
    """Return an option's long name with underscores, or an empty string for an argument."""
    long = next((name for name in parameter.opts if name.startswith("--")), "")
    return str(long.removeprefix("--").replace("-", "_"))


def _variable(parameter: Any) -> str:
    return str(parameter.envvar or "").removeprefix("CONIFER_").lower()


def checked(context: typer.Context, where: str, parameter: Any, value: Any) -> Any:
    """Validate a value as on the command line. Return booleans unchanged and others as text."""
    flag = isinstance(parameter.default, bool) or bool(parameter.secondary_opts)
    rows = value if isinstance(value, list) else [value]
    kinds = (bool,) if flag else (str, int, float)
    if (isinstance(value, list) and not parameter.multiple) or not all(
        isinstance(row, kinds) and (flag or not isinstance(row, bool)) for row in rows
    ):
        kind = "true or false" if flag else "a string or a number"
        raise UsageError(f"{where}: must be {kind}")
    if any("\0" in str(row) for row in rows):
        raise UsageError(f"{where}: must not contain a NUL character")
    plain = value if flag else [str(row) for row in rows] if parameter.multiple else str(value)
    try:
        parameter.process_value(context, plain)
    except typer.BadParameter as error:
        error.param = parameter
        raise UsageError(f"{where}: {usage.problem(error, value)}") from error
    return plain


def _unknown(
    where: str, key: str, commands: list[Any], name_of: Callable[[Any], str]
) -> UsageError:
    known = {name_of(parameter) for command in commands for parameter in command.params}
    hint = usage.did_you_mean(key, sorted(known - {""}))
    hint = hint or "Use long option names as keys, such as top_p."
    return UsageError(f"{where}: unknown option", hint)


def _where(path: Path, text: str, table: str, key: str) -> str:
    """Return the file, line and key, such as `config.toml, line 3, temperature`."""
    now = ""
    wanted = re.compile(rf"\s*(['\"]?){re.escape(key)}\1\s*=")
    for number, line in enumerate(text.splitlines(), 1):
        if header := TABLE.match(line):
            now = header[1]
        if (now == table and wanted.match(line)) or (header and now == key and not table):
            return f"{path}, line {number}, {key}"
    return f"{path}, {key}"
