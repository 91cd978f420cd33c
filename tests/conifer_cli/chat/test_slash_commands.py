"""The slash commands, with a tiny model that really answers."""

from __future__ import annotations

import math
import os
import signal
import struct
import threading
from pathlib import Path

import pytest

from conifer_cli.chat import clipboard
from conifer_cli.chat.slash_commands import COMMANDS, Leave, complete, is_command, run_command
from conifer_cli.chat.turn import send
from conifer_cli.interrupts import scope
from conifer_cli.terminal import console
from engine.errors import NumericError
from engine.gguf.reader import open_model
from support.program import templated
from support.talk import PLAIN, conversation

pytestmark = pytest.mark.process


@pytest.fixture
def talk(tmp_path):
    return conversation(templated(tmp_path, PLAIN))


def roles(talk):
    return [message["role"] for message in talk.messages]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/?", True),
        ("/clear", True),
        ("  /set think", True),
        ("/nosuch word", True),
        ("/etc/hosts", False),
        ("/Users/me/x.txt is what?", False),
        ("a /clear", False),
        ("", False),
        ("/", False),
    ],
)
def test_a_command_is_a_word_and_a_path_is_a_message(text, expected):
    assert is_command(text) == expected


def test_an_unknown_command_does_nothing_but_say_so(talk, capsys):
    run_command("/cls now", talk)
    assert capsys.readouterr().err == "Unknown command '/cls'. Type /? for help.\n"
    assert talk.messages == []


def test_every_command_is_in_the_help(talk, capsys):
    run_command("/?", talk)
    said = capsys.readouterr().err
    assert all(name in said for command in COMMANDS for name in command.names)


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_bye_leaves(talk, word):
    with pytest.raises(Leave):
        run_command(word, talk)


def test_undo_takes_back_a_message_and_its_answer(talk):
    send(talk, "one")
    first = list(talk.messages)
    send(talk, "two")
    assert roles(talk) == ["user", "assistant"] * 2
    run_command("/undo", talk)
    assert talk.messages == first
    run_command("/undo", talk)
    run_command("/undo", talk)  # reports that there is nothing
    assert talk.messages == []


def test_regen_answers_the_same_message_anew(tmp_path):
    talk = conversation(templated(tmp_path, PLAIN), temperature=2.0, seed=3, max_tokens=12)
    send(talk, "one")
    answers = {talk.messages[-1]["content"]}
    for _ in range(4):
        run_command("/regen", talk)
        assert roles(talk) == ["user", "assistant"]
        answers.add(talk.messages[-1]["content"])
    assert len(answers) > 2


def test_regen_says_that_the_answer_is_the_same(tmp_path, capsys):
    talk = conversation(templated(tmp_path, PLAIN), temperature=0.0, max_tokens=4)
    send(talk, "one")
    run_command("/regen", talk)
    assert "The answer is the same; /retry temperature 1" in capsys.readouterr().err
    talk.messages[-1]["content"] += " and more"
    run_command("/regen", talk)
    assert "the same" not in capsys.readouterr().err


def test_regen_that_fails_keeps_the_answer_and_speaks_of_no_message(talk, capsys, monkeypatch):
    def fail(*_, **__):
        raise NumericError("not finite")

    send(talk, "one")
    before = list(talk.messages)
    capsys.readouterr()
    monkeypatch.setattr(talk, "ask", fail)
    run_command("/regen", talk)
    said = capsys.readouterr().err
    assert "conifer: not finite\nThe previous answer was kept." in said and "not added" not in said
    assert talk.messages == before


def test_an_answer_that_is_stopped_before_it_begins_says_what_becomes_of_the_message(talk, capsys):
    talk.interrupts.handle(signal.SIGINT, None)  # recorded, since no answer has begun
    send(talk, "one")
    assert (
        capsys.readouterr().err == "Stopped before the answer began. Your message was not added.\n"
    )
    assert talk.messages == []
    send(talk, "one")
    before = list(talk.messages)
    talk.interrupts.handle(signal.SIGINT, None)
    run_command("/regen", talk)
    assert (
        capsys.readouterr().err
        == "Stopped before the answer began. The previous answer was kept.\n"
    )
    assert talk.messages == before


