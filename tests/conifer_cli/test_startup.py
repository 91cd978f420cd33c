"""Start-up: which modules a command line loads, and values that are converted without pydantic."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from catalog import registry
from conifer_cli import app, options, usage
from engine.device import backend
from engine.fit.machine import this_machine
from tests.support.program import ROOT, know_bandwidth

# Packages that take long to load: the HTTP and TLS stack, arrays, terminals, validation.
NEVER = ("asyncio", "email", "httpx2", "jinja2", "numpy", "prompt_toolkit", "pydantic", "rich")
NEVER += ("logging", "random", "sqlite3", "statistics", "ssl", "tokenizers", "urllib.request")
ABOUT_MODELS = ("catalog", "engine", "huggingface_hub", "mlx")
# The most modules that a command line may load, about a tenth more than it did when last counted.
BUDGETS = {
    "--help": (185, (*NEVER, *ABOUT_MODELS)),
    "__complete -- ru": (185, (*NEVER, *ABOUT_MODELS)),
    "run --help": (200, (*NEVER, "engine", "mlx")),
    "__complete -- run qwen": (215, (*NEVER, "engine", "mlx")),
    "fit --machine m4-max-64gb": (285, (*NEVER, "mlx")),
    "fit qwen3-30b-a3b -c 16k --machine m4-max-64gb": (285, (*NEVER, "mlx")),
    "fit --json": (300, NEVER),
}


def loaded(line: str, home: Path, cache: Path | None = None) -> list[str]:
    """Return the modules that a command line loads. cache: the folder for bytecode, if any."""
    kept = ("PATH", "LD_LIBRARY_PATH", "HOME")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {
        "CONIFER_HOME": str(home / "conifer"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    env |= {"PYTHONPYCACHEPREFIX": str(cache)} if cache else {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-X", "importtime", "-m", "conifer_cli", *line.split()]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=env, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]


@pytest.mark.process
@pytest.mark.parametrize("line", BUDGETS)
def test_a_command_line_loads_no_more_than_it_needs(line: str, tmp_path: Path):
    most, banned = BUDGETS[line]
    know_bandwidth(tmp_path, machine=f"{backend()}: {this_machine().name}")
    modules = loaded(line, tmp_path)
    assert set(modules).isdisjoint(banned), sorted(set(modules) & set(banned))
    assert len(modules) <= most


@pytest.mark.process
def test_the_catalog_is_parsed_once_and_again_when_it_changes(tmp_path: Path):
    loaded("__complete -- run qwen", tmp_path, cache=tmp_path / "bytecode")
    modules = loaded("__complete -- run qwen", tmp_path, cache=tmp_path / "bytecode")
    assert "tomllib" not in modules and "catalog.registry" in modules
    path = tmp_path / "models.toml"
    for number in (1, 2):
        path.write_text(f"number = {number}{number * '0'}\n")
        module = ModuleType("models")
        registry._TomlLoader("models", str(path)).exec_module(module)
        assert {"number": number * 10**number} == module.TABLES


VALUES = ("4096", "64k", "0.5", "1", "-1", "007", "1e3", "1_000", " 5", "٣", "abc", "", "-", "true")
VALUES += ("f16", "F16", "auto", "always", "code", "32GB", "low", "json", "png", "m4-16gb")


def test_plain_values_are_converted_as_typer_does():
    program = typer.main.get_command(app.app)
    compared = 0
    for command in (program, *program.commands.values()):  # type: ignore[attr-defined]
        context = typer.Context(command)
        for parameter in command.get_params(context):
            several = parameter.multiple or parameter.nargs == -1
            given = [*([(v,) for v in VALUES] if several else VALUES), None]
            given += [parameter.get_default(context)]
            for value in given:
                own = convert(parameter.type_descriptor, value, several)
                if own is usage._ODD or parameter.type_descriptor.annotation is bool:
                    continue
                converter = parameter.get_runtime_param()
                theirs = convert_theirs(converter, value, parameter, context)
                assert plain(own) == plain(theirs), (parameter.name, value)
                compared += 1
    assert compared > 1000


def plain(value):
    """Return the type of a value, and its fields or the value itself, to compare it."""
    return type(value), vars(value) if type(value) is options.Lengths else value


def convert(descriptor, value, several):
    try:
        return usage._plain(descriptor, value, several)
    except typer.BadParameter as error:
        return str(error)


def convert_theirs(converter, value, parameter, context):
    try:
        return converter.coerce(value, parameter, context)
    except typer.BadParameter as error:
        return str(error)
