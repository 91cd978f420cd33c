"""The meter shows what the next prompt will hold, whatever has been done to the conversation."""

from __future__ import annotations

import signal

import pytest

from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.slash_commands import run_command
from conifer_cli.chat.turn import send
from conifer_cli.interrupts import Interrupts
from engine.errors import TemplateError
from support.program import templated
from support.talk import PLAIN, conversation

pytestmark = pytest.mark.process

# Like Qwen's, it leaves out the thinking of every answer before the last question.
FORGETFUL = (
    "{% for m in messages %}<|bos|>{{ m.role }}: "
    "{% if m.reasoning_content and loop.last %}{{ m.reasoning_content }}{% endif %}"
    "{{ m.content }}{% endfor %}<|bos|>assistant: "
)


@pytest.fixture
def talk(tmp_path):
    return conversation(templated(tmp_path, PLAIN))


def asked(talk, text="and?"):
    """Return the length of the prompt that `text` really makes, less the text itself."""
    words = talk.session.model.tokenizer.encode(text)
    return len(talk.session.encode([*talk.messages, talk.compose(text)])) - len(words)


def test_it_follows_every_change(talk, tmp_path, capsys):
    assert talk.meter() == "ctx 0/2k"
    send(talk, "one")
    after_one = talk.used()
    assert after_one == asked(talk) > 0
    send(talk, "two")
    after_two = talk.used()
    assert after_two > after_one
    run_command("/undo", talk)
    assert talk.used() == after_one
    run_command("/undo", talk)
    assert talk.meter() == "ctx 0/2k"
    send(talk, "one")
    run_command(f"/save {tmp_path}/talk", talk)
    run_command("/clear", talk)
    assert talk.meter() == "ctx 0/2k"
    run_command(f"/load {tmp_path}/talk", talk)
    assert talk.used() == after_one


def test_a_system_message_counts(talk):
    run_command("/set system be brief and to the point", talk)
    with_system = talk.used()
    assert with_system == asked(talk) > 0
    send(talk, "one")
    run_command("/clear", talk)
    assert talk.used() == with_system
    run_command("/set system", talk)
    assert talk.used() == 0


def test_a_file_that_waits_counts(talk, tmp_path):
    (tmp_path / "notes.txt").write_text("some words " * 20)
    run_command(f"/read {tmp_path}/notes.txt", talk)
    assert talk.used() > 20
    run_command("/clear", talk)
    assert talk.used() == 0


def test_another_answer_counts_as_itself(talk):
    send(talk, "one")
    run_command("/set parameter num_predict 12", talk)
    before = talk.used()
    run_command("/regen", talk)
    assert talk.used() == asked(talk) != before


def test_an_answer_that_was_stopped_counts_as_far_as_it_came(talk, monkeypatch):
    talk.interrupts.handle(signal.SIGINT, None)
    send(talk, "one")  # stopped before it began
    assert talk.used() == 0
    run_command("/set parameter num_predict 200", talk)
    printer = talk._printer

    def stop_at_once(*arguments):
        made = printer(*arguments)
        push = made.push
        made.push = lambda text: (push(text), talk.interrupts.handle(signal.SIGINT, None))
        return made

    monkeypatch.setattr(talk, "_printer", stop_at_once)
    send(talk, "one")
    assert talk.messages[-1]["role"] == "assistant"
    assert talk.used() == asked(talk) < 150


def test_another_model_goes_on_with_the_same_messages(talk, tmp_path):
    send(talk, "one")
    before = talk.used()
    folder = tmp_path / "other"
    folder.mkdir()
    run_command(f"/model {templated(folder, 'Some more words. ' + PLAIN)}", talk)
    assert talk.used() == asked(talk) > before


def test_a_resumed_conversation_starts_with_what_it_holds(talk, tmp_path):
    send(talk, "one")
    before = talk.used()
    run_command(f"/save {tmp_path}/talk", talk)
    other = conversation(str(talk.session.report.paths[0]))
    messages = other.session.resume(tmp_path / "talk")
    resumed = Conversation(other.session, messages, Interrupts())
    assert resumed.used() == before
    run_command("/undo", resumed)
    assert resumed.used() == 0


def test_thinking_that_the_template_leaves_out_does_not_count(tmp_path):
    talk = conversation(templated(tmp_path, FORGETFUL))
    send(talk, "one")
    before = talk.used()
    talk.messages[-1] = {**talk.messages[-1], "reasoning_content": "well " * 50}
    assert talk.used() == before == asked(talk)


def test_a_model_without_a_template_keeps_nothing():
    from support.program import MODELS

    talk = conversation(MODELS / "llama" / "model.gguf")
    send(talk, "one")
    assert talk.used() == 0


def test_it_is_counted_once_for_each_change(talk, monkeypatch):
    send(talk, "one")
    talk.meter()

    def fail(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(talk.session, "encode", fail)
    assert talk.meter() == talk.meter()


def test_a_template_that_refuses_the_conversation_ends_nothing(talk, monkeypatch):
    def refuse(*_):
        raise TemplateError("no")

    send(talk, "one")
    monkeypatch.setattr(talk.session, "encode", refuse)
    assert talk.meter() == "ctx ?/2k"


@pytest.mark.parametrize("command", ["/clear", "/load {talk}", "/model {path}"])
def test_stats_count_from_the_beginning_of_the_conversation(talk, tmp_path, capsys, command):
    send(talk, "one")
    run_command("/stats", talk)
    assert "total: 1 answer; " in capsys.readouterr().err
    run_command(f"/save {tmp_path}/talk", talk)
    path = talk.session.report.paths[0]
    run_command(command.format(talk=tmp_path / "talk", path=path), talk)
    capsys.readouterr()
    run_command("/stats", talk)
    assert capsys.readouterr().err.startswith("No answers yet.\nctx ")
