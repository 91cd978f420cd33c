"""Typing messages into the real program, with its real editor, on a pseudo-terminal."""

from __future__ import annotations

import json
import re
import time
from types import SimpleNamespace

import pytest

from conifer_cli.chat import line_editor
from conifer_cli.chat.line_editor import edit_externally, is_closed, read_history, unquoted
from support.program import command, environment, templated
from support.talk import PLAIN
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

ENTER, LINE, PASTE, PASTED = "\r", "\x1b\r", "\x1b[200~", "\x1b[201~"
READY = "\x1b[?25h"  # the editor shows the cursor while it waits for input


@pytest.fixture
def begin(tmp_path):
    """Start a conversation. Every session uses the same history folder."""

    def start(*arguments, **more):
        words = [*command(), "run", templated(tmp_path, PLAIN), "--temperature", "0"]
        return TerminalSession(
            [*words, "--max-tokens", "4", *arguments],
            environment(tmp_path, **{"TERM": "xterm-256color", **more}),
        )

    return start


@pytest.fixture
def kept(tmp_path):
    """Return the messages in the history file."""
    return lambda: read_history(tmp_path / "conifer" / "history")


def ready(session):
    session.expect("\x1b[?2004h")
    session.expect(READY)


# (keys, resulting message)
TYPED = [
    (["hello", ENTER], "hello"),
    (["one", LINE, "two", ENTER], "one\ntwo"),
    (["one\ntwo", ENTER], "one\ntwo"),  # Ctrl-J
    (['"""one', ENTER, "two", ENTER, '"""', ENTER], '"""one\ntwo\n"""'),
    ([f"{PASTE}one\ntwo\n\nthree{PASTED}", ENTER], "one\ntwo\n\nthree"),
    ([f"{PASTE}one\nno{PASTED}", "\x15", "kept", ENTER], "one\nkept"),  # Ctrl-U
    (["abc", "\x01", "x", "\x05", "z", ENTER], "xabcz"),  # Ctrl-A, Ctrl-E
    (["gone", "\x03", "kept", ENTER], "kept"),  # Ctrl-C discards a message
    (["caf\u00e9 \u65e5\u672c", ENTER], "caf\u00e9 \u65e5\u672c"),
    (["\x1b[A", "!", ENTER], "caf\u00e9 \u65e5\u672c!"),  # Up
    (["/etc/hosts is what?", ENTER], "/etc/hosts is what?"),
    (["not \udcff UTF-8", ENTER], "not \ufffd UTF-8"),
]


def test_keys_make_messages(begin, kept):
    with begin("--stats") as session:
        for keys, message in TYPED:
            ready(session)
            for key in keys:
                session.type(key)
                time.sleep(0.05)
                if key == "\x03":
                    ready(session)
            session.expect("time to first token:")
            assert kept()[-1] == message
    assert kept() == [message for _, message in TYPED]


def test_history_comes_back_in_the_next_conversation(begin, kept):
    for _ in range(2):
        with begin() as session:
            ready(session)
            session.type("\x1b[A" if kept() else "first words")
            time.sleep(0.2)
            session.type(ENTER)
            ready(session)
            session.type("\x04")
            assert session.wait() == 0
    assert kept() == ["first words"] * 2


def test_nothing_is_kept_for_who_does_not_want_it(begin, kept):
    with begin(CONIFER_NOHISTORY="1") as session:
        ready(session)
        session.type("secret" + ENTER)
        ready(session)
    with begin() as session:
        ready(session)
        session.type("/set nohistory" + ENTER)
        ready(session)
        session.type("secret" + ENTER)
        ready(session)
    assert kept() == ["/set nohistory"]


def test_what_cannot_be_kept_is_not_promised(begin):
    with begin(CONIFER_NOHISTORY="1") as session:
        ready(session)
        session.type("/set history" + ENTER)
        session.expect("Message history: off.")
    with begin(TERM="dumb") as session:
        session.expect(">>> ")
        session.type("/set history\n")
        session.expect("Message history: off.")


def test_ctrl_g_opens_the_editor_of_choice(begin, kept, tmp_path):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s and\\nmore\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    with begin("--stats", VISUAL=str(editor)) as session:
        ready(session)
        session.type("draft\x07")
        session.expect("more")
        session.type(ENTER)
        session.expect("time to first token:")
    assert kept() == ["draft and\nmore"]


def test_ctrl_c_in_the_editor_of_choice_stops_no_answer(begin, tmp_path):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nkill -INT $PPID\nsleep 0.2\nprintf "from there" > "$1"\n')
    editor.chmod(0o755)
    with begin("--stats", VISUAL=str(editor)) as session:
        ready(session)
        session.type("\x07")
        session.expect("from there")
        session.type(ENTER)
        session.expect("time to first token:")


