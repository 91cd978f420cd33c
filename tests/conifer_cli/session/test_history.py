"""Past conversations: kept, found, continued, removed, and never in the way."""

from __future__ import annotations

import json
import stat
import sys

import pytest

from conifer_cli import app, errors
from conifer_cli.session import history
from support.program import MODELS, command, environment, run_conifer, templated
from support.talk import PLAIN
from support.terminal_session import TerminalSession

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.delenv("CONIFER_NOHISTORY", raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    return tmp_path


def talk(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


def test_a_conversation_is_kept_once_and_only_for_its_user(home):
    first = history.keep(None, "m", talk("Hello,\n  you", "Hi."))
    other = history.keep(None, "m", talk("Bread?", "Flour."))
    assert history.keep(first, "m", talk("Hello,\n  you", "Hi.", "More", "Yes.")) == first
    assert [past.id for past in history.latest(5)] in ([first, other], [other, first])
    past = history.get(first)
    assert (past.title, len(past.messages), past.model) == ("Hello, you", 4, "m")
    assert stat.S_IMODE((home / "conversations.db").stat().st_mode) == 0o600


def test_words_find_the_conversations_that_have_all_of_them():
    bread = history.keep(None, "m", talk("How do I bake bread?", "With sourdough."))
    history.keep(None, "m", talk("How do I bake cake?", "With sugar."))
    assert [past.id for past in history.search("bake SOUR", 9)] == [bread]
    assert len(history.search("bake", 9)) == 2
    assert history.search('"; DROP TABLE texts', 9) == []
    history.remove([bread])
    assert history.search("sourdough", 9) == []


def test_the_oldest_are_removed_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(history, "MAX_CONVERSATIONS", 3)
    numbers = [history.keep(None, "m", talk(f"question {n}", "a")) for n in range(6)]
    assert sorted(past.id for past in history.latest(9)) == numbers[-3:]
    assert len(history.search("question", 9)) == 3


@pytest.mark.parametrize("data", [b"junk" * 5000, b"", b"SQLite format 3\0" + bytes(500)])
def test_a_damaged_database_stops_nothing(home, capsys, data):
    (home / "conversations.db").write_bytes(data)
    kept = history.keep(None, "m", talk("a", "b"))
    assert (kept is None) == bool(data)
    assert len(history.latest(5)) == (0 if data else 1)


def test_rows_of_another_shape_are_passed_over(home):
    history.keep(None, "m", talk("a", "b"))
    with history._opened() as base:
        base.execute('UPDATE conversations SET messages = \'[{"role": "wizard"}]\'')
    assert history.latest(5) == []


def test_nothing_is_kept_of_a_conversation_without_a_message():
    assert history.keep(None, "m", [{"role": "system", "content": "x"}]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chats",), "1  20"),
        (("chats", "search", "flour"), "Bread?"),
        (("chats", "show", "1"), "You:\nBread?\n\nAnswer:\nFlour."),
        (("chats", "1"), "You:\nBread?\n\nAnswer:\nFlour."),
        (("chats", "export", "1"), "## You\n\nBread?"),
        (("chats", "rm", "1", "--yes"), "1 conversation removed"),
        (("chats", "rm", "--all", "--yes"), "1 conversation removed"),
    ],
)
def test_chats_lists_searches_shows_exports_and_removes(capsys, arguments, said):
    history.keep(None, "m", talk("Bread?", "Flour."))
    assert app._outcome(list(arguments)) == 0
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert len(history.latest(5)) == (arguments[1:2] != ("rm",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chats", "show", "7"), "there is no conversation 7"),
        (("chats", "7"), "there is no conversation 7"),
        (("chats", "one"), "Did you mean `conifer chats search one`?"),
        (("chats", "serch", "one"), "Did you mean `conifer chats search`?"),
        (("chats", "show"), "expected a conversation's ID"),
        (("chats", "rm", "x"), "'x' is not a conversation's ID"),
        (("chats", "rm", "1"), "requires confirmation"),
        (("run", "--continue", "-p", "and?"), "there is no conversation to continue"),
        (("run", "--continue", "--resume", "f"), "cannot be used together"),
    ],
)
def test_what_is_not_there_exits_2(capsys, arguments, said):
    if arguments[1:2] == ("rm",):
        history.keep(None, "m", talk("Bread?", "Flour."))
    assert app._outcome(list(arguments)) == errors.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.process
def test_an_answer_is_kept_with_log_and_goes_on_with_continue(tmp_path):
    path = templated(tmp_path, PLAIN)
    asked = ("--max-tokens", "3", "--temperature", "0")
    where = {"home": tmp_path}
    assert run_conifer("run", path, "first", *asked, **where).returncode == 0
    assert run_conifer("chats", "--json", **where).stdout == b"[]\n"
    assert run_conifer("run", path, "first", "--log", *asked, **where).returncode == 0
    done = run_conifer("run", "--continue", "-p", "second", *asked, **where)
    assert done.returncode == 0, done.stderr
    [past] = json.loads(run_conifer("chats", "--json", **where).stdout)
    assert [m["content"] for m in past["messages"] if m["role"] == "user"] == ["first", "second"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("more", "typed", "kept"),
    [
        ({}, (), 1),
        ({"CONIFER_NOHISTORY": "1"}, (), 0),
        ({"CONIFER_HISTORY": "false"}, (), 0),
        ({}, ("/set nohistory",), 0),
    ],
)
def test_a_chat_is_kept_unless_the_user_opts_out(tmp_path, more, typed, kept):
    path = templated(tmp_path, PLAIN)
    arguments = [*command(), "run", path, "--max-tokens", "3"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb", **more)) as session:
        for line in (*typed, "hello", "/bye"):
            session.expect(">>> ")
            session.type(f"{line}\n")
        assert session.wait() == 0
    found = json.loads(run_conifer("chats", "--json", home=tmp_path).stdout)
    assert len(found) == kept
    if kept:
        with TerminalSession(
            [*command(), "run", "--continue"], environment(tmp_path, TERM="dumb")
        ) as session:
            session.expect(">>> hello")
            session.expect(">>> ")
            session.type("/bye\n")
            assert session.wait() == 0
