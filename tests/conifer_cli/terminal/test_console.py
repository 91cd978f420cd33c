"""Standard input and the progress line, tested without running the program."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from conifer_cli.acquire import locate
from conifer_cli.errors import UsageError
from conifer_cli.run_options import RunOptions
from conifer_cli.session.open import open_session
from conifer_cli.terminal import console, progress
from support.program import MODELS
from support.screen import Screen


@pytest.fixture
def pipe(monkeypatch):
    """Connect stdin to a pipe. Return the write end."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield writing


def test_stdin_has_a_limit(pipe, monkeypatch):
    monkeypatch.setattr(console, "MAX_STDIN_BYTES", 1000)
    os.write(pipe, bytes(1001))
    with pytest.raises(UsageError, match="exceeds the"):
        console.piped()
    os.close(pipe)


def test_as_much_as_the_limit_is_read(pipe, monkeypatch):
    monkeypatch.setattr(console, "MAX_STDIN_BYTES", 1000)
    os.write(pipe, b"x" * 1000)
    os.close(pipe)
    assert console.piped() == "x" * 1000


def test_a_pipe_that_does_not_block_is_waited_for(pipe, monkeypatch, capsys):
    monkeypatch.setattr(console, "STDIN_PATIENCE_S", 0.01)
    os.set_blocking(sys.stdin.fileno(), False)

    def write_late() -> None:
        for piece in (b"so", b" late"):
            threading.Event().wait(0.1)
            os.write(pipe, piece)
        os.close(pipe)

    writer = threading.Thread(target=write_late)
    writer.start()
    assert console.piped() == "so late"
    writer.join()
    assert capsys.readouterr().err == "conifer: waiting for the end of standard input\n"


@pytest.mark.parametrize("name", [None, "", "dumb", "unknown", "xterm"])
def test_a_terminal_is_dumb_by_its_name(monkeypatch, name):
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert console.dumb() == (name != "xterm")


def test_loading_says_nothing_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_START_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    open_session(locate(str(MODELS / "qwen3moe" / "model.gguf")), RunOptions())
    assert "loading" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        ("tokens", "x: 50 of 100 tokens, 10 tokens/s, 5 s left\n"),
        ("bytes", "x: 50 B of 100 B, 0 B/s\n"),
    ],
)
def test_a_prompt_is_counted_from_its_start_and_a_transfer_from_where_it_was(
    monkeypatch, capsys, unit, line
):
    now_s = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[-1])
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1.0)
    shown = progress.Progress("x", unit)
    now_s.append(105.0)
    shown.update(50, 100)
    assert capsys.readouterr().err == line


def test_a_progress_line_clears_the_echo_of_ctrl_c_too(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_START_S", 0.0)
    monkeypatch.setattr(progress, "REDRAW_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "dimensions", lambda: (30, 24))
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(width=30)
    shown = progress.Progress("a model with a long name")
    shown.update(50, 100)
    screen.write(capsys.readouterr().err + "^C")
    shown.clear()
    screen.write(capsys.readouterr().err)
    assert screen.text.strip() == ""


@pytest.mark.parametrize(("value", "colours"), [(None, True), ("", True), ("1", False)])
def test_an_empty_no_color_counts_as_unset(monkeypatch, value, colours):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert console.colours() == colours