def test_tab_completes_commands_paths_and_models(begin, tmp_path):
    (tmp_path / "a-long-name.txt").write_text("x")
    with begin() as session:
        for typed, shown in (
            ("/und\t", "nothing to undo"),
            (f"/read {tmp_path}/a-lo\t", "a-long-name.txt (1 character)"),
            ("/model smollm2-13\t-no", "smollm2-135m-no"),
        ):
            ready(session)
            session.type(typed + ENTER)
            session.expect(shown)


def test_rows_of_a_message_have_dots_only_where_enter_was_pressed(begin):
    with begin() as session:
        ready(session)
        session.type("a" * 100 + "\x0abb")  # 24 of them are on a second row
        assert session.expect("bb").count("... ") == 1


def test_before_a_name_is_typed_only_the_models_here_are_offered(monkeypatch):
    about = {"repository": "a/b", "name": "c.gguf", "quant": None}
    here = [SimpleNamespace(model_id=each, **about) for each in ("gpt-oss-20b", None)]
    monkeypatch.setattr(line_editor, "open_store", lambda: SimpleNamespace(installed=lambda: here))
    assert line_editor.complete_model("") == ["gpt-oss-20b", "hf:a/b/c.gguf"]
    assert line_editor.complete_model("hf:a") == ["hf:a/b/c.gguf"]
    assert line_editor.complete_model("gpt-oss") == ["gpt-oss-20b", "gpt-oss-120b"]
    here.clear()
    assert "qwen3-30b-a3b" in line_editor.complete_model("")


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave_and_ctrl_d_leaves(begin):
    with begin() as session:
        before = session.settings
        ready(session)
        session.type("\x03")
        session.expect("Use Ctrl-D or /bye to exit.")
        ready(session)
        session.type("\x04")
        assert session.wait() == 0
        assert session.settings == before
        assert "Traceback" not in session.screen


@pytest.mark.parametrize(("signal", "code"), [(15, 143), (1, 129)])
def test_a_signal_leaves_the_terminal_as_it_was(begin, signal, code):
    import os

    with begin() as session:
        before = session.settings
        ready(session)
        os.kill(session.pid, signal)
        assert session.wait() == code
        assert session.settings == before
        assert "Traceback" not in session.screen


def test_what_is_typed_while_an_answer_runs_is_the_next_message(begin, kept):
    with begin("--max-tokens", "1900") as session:
        before = session.settings
        ready(session)
        session.type("one" + ENTER)
        session.expect("\x1b[?2004l")
        time.sleep(0.1)  # the answer controls the keyboard for about a second
        session.type("two")
        session.type("\x03")
        ready(session)
        session.type(ENTER)
        session.expect("\x1b[?2004l")
        time.sleep(0.2)
        session.type("\x03")
        ready(session)
        session.type("\x04")
        assert session.wait() == 0
        assert session.settings == before
    assert kept() == ["one", "two"]


def test_the_meter_says_how_full_the_context_is(begin):
    with begin() as session:
        session.expect("ctx 0/2")
        session.expect(READY)
        session.type("hello" + ENTER)
        session.expect("\x1b[?2004h")
        assert re.search(r"ctx [1-9]\d*/2", session.expect(READY))


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_an_answer_without_styles_has_no_escape_sequence(begin, more):
    with begin("--max-tokens", "30", **more) as session:
        if more["TERM"] == "dumb":
            session.expect(">>> ")
            session.type("hello\n")
            assert "\x1b" not in session.expect(">>> ")
        else:
            ready(session)
            session.type("hello" + ENTER)
            session.expect("\x1b[?2004l")
            assert "\x1b" not in session.expect("\x1b[?2004h")


@pytest.mark.parametrize("columns", ["1", "20", "10000"])
def test_any_width_will_do(begin, columns):
    with begin("--max-tokens", "30", COLUMNS=columns) as session:
        ready(session)
        session.type("hello" + ENTER)
        ready(session)
        session.type("\x04")
        assert session.wait() == 0


@pytest.mark.parametrize(
    ("text", "complete", "message"),
    [
        ("plain", True, "plain"),
        ('"""open', False, '"""open'),
        ('"""a\nb"""', True, "a\nb"),
        ('"""\na\n"""\n', True, "a"),
        ('"""', False, '"""'),
    ],
)
def test_three_quotes_hold_several_lines(text, complete, message):
    assert (is_closed(text), unquoted(text)) == (complete, message)


@pytest.mark.parametrize("editor", ["false", "/no/such/editor", "'unclosed"])
def test_an_editor_that_fails_leaves_the_message(monkeypatch, editor):
    monkeypatch.setenv("VISUAL", editor)
    assert edit_externally("draft") is None


def test_what_is_kept_is_one_line_of_json_each(begin, kept, tmp_path):
    with begin() as session:
        ready(session)
        session.type(f"{PASTE}a\nb{PASTED}" + ENTER)
        ready(session)
    lines = (tmp_path / "conifer" / "history").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"format": 1}, "a\nb"]