def test_regen_without_an_answer_says_so(talk, capsys):
    run_command("/regen", talk)
    assert "there is no answer to regenerate" in capsys.readouterr().err


def test_clear_keeps_the_system_message(tmp_path):
    talk = conversation(templated(tmp_path, PLAIN), system="be brief")
    send(talk, "one")
    run_command("/clear", talk)
    assert roles(talk) == ["system"]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("temperature 0.5", "temperature", 0.5),
        ("top_k 7", "top_k", 7),
        ("top_p 0.5", "top_p", 0.5),
        ("min_p 0.1", "min_p", 0.1),
        ("repeat_penalty 1.2", "repetition_penalty", 1.2),
        ("presence_penalty 0.5", "presence_penalty", 0.5),
        ("num_predict 9", "max_tokens", 9),
        ("seed 11", "seed", 11),
        ("stop END", "stop", ("END",)),
    ],
)
def test_set_parameter_changes_how_the_next_answers_are_drawn(talk, words, name, value):
    run_command(f"/set parameter {words}", talk)
    assert getattr(talk.session.settings, name) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("parameter temperature -1", "must be a number from 0 to 10, got '-1'"),
        ("parameter temperature nan", "number from 0 to 10"),
        ("parameter temperature warm", "number from 0 to 10, got 'warm'"),
        ("parameter top_p 2", "must be a number from 0.01 to 1, got '2'"),
        ("parameter seed -1", "must be a whole number from 0 to 18,446,744,073,709,551,615"),
        ("parameter num_predict 0", "must be a whole number from 1 to 16,777,216"),
        ("parameter num_ctx 99999999", "num_ctx must be from 1 to 16,777,216 tokens"),
        ("parameter num_ctx 16m", "num_ctx must be from 1 to 16,777,216 tokens"),
        ("parameter num_ctx 8k", "templated.gguf supports no more than 2,048 tokens."),
        ("parameter heat 1", "unknown parameter 'heat'"),
        ("parameter ?", "expected one of temperature, "),
        ("thinking loudly", "show, fold, hide"),
        ("think hard", "low, medium, high"),
        ("nosuch", "unknown setting"),
    ],
)
def test_a_setting_out_of_range_is_said_and_changes_nothing(talk, capsys, words, said):
    before = talk.session.settings, talk.session.options, talk.context
    run_command(f"/set {words}", talk)
    assert said in capsys.readouterr().err
    assert before == (talk.session.settings, talk.session.options, talk.context)


def test_another_context_reads_the_conversation_anew(talk):
    send(talk, "one")
    run_command("/set parameter num_ctx 512", talk)
    send(talk, "two")
    assert (talk.context, talk.session.cache.context) == (512, 512)
    assert roles(talk) == ["user", "assistant"] * 2


def test_set_system_takes_the_place_of_the_one_before(talk):
    for text in ("first", "second"):
        run_command(f"/set system {text}", talk)
        assert [m["content"] for m in talk.messages if m["role"] == "system"] == [text]
    run_command("/set system", talk)
    assert talk.messages == []


def test_only_a_pair_of_quotes_around_all_of_a_system_message_is_taken_away(talk):
    for typed, meant in (
        ('Say "hi"', 'Say "hi"'),
        ('"Say hi"', "Say hi"),
        ("'Say \"hi\"'", 'Say "hi"'),
        ('"""Say "hi"."""', 'Say "hi".'),
        ('"hi" and "bye"', '"hi" and "bye"'),
        ("it's", "it's"),
        ('"', '"'),
    ):
        run_command(f"/set system {typed}", talk)
        assert [message["content"] for message in talk.messages] == [meant]


