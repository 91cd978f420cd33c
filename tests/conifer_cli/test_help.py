"""Help: one screen of commands, a short and a long page for each, and topics."""

from __future__ import annotations

import re

import pytest
import typer

from conifer_cli import app, errors
from conifer_cli.help import ALIASES, EXIT_CODES, FAMILIAR, GROUPS, RARE, TOPICS
from conifer_cli.terminal import console

COMMANDS = {
    name: command
    for name, command in typer.main.get_command(app.app).commands.items()
    if not command.hidden
}
HEADING = re.compile(r"^(\w[\w ]*):$", re.MULTILINE)


@pytest.fixture
def page(capsys, monkeypatch):
    """Run a command line in a terminal of some width and return what it prints."""

    def shown(*words: str, columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert app._outcome(list(words)) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return shown


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_page_fits_a_narrow_terminal(page, name):
    for words in ((name, "-h"), ("help", name)) if name else ((), ("--help",)):
        # An option with its values, or a path, may be wider than the terminal.
        for width in (40, 60):
            rows = page(*words, columns=width).splitlines()
            assert all(len(row) <= width or len(row.split()) <= 3 for row in rows)
        wide = page(*words, columns=400).split()
        assert {*" ".join(rows).split()} <= {*wide}  # no word is broken at 60


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_program_has_one_screen_with_every_command_and_three_examples(page, words):
    text = page(*words, columns=80)
    lines = text.splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80  # one line is the shell's
    assert HEADING.findall(text) == ["Commands", "Examples"]
    assert all(re.search(rf"\b{name}\b", text) for name in COMMANDS)
    assert sum(line.startswith("  conifer ") for line in lines) == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_the_long_page_of_a_command_has_every_option_once(page, name):
    text = page(name, "--help")
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            flag = next(word for word in parameter.opts if word.startswith("--"))
            assert len(re.findall(rf"^  (?:-\w, )?{flag}(?![\w-])", text, re.MULTILINE)) == 1, flag
    assert HEADING.findall(text)[-1] == "Examples"
    assert text == page("help", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_page_of_a_command_leaves_out_what_is_rare(page, name):
    text = page(name, "-h", columns=80)
    assert "--color" not in text and f"`conifer {name} --help` lists every option." in text
    assert not [flag for flag in RARE if re.search(rf"{flag}(?![\w-])", text)]
    assert "Examples:\n  conifer " in text


def test_the_many_options_of_run_are_in_groups(page):
    headings = HEADING.findall(page("run", "--help"))
    assert headings[0] == "Arguments" and len(headings) == len(set(headings))
    assert [h for h in headings if h in GROUPS] == [h for h in GROUPS if h in headings]
    assert {"Prompt", "Answer", "Sampling", "Thinking", "Machine"} < set(headings)
    assert len(GROUPS) == len(set(GROUPS)) and "Other options" in headings


def test_only_irregular_variables_are_in_the_help_of_an_option(page):
    assert "CONIFER_" not in page("run", "--help")
    assert re.findall(r"CONIFER_\w+", page("bench", "--help")) == [
        *("CONIFER_BENCH_PROMPT", "CONIFER_BENCH_DEPTH", "CONIFER_BENCH_TOKENS"),
        "CONIFER_BENCH_REPEAT",
    ]


def test_topics_list_the_variables_and_the_exit_codes(page):
    text = page("help", "environment")
    for word in ("CONIFER_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_COLOR", "CLICOLOR_FORCE"):
        assert re.search(rf"^{word}\b|^.*, {word}\b", text, re.MULTILINE), word
    codes = [errors.OK, errors.FAILURE, errors.USAGE, errors.BAD_MODEL, errors.NO_ROOM]
    codes += [errors.UNREACHABLE, errors.INTERRUPTED, errors.READER_GONE]
    assert [int(code) for code, _ in EXIT_CODES] == codes
    assert all(about in page("help", "exit-codes") for _, about in EXIT_CODES)
    assert set(TOPICS).isdisjoint(COMMANDS)


@pytest.mark.parametrize("columns", [60, 80, 300])
def test_a_page_is_no_wider_than_the_terminal_and_never_very_wide(page, columns):
    lines = page("run", "--help", columns=columns).splitlines()
    examples = range(lines.index("Examples:"), len(lines))
    widths = [len(line) for number, line in enumerate(lines) if number not in examples]
    assert max(widths) <= min(columns, 100)


def test_names_of_other_tools_lead_to_ours(page):
    assert page("help", "ls") == page("help", "list")
    assert {*ALIASES, *FAMILIAR}.isdisjoint(COMMANDS)
    assert {word.split()[0] for word in FAMILIAR.values()} <= {*COMMANDS, "--version"}


def test_version_has_a_short_name(page):
    assert page("-V") == page("--version")


def test_headings_are_bold_where_colours_are_forced(page, monkeypatch):
    monkeypatch.setattr(console.policy, "colour", console.Colour.ALWAYS)
    assert "\x1b[1mExamples\x1b[0m:" in page("help", "run")
