"""Folded thinking on a pseudo-terminal."""

from __future__ import annotations

import sys

import pytest

from support.program import environment
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

THINK = """
import time
from conifer_cli.terminal import console
from conifer_cli.terminal.output import AnswerPrinter
from conifer_cli.session.response import Response
from conifer_cli.run_options import RunOptions
from engine.text.reasoning import Kind
def parts():
    for _ in range(14):
        yield Kind.THINKING, "secret musing. "
        time.sleep(0.1)
    yield Kind.ANSWER, "Four."
console.prepare()
reply = Response(RunOptions(), AnswerPrinter(thinking=True, folded=True))
reply.print(parts())
assert reply.thinking.count("musing") == 14
"""


def test_folded_thinking_is_one_line_and_then_how_long_it_took(tmp_path):
    arguments = [sys.executable, "-P", "-c", THINK]
    with TerminalSession(arguments, environment(tmp_path, TERM="xterm")) as session:
        assert session.wait() == 0, session.screen
        assert "musing" not in session.screen
        assert "thinking: " in session.screen  # while it lasted
        assert "s (press Ctrl-O to show)" in session.screen
        assert session.screen.endswith("Four.\r\n")


def test_where_there_are_no_styles_thinking_is_not_folded(tmp_path):
    arguments = [sys.executable, "-P", "-c", THINK]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        assert session.wait() == 0
        assert session.screen.count("musing") == 14 and "\x1b" not in session.screen
