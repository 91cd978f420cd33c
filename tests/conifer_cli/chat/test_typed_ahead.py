"""The terminal from the first moment of a conversation to its end."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import psutil
import pytest

from conifer_cli.chat.line_editor import read_history, split_line
from support.program import environment, templated
from support.screen import Screen
from support.talk import PLAIN
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

PASTE, PASTED = "\x1b[200~", "\x1b[201~"
PASTES, NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"
STATS = "time to first token:"

# Waits while a module is imported, as if a large model were being loaded.
SLOW = """
import sys, time
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            time.sleep(seconds)
module, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
sys.meta_path.insert(0, Finder())
from conifer_cli.__main__ import main
main()
"""
BEFORE_PARSING, AFTER_LOADING = "conifer_cli.commands.run", "conifer_cli.chat.repl"


@pytest.fixture
def begin(tmp_path):
    """Start a conversation that loads for a while."""

    def start(*arguments, module=AFTER_LOADING, seconds=0.6, shell=False, **more):
        words = [sys.executable, "-P", "-c", SLOW, module, str(seconds), "run"]
        words += [templated(tmp_path, PLAIN), "--temperature", "0", "--max-tokens", "4"]
        where = environment(tmp_path, **{"TERM": "xterm-256color", **more})
        if not shell:
            session = TerminalSession([*words, *arguments], where)
            session.resize(80, 24)
            session.expect_quiet()
            return session
        script = tmp_path / "slow.sh"
        quoted = " ".join(f"'{word}'" for word in [*words, *arguments])
        script.write_text(f"exec {quoted}\n")
        return TerminalSession(["/bin/sh", "-i"], {**where, "PS1": "SH$ ", "ENV": ""})

    return start


@pytest.fixture
def kept(tmp_path):
    """Return the messages in the history file."""
    return lambda: read_history(tmp_path / "conifer" / "history")


def shown(session):
    screen = Screen()
    screen.write(session.screen)
    return screen.text


# (chunks of keys, messages)
AHEAD = [
    (["one\r", "two\r"], ["one", "two"]),
    (["one\ntwo\r\nthree\r"], ["one", "two", "three"]),
    ([f"{PASTE}one\rtwo\n", f"three{PASTED}\r"], ["one\ntwo\nthree"]),
    (["\x1b[2", "00~one\r\ntwo\x1b[20", "1~", "\r"], ["one\ntwo"]),
    ([f"see {PASTE}a\nb{PASTED}!\r", "c\r"], ["see a\nb!", "c"]),
    (["caf\udcc3", "\udca9 \udce6\udc97", "\udca5\r"], ["caf\u00e9 \u65e5"]),
    (["no\x7fn\x15yes\r"], ["yes"]),
    (["\x1b", "\x1b[D", "one\r"], ["one"]),
    (["one\x1b\rtwo\r"], ["one\ntwo"]),  # Alt-Enter
]


@pytest.mark.parametrize("module", [BEFORE_PARSING, AFTER_LOADING])
@pytest.mark.parametrize(("chunks", "messages"), AHEAD)
def test_what_is_typed_while_the_model_loads_is_one_message_per_enter(
    begin, kept, module, chunks, messages
):
    with begin("--stats", module=module) as session:
        for chunk in chunks:
            session.type(chunk)
            time.sleep(0.05)
        seen = "".join(session.expect(STATS) + STATS for _ in messages)
        assert kept() == messages
    session.screen = seen
    for line in "\n".join(messages).splitlines():
        assert len(re.findall(rf"^(>>>|\.\.\.) {re.escape(line)}$", shown(session), re.M)) == 1


def test_an_unfinished_line_waits_in_the_editor(begin, kept):
    with begin("--stats") as session:
        session.type("one\rhelk")
        session.expect(STATS)
        session.expect("helk")
        session.type("\x7flo\r")
        session.expect(STATS)
    assert kept() == ["one", "hello"]


def test_a_long_paste_during_an_answer_waits_for_enter_and_does_not_block_ctrl_c(begin, kept):
    paste = "\n".join(str(number) * 100 for number in range(100))
    with begin("--max-tokens", "1900") as session:
        session.expect("\x1b[?25h")
        session.type("one\r")
        session.expect(NO_PASTES)
        assert session.expect(PASTES) == ""  # the answer begins with pastes on
        time.sleep(0.2)
        session.type(f"{PASTE}{paste}{PASTED}")
        session.type("\x03")
        session.expect("\x1b[?25h")
        time.sleep(0.3)
        assert kept() == ["one"]
        session.type("\r")
        session.expect(NO_PASTES)
        session.expect("\x1b[?25h")  # the next prompt
        assert kept() == ["one", paste]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_what_was_typed_ahead_answers_no_question(begin, term):
    with begin("-c", "16", TERM=term) as session:
        session.type("word " * 40 + "\rg\rcancel\r")
        session.expect("[c] cancel:")
        time.sleep(0.2)
        assert "not added" not in session.screen
        assert "context is now" not in session.screen
        session.type("c\r")
        session.expect("Your message was not added.")
        session.expect(">>> g")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_ctrl_d_typed_ahead_ends_the_conversation_after_the_messages(begin, term):
    with begin("--stats", TERM=term) as session:
        session.type("one\r\x04")
        session.expect(STATS)
        assert session.wait() == 0


def test_a_plain_prompt_takes_what_was_typed_ahead_too(begin):
    with begin("--stats", TERM="dumb") as session:
        session.type('ome\x7f\x7fne\r"""two\nthree"""\rfo')
        assert "\x1b" not in session.expect(">>> one\r\n")
        session.expect(STATS)
        session.expect('>>> """two\r\n... three"""\r\n')
        session.expect(STATS)
        session.expect(">>> fo")
        session.type("ur\r")
        session.expect(STATS)


@pytest.mark.parametrize("pause_s", [0, 0.01, 0.03])
def test_a_plain_prompt_loses_no_line_that_comes_as_it_changes_hands(begin, pause_s):
    with begin("--max-tokens", "1", TERM="dumb") as session:
        for number in range(30):
            session.type(f"message {number:02}\n")
            time.sleep(pause_s)
        for number in range(30):
            session.expect(f">>> message {number:02}\r\n")


@pytest.mark.parametrize(
    ("data", "line", "rest"),
    [
        (b"a\nb", "a", b"b"),
        (b"a\r\nb", "a", b"b"),
        (b"ab", "ab", b""),
        (b"ax\x7f\x7f\x7fb\x08c\r", "c", b""),
        (b"no\x15yes\x1b\r", "yes", b""),
        ("caf\u00e9\n".encode(), "caf\u00e9", b""),
        (b"\xff\n", "\ufffd", b""),
    ],
)
def test_a_line_typed_ahead_is_edited_as_a_terminal_does(data, line, rest):
    found, _, left = split_line(data)
    assert (found, left) == (line, rest)


def at_load(session):
    session.expect(PASTES)
    time.sleep(0.2)


def at_prompt(session):
    session.expect("\x1b[?25h")
    session.type("draft")
    session.expect("draft")


def in_answer(session):
    session.expect("\x1b[?25h")
    session.type("go\r")
    session.expect(PASTES)
    time.sleep(0.1)


STAGES = [at_load, at_prompt, in_answer]
ENDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV]


@pytest.mark.parametrize("number", [*ENDS, signal.SIGKILL])
@pytest.mark.parametrize("stage", STAGES)
def test_the_terminal_is_restored_however_the_program_ends(begin, stage, number):
    with begin("--max-tokens", "1900") as session:
        stage(session)
        during = session.settings
        session.screen = PASTES
        os.kill(session.pid, number)
        assert abs(session.wait()) in (number, 128 + number)
        after = session.settings
        assert after[3] & ~during[3]  # echo is on again
        assert "Traceback" not in session.screen
        assert session.screen.rfind(NO_PASTES) > session.screen.rfind(PASTES)


def test_ctrl_c_while_loading_restores_the_terminal(begin):
    with begin() as session:
        session.type("typed ahead\x03")
        assert session.wait() == 130
        assert "Traceback" not in session.screen
        assert session.screen.rfind(NO_PASTES) > session.screen.rfind(PASTES)


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_z_stops_and_fg_goes_on(begin, stage, tmp_path):
    with begin("--max-tokens", "1900", shell=True) as session:
        session.expect("SH$ ")
        before = session.settings
        session.type(f"sh {tmp_path}/slow.sh\n")
        session.expect_quiet()
        stage(session)
        during = session.settings
        session.type("\x1a")
        session.expect("SH$ ")
        assert session.settings[:4] == before[:4]
        session.type("fg\n")
        session.expect_quiet()
        if stage is in_answer:
            time.sleep(0.3)
            session.type("draft\x03")
        session.expect("Send a message" if stage is at_load else "draft")
        if stage is at_prompt:
            assert session.settings == during
        session.type("\x15\x04")
        session.expect("SH$ ")
        assert session.settings[:4] == before[:4]


@pytest.mark.parametrize("stage", STAGES)
def test_a_program_stopped_from_outside_takes_the_terminal_again(begin, stage, tmp_path):
    with begin("--max-tokens", "1900", shell=True) as session:
        session.expect("SH$ ")
        session.type(f"sh {tmp_path}/slow.sh\n")
        session.expect_quiet()
        stage(session)
        (child,) = psutil.Process(session.pid).children()
        child.send_signal(signal.SIGSTOP)
        session.expect("SH$ ")
        session.type("stty sane; fg\n")
        session.expect_quiet()
        if stage is in_answer:
            time.sleep(0.3)
            session.type("draft\x03")
        session.expect("Send a message" if stage is at_load else "draft")
        session.type("\x15/?\r")
        session.expect("/bye")


@pytest.mark.parametrize("colour", ["1", ""])
def test_no_color_means_no_colour_and_empty_means_unset(begin, colour):
    with begin("--stats", NO_COLOR=colour) as session:
        session.type("hello\r")
        seen = session.expect(STATS)
        session.expect(PASTES)
        session.expect("\x1b[?25h")
        session.type("\x04")
        assert session.wait() == 0
        styled = re.search(r"\x1b\[(\d+;)*([34][0-8]|9\d)\b", seen + session.screen)
        assert bool(styled) == (not colour)


def test_ctrl_d_leaves_no_placeholder(begin):
    with begin() as session:
        before = session.expect("\x1b[?25h")
        session.type("\x04")
        assert session.wait() == 0
        session.screen = before + session.screen
        assert shown(session).rstrip().endswith(">>>")


@pytest.mark.parametrize(("columns", "rows"), [(80, 1), (5, 2), (1, 24), (3, 3), (1, 1)])
def test_a_tiny_terminal_will_do(begin, columns, rows):
    with begin("--max-tokens", "60", "--stats") as session:
        session.resize(columns, rows)
        for _ in range(2):
            session.type("hello\r")
            session.expect("first")
            session.resize(columns + 1, rows)
        time.sleep(0.2)
        session.type("\x04")
        assert session.wait() == 0
        assert "Traceback" not in session.screen
