"""A conversation that outgrows its context: the user is told beforehand and chooses."""

from __future__ import annotations

import signal

import pytest

from conifer_cli.chat.context_limit import SUMMARY_REQUEST
from conifer_cli.chat.turn import send
from engine.errors import NumericError
from support.program import templated
from support.talk import PLAIN, conversation

pytestmark = pytest.mark.process

WORDS = "several words that are said once more "


@pytest.fixture
def begin(tmp_path):
    return lambda *replies, **options: conversation(
        templated(tmp_path, PLAIN), *replies, context=options.pop("context", 256), **options
    )


def fill(talk, turns):
    for _ in range(turns):
        send(talk, WORDS)


def test_the_turns_grow_until_there_is_a_question_and_cancel_changes_nothing(begin, capsys):
    talk = begin("c")
    while not talk.editor.asked:
        before = [dict(message) for message in talk.messages]
        send(talk, WORDS)
    assert talk.messages == before
    said = capsys.readouterr().err
    assert "but the context holds only 256." in said
    assert "Your message was not added." in said
    for choice in ("[g] grow", "[s] summarise", "[d] drop", "[c] cancel"):
        assert choice in talk.editor.asked[0]


def test_growing_keeps_every_message(begin):
    talk = begin("g")
    while not talk.editor.asked:
        send(talk, WORDS)
    assert talk.context == 512 == talk.session.cache.context
    assert all(m["content"] == WORDS for m in talk.messages if m["role"] == "user")
    before = len(talk.messages)
    send(talk, WORDS)
    assert len(talk.messages) == before + 2


def test_dropping_takes_the_oldest_turns_and_says_how_many(begin, capsys):
    talk = begin("d", system="be brief")
    count = 0
    while not talk.editor.asked:
        send(talk, f"{count} {WORDS}")
        count += 1
    users = [m["content"] for m in talk.messages if m["role"] == "user"]
    dropped = count - len(users)
    assert dropped > 0 and f"{dropped} turns dropped, oldest first." in capsys.readouterr().err
    assert users == [f"{n} {WORDS}" for n in range(dropped, count)]
    assert talk.messages[0] == {"role": "system", "content": "be brief"}
    assert talk.messages[1]["role"] == "user" and talk.messages[-1]["role"] == "assistant"


def test_a_summary_by_the_model_takes_the_place_of_what_was_said(begin):
    talk = begin("s", system="be brief", context=640)
    while not talk.editor.asked:
        send(talk, WORDS)
    roles = [m["role"] for m in talk.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert talk.messages[1]["content"] == SUMMARY_REQUEST
    assert talk.messages[2]["content"].strip() and talk.messages[3]["content"] == WORDS


@pytest.mark.parametrize("fault", ["stopped", "failed", "empty"])
def test_a_summary_that_fails_leaves_everything_as_it_was(begin, capsys, monkeypatch, fault):
    talk = begin(system="be brief", context=640)
    asking = talk.editor.question

    def ask(tokens, **settings):
        if fault == "failed":
            raise NumericError("not finite")
        reply, *rest = answering(tokens, **settings)
        reply._text[:] = [" \n"]
        return reply, *rest

    def question(text):
        asking(text)
        if fault == "stopped":
            talk.interrupts.handle(signal.SIGINT, None)
        else:
            monkeypatch.setattr(talk, "ask", ask)
        return "s"

    answering = talk.ask
    talk.editor.replies.append("s")
    monkeypatch.setattr(talk.editor, "question", question)
    while not talk.editor.asked:
        before = [dict(message) for message in talk.messages]
        send(talk, WORDS)
    said = capsys.readouterr().err
    assert "left out of the summary" in said
    assert "Your message was not added." in said
    assert talk.messages == before


def test_an_unknown_reply_asks_again(begin):
    talk = begin("x", "?", "c")
    send(talk, WORDS * 40)
    assert len(talk.editor.asked) == 3 and talk.messages == []


def test_what_does_not_fit_by_itself_can_only_grow_or_stop(begin):
    talk = begin("")
    send(talk, WORDS * 40)
    assert "[g]" in talk.editor.asked[0] and "[d]" not in talk.editor.asked[0]
    assert talk.messages == []


def test_what_fits_nowhere_can_only_stop(begin):
    talk = begin("g", "c")
    send(talk, WORDS * 1000)
    assert talk.editor.asked == ["[c] cancel: "] * 2


def test_an_answer_that_meets_the_end_is_kept_and_that_is_said(begin, capsys):
    talk = begin(max_tokens=None, context=64)
    send(talk, "hi")
    assert "The 64-token context is full, so the answer was cut off." in capsys.readouterr().err
    assert talk.messages[-1]["role"] == "assistant"
    assert talk.session.cache.length <= 64
