"""`--help` as a manual: groups, examples, the environment, exit codes, in any width."""

from __future__ import annotations

import re

import pytest
import typer

from conifer_cli import errors
from conifer_cli.app import app
from conifer_cli.help import EXIT_CODES, GROUPS
from support.program import run_conifer

pytestmark = pytest.mark.process

COMMANDS = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()
    if not command.hidden
}
HEADING = re.compile(r"^(\w[\w ]*):$", re.MULTILINE)


def page(home, *words: str, columns: int = 100) -> str:
    done = run_conifer(*words, "--help", home=home, COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_once_with_its_variable(name, tmp_path):
    text = " ".join(page(tmp_path, name).split())
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            flag = next(word for word in parameter.opts if word.startswith("--"))
            shown = re.findall(rf"(?<![\w-]){flag}(?![\w-])[^\[]*\[env var: (\w+)", text)
            assert flag in text
            assert parameter.envvar is None or parameter.envvar in shown, flag
    assert HEADING.findall(page(tmp_path, name))[-2:] == ["Examples", "Exit codes"]


def test_the_many_options_of_run_are_in_groups(tmp_path):
    headings = HEADING.findall(page(tmp_path, "run"))
    assert headings[0] == "Arguments" and len(headings) == len(set(headings))
    assert [h for h in headings if h in GROUPS] == [h for h in GROUPS if h in headings]
    assert {"Prompt", "Answer", "Sampling", "Thinking", "Machine"} < set(headings)
    assert len(GROUPS) == len(set(GROUPS)) and "Other options" in headings


def test_the_program_lists_commands_variables_and_exit_codes(tmp_path):
    text = page(tmp_path)
    assert HEADING.findall(text) == ["Options", "Commands", "Examples", "Environment", "Exit codes"]
    for word in (*COMMANDS, "CONIFER_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_COLOR"):
        assert re.search(rf"^  {word}\b|^  .*, {word}\b", text, re.MULTILINE), word
    codes = [errors.OK, errors.FAILURE, errors.USAGE, errors.BAD_MODEL, errors.NO_ROOM]
    codes += [errors.UNREACHABLE, errors.INTERRUPTED, errors.READER_GONE]
    assert [int(code) for code, _ in EXIT_CODES] == codes


@pytest.mark.parametrize("columns", [60, 80, 300])
def test_a_page_is_no_wider_than_the_terminal_and_never_very_wide(columns, tmp_path):
    lines = page(tmp_path, "run", columns=columns).splitlines()
    examples = range(lines.index("Examples:"), lines.index("Exit codes:"))
    widths = [len(line) for number, line in enumerate(lines) if number not in examples]
    assert max(widths) <= min(columns, 100)