@pytest.mark.parametrize("what", ["info", "system", "template", "parameters", "thinking"])
def test_show_shows(talk, capsys, what):
    run_command(f"/show {what}", talk)
    said = capsys.readouterr().err
    assert said.strip() and "conifer:" not in said
    without = {"info": "/show", "parameters": "/set parameter"}.get(what)
    if without:
        run_command(without, talk)
        assert capsys.readouterr().err == said


def test_a_conversation_is_saved_and_loaded(talk, tmp_path, capsys):
    send(talk, "one")
    kept = list(talk.messages)
    path = tmp_path / "a talk"
    run_command(f"/save {path}", talk)
    run_command("/clear", talk)
    run_command(f"/load {path}", talk)
    assert talk.messages == kept
    run_command(f"/save {path}", talk)  # over itself
    assert "conifer:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"conifer prompt 1\n", b"conifer conversation 1\n{}\n"]
)
def test_what_is_no_conversation_is_not_loaded(talk, tmp_path, capsys, data):
    path = tmp_path / "other"
    path.write_bytes(data)
    send(talk, "one")
    before = list(talk.messages)
    run_command(f"/load {path}", talk)
    assert "conifer: " in capsys.readouterr().err
    assert talk.messages == before


def test_a_file_of_another_kind_is_not_written_over(talk, tmp_path, capsys):
    path = tmp_path / "other"
    path.write_text("dear diary")
    run_command(f"/save {path}", talk)
    assert "refusing to overwrite" in capsys.readouterr().err
    assert path.read_text() == "dear diary"
    run_command(f"/save {tmp_path}/no/such/folder", talk)
    assert "does not exist" in capsys.readouterr().err


def test_a_name_that_no_file_can_have_ends_nothing(talk, capsys):
    send(talk, "one")
    before = list(talk.messages)
    names = ("x" * 300, "/x" * 3000, "a\0b", f"{__file__}/x")
    for command in ("/read", "/save", "/load", "/export", "/experts"):
        for name in names:
            capsys.readouterr()
            run_command(f"{command} {name}.json", talk)
            assert capsys.readouterr().err.startswith("conifer: "), (command, name)
    assert talk.messages == before and talk.staged == []


def test_a_model_file_that_was_removed_ends_nothing(talk, tmp_path, capsys):
    send(talk, "one")
    talk.session.report.paths[0].unlink()
    capsys.readouterr()
    run_command(f"/save {tmp_path}/talk", talk)
    assert capsys.readouterr().err.startswith("conifer: cannot read ")
    assert not (tmp_path / "talk").exists()


def test_what_is_loaded_brings_its_system_message(tmp_path, capsys):
    talk = conversation(templated(tmp_path, PLAIN), system="be brief")
    send(talk, "one")
    run_command(f"/save {tmp_path}/talk", talk)
    run_command("/set system be long", talk)
    run_command(f"/load {tmp_path}/talk", talk)
    capsys.readouterr()
    run_command("/show system", talk)
    assert capsys.readouterr().err == "be brief\n"
    run_command("/clear", talk)
    assert talk.messages == [{"role": "system", "content": "be brief"}]


def test_export_writes_markdown_once(talk, tmp_path, capsys):
    send(talk, "one")
    path = tmp_path / "talk.md"
    run_command(f"/export {path}", talk)
    assert path.read_text().startswith("## You\n\none\n\n## templated.gguf\n\n")
    capsys.readouterr()
    run_command(f"/export {path}", talk)
    assert "already exists" in capsys.readouterr().err


def test_export_writes_any_text_as_utf8(talk, tmp_path):
    talk.messages.append({"role": "user", "content": "caf\u00e9 \ud800"})
    path = tmp_path / "talk.md"
    run_command(f"/export {path}", talk)
    assert path.read_bytes() == "## You\n\ncaf\u00e9 ?\n\n".encode()
    assert path.stat().st_mode & 0o777 == 0o600


