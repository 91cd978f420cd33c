"""`conifer default`, `alias`, `config` and `presets`: what the user has chosen, and where."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conifer_cli import config_edit, config_file, errors, presets
from conifer_cli.acquire import locate
from conifer_cli.errors import Declined, UsageError, why
from conifer_cli.terminal import console
from conifer_cli.terminal.layout import FAINT, Column, Grid
from conifer_cli.usage import did_you_mean, quoted

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SETTINGS = (Column("SETTING"), Column("VALUE"), Column("FROM", rank=1))


def default_model(name: str | None, unset: bool) -> int:
    """Show, set or unset the model that `run` uses if the command line names none."""
    if name and unset:
        raise UsageError("--unset takes no MODEL")
    if unset:
        path = config_edit.change("", "model", None)
        console.note(f"no default model in {path}; `conifer run` uses the starter model")
    elif name:
        name = _lasting(name)
        path = config_edit.change("", "model", name)
        console.note(f"{name} is now the default model, kept in {path}")
        if (chosen := os.environ.get("CONIFER_MODEL")) and chosen != name:
            console.note(f"CONIFER_MODEL={chosen} overrides it in this shell")
    else:
        found = os.environ.get("CONIFER_MODEL") or config_file.value_of("model")
        if found is None:
            console.log("No default model. Run `conifer default MODEL` to choose one.")
        else:
            console.print_lines([str(found)])
    return errors.OK


def alias(text: str | None, remove: str | None) -> int:
    """List the aliases, add one given as NAME=MODEL, or remove one."""
    known = config_file.aliases()
    if remove is not None:
        if remove not in known:
            meant = did_you_mean(remove, known, "`conifer alias --remove {}`")
            raise UsageError(f"no alias is called {quoted(remove)}", meant)
        config_edit.change("alias", remove, None)
        console.note(f"removed the alias {remove}")
    elif text is None:
        if not known:
            console.log("No aliases. Run `conifer alias NAME=MODEL` to add one.")
        console.print_lines([Grid([Column(), Column()], known.items())] if known else [])
    else:
        _add_alias(text)
    return errors.OK


def _lasting(name: str) -> str:
    """Return a model's name, with a path made absolute. Raises UsageError or UnknownModel."""
    found = locate(name)
    return str(found.reference.path.absolute()) if found.reference.path else found.name


def _add_alias(text: str) -> None:
    from catalog import entries

    name, equals, model = (part.strip() for part in text.partition("="))
    if not equals or not model:
        raise UsageError("an alias is written NAME=MODEL", "`conifer alias fast=qwen3-30b-a3b`")
    if not ALIAS.fullmatch(name):
        raise UsageError(
            f"{quoted(name)} is not a name for an alias",
            "Use letters, digits, dots, hyphens and underscores.",
        )
    if name.lower() in entries():
        raise UsageError(f"{name} is a model in the catalog", "Choose another name.")
    target = _lasting(model)
    config_edit.change("alias", name, target)
    console.note(f"{name} now means {target}; try `conifer run {name}`")


def configure(root: Any, action: str, as_json: bool) -> int:
    """Show what is set and where, print the config file's path, or edit the file."""
    path = config_file.place()
    if action == "path":
        console.print_lines([str(path)])
    elif action == "edit":
        _edit(path, "format = 1\n")
        config_file.defaults(root)
    else:
        rows = list(_settings(root))
        if as_json:
            keys = ("setting", "value", "source")
            console.print_json([dict(zip(keys, row, strict=True)) for row in rows])
            return errors.OK
        there = "" if os.path.exists(path) else " (does not exist yet)"
        lines: list[Any] = [f"config file: {path}{there}"]
        lines += ["", Grid(SETTINGS, rows)] if rows else ["Nothing is set: all defaults hold."]
        console.print_lines(lines)
    return errors.OK


def _settings(root: Any) -> Iterator[tuple[str, str, str]]:
    """Yield (setting, value, source) for what the environment and the config file set."""
    config_file.defaults(root)  # reports what is wrong
    data = config_file.contents()
    commands = root.command.commands
    variables = {p.envvar for command in commands.values() for p in command.params if p.envvar}
    extra = ("CONIFER_HOME", "CONIFER_NOHISTORY", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT")
    set_here = {name for name in (*variables, *extra) if os.environ.get(name)}
    for name in sorted(set_here):
        yield name.removeprefix("CONIFER_").lower(), os.environ[name], f"environment, {name}"
    for key, value in data.items():
        if not isinstance(value, dict):
            hidden = f"CONIFER_{key.upper().replace('-', '_')}" in set_here
            source = f"{config_file.NAME}{', overridden' if hidden else ''}"
            yield key, config_edit.literal(value), source
            continue
        for inner, setting in value.items():
            yield f"{key}.{inner}", config_edit.literal(setting), config_file.NAME


def manage_presets(root: Any, action: str, name: str | None, yes: bool) -> int:
    """List the presets, or show, edit or remove one."""
    if action == "list":
        _list_presets()
        return errors.OK
    if name is None:
        raise UsageError(f"presets {action} needs a NAME", "Run `conifer presets` to list them.")
    if action == "show":
        console.print_lines([presets.text_of(name).rstrip("\n")])
    elif action == "edit":
        path = presets.path_of(name)
        _edit(path, 'format = 1\n# system = "..."\n# template = "Summarise:\\n{input}"\n')
    else:
        presets.text_of(name)
        if not yes:
            if not console.can_ask():
                raise UsageError("removal requires confirmation, but there is no terminal")
            if not console.confirm(f"Remove the preset {name}?", default=False):
                raise Declined("nothing was removed")
        presets.path_of(name).unlink(missing_ok=True)
        console.note(f"removed the preset {name}")
    return errors.OK


def _list_presets() -> None:
    found = presets.names()
    if not found:
        console.log(
            "No presets. Add --save-preset NAME to a `conifer run` command to keep its options."
        )
        return
    rows = []
    for name in found:
        text = presets.text_of(name)
        data = config_file.parsed(presets.path_of(name), text)
        what = data.get(presets.TEMPLATE) or data.get("system") or ", ".join(data)
        rows.append((name, str(data.get("model", "-")), (FAINT, str(what)[:200])))
    console.print_lines([Grid([Column("NAME"), Column("MODEL", rank=1), Column("FOR")], rows)])


def _edit(path: Path, start: str) -> None:
    """Open a file in the user's editor. Raises UsageError if that is not possible."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(start)
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"the editor {editor!r} failed: {why(error)}") from error
    if done.returncode:
        raise UsageError(f"the editor {editor!r} failed with exit code {done.returncode}")
