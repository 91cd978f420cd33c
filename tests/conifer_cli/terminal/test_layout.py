"""Lines and tables in a terminal's width, and the policy on colours."""

from __future__ import annotations

import pytest

from conifer_cli.terminal import console, progress
from conifer_cli.terminal.inline import cells
from conifer_cli.terminal.layout import GOOD, Column, Grid, labelled, plain, rows_of, wrap

COLUMNS = (Column("NAME"), Column("SIZE", True), Column("DATE", rank=1), Column("WHERE", rank=2))
ROWS = [
    ("qwen3-30b-a3b:Q4_K_M", "18.6 GB", "2026-11-28 16:24", "/home/ada/.cache/x/y.gguf"),
    ("smollm2-135m", "98.4 MB", "2026-11-27 09:00", "/home/ada/models/smollm2.gguf"),
]


def shown(line, width):
    return [plain(row) for row in rows_of(line, width)]


@pytest.mark.parametrize(("width", "heads"), [(None, 4), (120, 4), (60, 3), (40, 2)])
def test_a_table_drops_the_columns_that_matter_least(width, heads):
    head, *rows = shown(Grid(COLUMNS, ROWS), width)
    assert len(head.split()) == heads and len(rows) == len(ROWS)
    assert width is None or max(map(len, (head, *rows))) <= width


def test_a_table_that_is_still_too_wide_wraps_its_widest_text_at_words():
    pairs = [("licence", "Apache-2.0"), ("status", "runs on this machine, never measured here")]
    lines = shown(labelled(pairs), 30)
    assert max(map(len, lines)) <= 30 and len(lines) > 2
    assert " ".join(" ".join(lines).split()) == (
        "licence: Apache-2.0 status: runs on this machine, never measured here"
    )


@pytest.mark.parametrize("width", range(20, 90, 7))
def test_prose_wraps_at_spaces_and_keeps_its_indentation(width):
    text = "  The largest that fits: `conifer run qwen3-30b-a3b`, 一二三 and so on, and so on."
    lines = shown(text, width)
    assert max(map(cells, lines)) <= width
    assert [word for line in lines for word in line.split()] == text.split()
    assert all(line.startswith("  ") and not line.startswith("   ") for line in lines)


def test_without_a_width_nothing_changes():
    text = "a  very   long line " * 20
    assert shown(text, None) == [text]


@pytest.mark.parametrize(
    ("choice", "variables", "tty", "painted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"CLICOLOR_FORCE": "1"}, False, True),
        ("auto", {"CLICOLOR_FORCE": "0"}, False, False),
        ("auto", {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"CLICOLOR_FORCE": "1"}, True, False),
    ],
)
def test_colours_follow_the_option_then_the_environment(
    monkeypatch, capsys, choice, variables, tty, painted
):
    for name, value in {"TERM": "xterm", "NO_COLOR": "", "CLICOLOR_FORCE": "", **variables}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console.policy, "colour", console.Colour(choice))
    monkeypatch.setattr(console, "is_terminal", lambda stream: tty)
    console.print_lines([Grid([Column()], [[(GOOD, "fits")]])])
    assert capsys.readouterr().out == ("\x1b[32mfits\x1b[0m\n" if painted else "fits\n")


def test_quiet_drops_notes_and_progress_but_no_error(monkeypatch, capsys):
    monkeypatch.setattr(console.policy, "quiet", True)
    monkeypatch.setattr(progress, "SILENT_START_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    console.note("downloading")
    progress.Progress("loading").update(1, 2)
    console.problem("no such file", "See `conifer run --help`.")
    assert capsys.readouterr().err == "conifer: no such file\nSee `conifer run --help`.\n"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (99, "[#####.....]  50 % x: 50 of 100 tokens, 10 tokens/s, 5 s left"),
        (54, "[#####.....]  50 % x: 50 of 100 tokens, 10 tokens/s"),
        (45, "[#####.....]  50 % x: 50 of 100 tokens"),
    ],
)
def test_a_progress_line_drops_what_does_not_fit(monkeypatch, capsys, width, line):
    now_s = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[-1])
    monkeypatch.setattr(progress, "dimensions", lambda: (width, 24))
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.Progress("x", "tokens")
    now_s.append(105.0)
    shown.update(50, 100)
    assert capsys.readouterr().err == f"\r{line}"


def test_parts_break_between_parts(monkeypatch, capsys):
    monkeypatch.setattr(console, "line_width", lambda stream: 26)
    console.log_parts("one two three", "four five", "six seven eight nine")
    assert capsys.readouterr().err.splitlines() == [
        "one two three; four five;",
        "six seven eight nine",
    ]


def test_a_word_wider_than_its_cell_begins_on_the_first_row():
    assert [plain(row) for row in wrap([("", "granite-4.0-tiny")], 11)] == ["granite-4.0", "-tiny"]
    table = Grid([Column(), Column("GB", True)], [("a-very-long-name", "9.9")])
    assert [plain(row) for row in table.lines(13)][1:] == ["a-very-long-  9.9", "name"]


def test_a_narrow_table_shares_what_is_missing_between_its_texts():
    table = Grid([Column(), Column()], [("/set think [low|medium|high]", "keep the conversations")])
    rows = [plain(row) for row in table.lines(38)]
    assert rows == ["/set think          keep the", "[low|medium|high]   conversations"]