def test_words_after_a_file_may_be_longer_than_a_name(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("inside")
    question = "what is it about? " * 20
    run_command(f"/read notes.txt {question}", talk)
    assert talk.messages[0]["content"] == f"notes.txt:\ninside\n\n{question.strip()}"


def test_a_file_is_read_with_words_or_the_next_message(talk, tmp_path, capsys):
    path = tmp_path / "some file.txt"
    path.write_bytes(b"inside\xff\n")
    run_command(f"/read '{path}' what is it?", talk)
    assert talk.messages[0]["content"] == "some file.txt:\ninside\ufffd\n\nwhat is it?"
    assert "not valid UTF-8" in capsys.readouterr().err
    run_command(f"/read {path}", talk)
    assert len(talk.messages) == 2
    send(talk, "and now?")
    assert talk.messages[2]["content"] == "some file.txt:\ninside\ufffd\n\nand now?"


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_a_file_without_an_end_is_not_read(talk, tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    run_command(f"/read {path} what is it?", talk)
    assert capsys.readouterr().err == f"conifer: cannot read {path}: not a regular file\n"
    assert talk.messages == [] and talk.staged == []


def test_ctrl_c_ends_the_wait_for_a_pipes_reader(talk, tmp_path, capsys):
    os.mkfifo(path := tmp_path / "pipe")
    with scope() as talk.interrupts:
        ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        ctrl_c.start()
        run_command(f"/export {path}", talk)
        ctrl_c.join()
    assert capsys.readouterr().err == f"conifer: stopped; {path} was not written\n"


def test_ctrl_c_at_the_question_whether_to_replace_a_file_keeps_it(
    talk, tmp_path, capsys, monkeypatch
):
    def struck(*_, **__):
        signal.raise_signal(signal.SIGINT)
        return True

    (path := tmp_path / "talk.md").write_text("dear diary")
    monkeypatch.setattr(console, "can_ask", lambda: True)
    monkeypatch.setattr(console, "confirm", struck)
    with scope() as talk.interrupts:
        run_command(f"/export {path}", talk)
    assert capsys.readouterr().err == f"conifer: stopped; {path} was not written\n"
    assert path.read_text() == "dear diary"


@pytest.mark.parametrize("rest", ["", "/nosuch/file", "~nosuchuser/x", "/"])
def test_a_file_that_cannot_be_read_is_said(talk, capsys, rest):
    run_command(f"/read {rest}", talk)
    assert capsys.readouterr().err.startswith("conifer: ")


def test_another_model_goes_on_with_the_same_messages(talk, tmp_path, capsys):
    send(talk, "one")
    folder = tmp_path / "other"
    folder.mkdir()
    run_command(f"/model {templated(folder, PLAIN)}", talk)
    send(talk, "two")
    assert roles(talk) == ["user", "assistant"] * 2
    for name in ("no-such-model-at-all", str(tmp_path / "missing.gguf")):
        run_command(f"/model {name}", talk)
        assert "conifer:" in capsys.readouterr().err
    send(talk, "three")  # the previous model still answers
    assert roles(talk) == ["user", "assistant"] * 3


def test_stats_count_what_came_from_the_cache(talk, capsys):
    run_command("/stats", talk)
    send(talk, "one")
    send(talk, "two")
    run_command("/stats", talk)
    said = capsys.readouterr().err
    assert "No answers yet." in said
    assert "2 answers;" in said and "time to first token:" in said and "ctx " in said
    assert talk.totals.cached > 0


def test_copy_without_a_program_asks_the_terminal(talk, capsys, monkeypatch):
    monkeypatch.setattr(clipboard, "PROGRAMS", ())
    run_command("/copy", talk)
    send(talk, "one")
    capsys.readouterr()
    run_command("/copy", talk)
    out, err = capsys.readouterr()
    assert out.startswith("\x1b]52;c;") and out.endswith("\x07")
    assert "OSC 52, if the terminal" in err


def test_copy_takes_the_next_way_where_one_fails(talk, tmp_path, capsys, monkeypatch):
    programs = {
        "broken": "#!/no/such/interpreter\n",
        "hanging": "#!/bin/sh\nexec sleep 60\n",
        "failing": "#!/bin/sh\nexit 1\n",
        "working": "#!/bin/sh\nexec cat > copied\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(clipboard, "PROGRAMS", tuple(("PATH", (name,)) for name in programs))
    monkeypatch.setattr(clipboard, "TIMEOUT_S", 1.0)
    send(talk, "one")
    run_command("/copy", talk)
    assert "characters with working." in capsys.readouterr().err
    assert (tmp_path / "copied").read_bytes() == talk.messages[-1]["content"].encode()


@pytest.mark.parametrize(
    ("text", "start", "some"),
    [
        ("/he", 0, ["/help "]),
        ("/s", 0, ["/set ", "/show ", "/save ", "/stats "]),
        ("/set th", 5, ["think", "thinking"]),
        ("/set parameter top_", 15, ["top_k", "top_p"]),
        ("/set format ", 12, ["json", "text"]),
        ("/show in", 6, ["info"]),
        ("/model qwen3-30b", 7, ["qwen3-30b-a3b"]),
        ("words and", 6, []),
    ],
)
def test_what_may_follow_is_known(text, start, some):
    at, words = complete(text)
    assert at == start and set(some) <= set(words) and bool(some) == bool(words)


def test_paths_are_completed(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a file.txt").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert complete("/read ")[1] == ["a file.txt", "folder/"]
    assert complete("/read a f") == (6, ["a file.txt"])
    assert complete(f"/save {tmp_path}/.h")[1] == [f"{tmp_path}/.hidden"]
    assert complete("look at ./fo") == (8, ["./folder/"])
    assert complete("/read /nosuchfolder/x")[1] == []


def test_a_model_that_computes_nonsense_does_not_end_the_conversation(tmp_path, capsys):
    path = Path(templated(tmp_path, PLAIN))
    norm = open_model(path).tensors["output_norm.weight"]
    data = bytearray(path.read_bytes())
    data[norm.offset : norm.offset + 4] = struct.pack("<f", math.nan)
    path.write_bytes(data)
    talk = conversation(path)
    send(talk, "one")
    said = capsys.readouterr()
    assert "are not finite" in said.err and "Your message was not added." in said.err
    assert (talk.messages, said.out) == ([], "")
    run_command("/stats", talk)
    assert "No answers yet." in capsys.readouterr().err


def test_a_folder_that_has_gone_ends_nothing(tmp_path, capsys):
    folder = tmp_path / "spreads"
    folder.mkdir()
    talk = conversation(templated(tmp_path, PLAIN), experts_out=folder / "spread.json")
    folder.rmdir()
    send(talk, "one")
    assert "does not exist" in capsys.readouterr().err
    assert roles(talk) == ["user", "assistant"]


def test_fold_shows_thinking_that_was_hidden(talk, capsys):
    run_command("/set thinking hide", talk)
    talk.last_thinking = "two and two"
    capsys.readouterr()
    talk.toggle_fold()
    assert capsys.readouterr().err == "Thinking is now shown.\ntwo and two\n"
    assert talk.session.options.show_thinking and not talk.folds
    talk.toggle_fold()
    assert talk.folds


def test_fold_shows_what_was_thought_last(talk, capsys):
    talk.last_thinking = "two and two\x1b[31m"
    talk.toggle_fold()
    assert talk.folds and "two and" not in capsys.readouterr().err
    talk.toggle_fold()
    assert capsys.readouterr().err == "Thinking is now shown.\ntwo and two\n"
