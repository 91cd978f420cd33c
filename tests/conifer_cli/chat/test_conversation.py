"""The state of a conversation: its context, its messages and its model."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from conifer_cli.acquire import locate
from conifer_cli.chat import conversation as module
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.slash_commands import run_command
from conifer_cli.chat.turn import send
from conifer_cli.commands.run import answer_once
from conifer_cli.interrupts import Ended, Interrupts
from conifer_cli.run_options import RunOptions
from conifer_cli.session.open import open_session
from support.program import MODELS, templated
from support.talk import PLAIN, conversation

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
LONG = "several words that are said once more " * 10


@pytest.fixture
def talk(tmp_path):
    return conversation(templated(tmp_path, PLAIN))


def narrow(path):
    """Return a session with a growable context that LONG fills, and its size in tokens."""
    session = open_session(locate(path), RunOptions(max_tokens=4))
    size = len(session.encode([{"role": "user", "content": LONG}]))
    session.report = replace(session.report, verdict=replace(session.report.verdict, context=size))
    return session, size


def test_a_conversation_knows_that_its_context_grew(tmp_path, capsys):
    session, size = narrow(templated(tmp_path, PLAIN))
    messages = session.initial_messages()
    answer_once(session, messages, LONG)
    talk = Conversation(session, messages, Interrupts())
    assert talk.context == session.cache.context == 2 * size
    capsys.readouterr()
    send(talk, "and?")
    assert capsys.readouterr().err == ""
    assert len(talk.messages) == 4


def test_a_conversation_that_was_loaded_has_the_context_that_it_needs(talk, tmp_path):
    send(talk, LONG)
    run_command(f"/save {tmp_path}/talk", talk)
    session, size = narrow(str(talk.session.report.paths[0]))
    other = Conversation(session, session.initial_messages(), Interrupts())
    assert other.context == size
    run_command(f"/load {tmp_path}/talk", other)
    assert other.context == session.cache.context == 2 * size


def test_ctrl_c_breaks_off_the_opening_of_another_model(talk, capsys, monkeypatch):
    def press(*_):
        talk.interrupts.handle(signal.SIGINT, None)

    send(talk, "one")
    capsys.readouterr()
    monkeypatch.setattr("conifer_cli.chat.conversation.open_session", press)
    run_command(f"/model {QWEN}", talk)
    name = talk.session.report.name
    assert capsys.readouterr().err == f"conifer: cancelled; still using {name}\n"
    send(talk, "two")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_a_signal_while_another_model_is_opened_loads_none_again(talk, monkeypatch):
    def end(*_):
        raise Ended(signal.SIGTERM)

    monkeypatch.setattr("conifer_cli.chat.conversation.open_session", end)
    monkeypatch.setattr(module, "Session", None)
    with pytest.raises(Ended):
        run_command(f"/model {QWEN}", talk)


def test_a_signal_in_an_answer_takes_the_message_back(talk, monkeypatch):
    def end(*_):
        raise Ended(signal.SIGHUP)

    send(talk, "one")
    before = list(talk.messages)
    monkeypatch.setattr(talk, "ask", end)
    with pytest.raises(Ended):
        send(talk, "two")
    assert talk.messages == before
    with pytest.raises(Ended):
        run_command("/regen", talk)
    assert talk.messages == before
