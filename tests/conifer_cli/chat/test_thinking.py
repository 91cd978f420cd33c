"""Thinking is separated from the answer: answers go to stdout, visible thinking to stderr."""

from __future__ import annotations

import pytest

from conifer_cli.run_options import RunOptions
from conifer_cli.session.response import Response
from engine.text.reasoning import Kind
from support.program import MODELS, command, environment, run_conifer, templated
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "8")
OPEN = "{{ messages[0].content }}<think>\n"
CLOSED = "{{ messages[0].content }}<think>\n\n</think>\n\n"
PARTS = [
    (Kind.THINKING, "Two "),
    (Kind.THINKING, "and two.\x1b[31m"),
    (Kind.COMMENTARY, "\nA tool? No."),
    (Kind.ANSWER, "Fo"),
    (Kind.ANSWER, "ur.\n\n"),
]
LIMIT = "the limit of 8 tokens was reached while the model was still reasoning"
NO_ANSWER = f"conifer: no answer: {LIMIT}\n".encode()


@pytest.fixture
def plain(tmp_path):
    """Return everything the model generates for a prompt that opens the thinking block."""
    done = run_conifer("run", QWEN, "hi<think>\n", *GREEDY, home=tmp_path)
    assert done.stdout.strip()
    return done.stdout.strip()


def test_thinking_in_a_pipe_is_not_shown(tmp_path):
    done = run_conifer("run", templated(tmp_path, OPEN), "hi", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", NO_ANSWER)


@pytest.mark.parametrize(
    ("flag", "more"), [(("--show-thinking",), {}), ((), {"CONIFER_SHOW_THINKING": "1"})]
)
def test_thinking_goes_to_stderr_when_asked_for(tmp_path, plain, flag, more):
    asked = ("run", templated(tmp_path, OPEN), "hi", *GREEDY, *flag)
    done = run_conifer(*asked, home=tmp_path, **more)
    assert (done.returncode, done.stdout) == (0, b"\n")
    assert done.stderr.removesuffix(NO_ANSWER).strip() == plain
    assert done.stderr.endswith(NO_ANSWER)
    assert b"\x1b" not in done.stderr


def test_what_follows_closed_thinking_is_the_answer(tmp_path):
    done = run_conifer("run", templated(tmp_path, CLOSED), "hi", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("more", "flags", "dimmed", "shown"),
    [
        ({"TERM": "xterm"}, (), True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, (), False, True),
        ({"TERM": "dumb"}, (), False, True),
        ({"TERM": "xterm"}, ("--hide-thinking",), False, False),
    ],
)
def test_a_terminal_shows_thinking_dimmed(tmp_path, plain, more, flags, dimmed, shown):
    arguments = [*command(), "run", templated(tmp_path, OPEN), "-p", "hi", *GREEDY, *flags]
    with TerminalSession(arguments, environment(tmp_path, **more)) as session:
        session.type("\x04")  # end of stdin
        assert session.wait() == 0
        assert ("\x1b[2m" in session.screen, "\x1b[22m" in session.screen) == (dimmed, dimmed)
        start = plain.decode().split("\n")[0][:8]
        assert (start in session.screen) == shown


def test_a_reply_keeps_answer_and_thinking_apart(capsys):
    reply = Response(RunOptions(show_thinking=True))
    reply.print(iter(PARTS))
    assert capsys.readouterr() == ("Four.\n", "Two and two.\nA tool? No.\n\n")
    assert reply.message() == {
        "role": "assistant",
        "content": "Four.\n\n",
        "reasoning_content": "Two and two.\x1b[31m",
    }


def test_a_reply_without_thinking_has_none(capsys):
    reply = Response(RunOptions())
    reply.print(iter(PARTS[3:]))
    assert capsys.readouterr() == ("Four.\n", "")
    assert reply.message() == {"role": "assistant", "content": "Four.\n\n"}


def test_hidden_thinking_is_still_part_of_the_conversation(capsys):
    reply = Response(RunOptions(show_thinking=False))
    reply.print(iter(PARTS))
    assert capsys.readouterr() == ("Four.\n", "")
    assert reply.thinking == "Two and two.\x1b[31m"
