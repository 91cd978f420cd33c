"""Whatever is typed wrong in a conversation gets one or two lines, and nothing changes."""

from __future__ import annotations

import pytest

from conifer_cli.chat.settings import PARAMETERS, SETTINGS
from conifer_cli.chat.slash_commands import COMMANDS, Leave, run_command
from conifer_cli.chat.turn import send
from support.program import templated
from support.talk import PLAIN, conversation

pytestmark = pytest.mark.process

HUGE = "9" * 5000
NUMBERS = ("hot", "", "nan", "inf", "-inf", "-1", "1e999", "0x10", "½", "٣", "1,5", "None", HUGE)
RANGES = {
    "temperature": "must be a number from 0 to 10",
    "top_k": "must be a whole number from 1 to 16,777,216",
    "top_p": "must be a number from 0.01 to 1",
    "min_p": "must be a number from 0 to 0.99",
    "repeat_penalty": "must be a number from 0.01 to 100",
    "presence_penalty": "must be a number from -2 to 2",
    "num_ctx": "must be from 1 to 16,777,216 tokens",
    "num_predict": "must be a whole number from 1 to 16,777,216",
    "seed": "must be a whole number from 0 to 18,446,744,073,709,551,615",
}
WRONG = [
    # (typed, said)
    ("/claer", "Unknown command '/claer'. Did you mean /clear?"),
    ("/CLEAR", "Unknown command '/CLEAR'. Did you mean /clear?"),
    ("/nosuch", "Unknown command '/nosuch'. Type /? for help."),
    ("/file notes.txt", "Unknown command '/file'. Did you mean /read?"),
    ("/continue", "Did you mean /resume?"),
    ("/temperature 0.2", "Did you mean /set temperature?"),
    ("/think", "Did you mean /set think?"),
    ("/help nosuch", "unknown command 'nosuch'"),
    ("/help sett", "Did you mean /set?"),
    ("/bye now", "/bye takes no argument, got 'now'"),
    ("/clear all", "/clear takes no argument, got 'all'"),
    ("/undo 3", "/undo takes no argument, got '3'"),
    ("/undo", "nothing to undo"),
    ("/regen 2", "there is no answer to regenerate"),
    ("/drop", "no file waits to be sent"),
    ("/resume x", "expected a conversation's ID, got 'x'"),
    ("/system", "There is no system message."),
    ("/edit", "there is no message to edit"),
    ("/edit it", "/edit takes no argument, got 'it'"),
    ("/set --top-p 3", "top_p must be a number from 0.01 to 1, got '3'"),
    ("/set context none", "num_ctx must be from 1 to"),
    ("/retry", "there is no answer to regenerate"),
    ("/stats all", "/stats takes no argument, got 'all'"),
    ("/copy code", "there is no answer to copy"),
    ("/copy", "there is no answer to copy"),
    ("/set nosuch", "unknown setting 'nosuch'"),
    ("/set verbos", "Did you mean /set verbose?"),
    ("/set temperature hot", "temperature must be a number from 0 to 10, got 'hot'"),
    ("/set temperatur 1", "Did you mean /set temperature?"),
    ("/set verbose on", "/set verbose takes no argument, got 'on'"),
    ("/set nothink please", "/set nothink takes no argument, got 'please'"),
    ("/set parameter heat 1", "unknown parameter 'heat'"),
    ("/set parameter temprature 1", "Did you mean temperature?"),
    ("/set parameter top-p 1", "Did you mean top_p?"),
    ("/set parameter stop", "stop must not be empty"),
    ("/set parameter num_ctx 9k", "templated.gguf supports no more than 2,048 tokens."),
    ("/set think hard", "unknown effort 'hard'; expected one of low, medium, high"),
    ("/set thinking", "expected one of show, fold, hide"),
    ("/set thinking shw", "Did you mean show?"),
    ("/set format xml", "unknown format 'xml'; expected one of json, text"),
    ("/show parameter", "Did you mean parameters?"),
    ("/show all of it", "unknown view 'all of it'"),
    ("/save", "expected a file name"),
    ("/load", "expected a file name"),
    ("/load nosuch", "no saved conversation at 'nosuch'"),
    ("/load /", "no saved conversation at '/'"),
    ("/read", "expected a file name"),
    ("/read nosuch", "cannot read nosuch: No such file or directory"),
    ("/read nosuch/and more", "cannot read nosuch/and: No such file or directory"),
    ("/export", "expected a file name"),
    ("/export nosuch/x", "the folder 'nosuch' does not exist"),
    ("/experts x.txt", "expected a file name ending in .png or .json"),
    ("/experts", "no"),
    ("/model nosuch", "no model named 'nosuch'"),
    ("/model smollm2-135", "Did you mean /model smollm2-135m?"),
    ("/model why is it so", "no model named 'why is it so'"),
    ("/model ./nosuch.gguf", "no such file: './nosuch.gguf'"),
    ("/model .", "'.' is a folder, not a file"),
]
WRONG += [
    (f"/set parameter {name} {value}", said)
    for name, said in RANGES.items()
    for value in NUMBERS
    if not (name == "presence_penalty" and value == "-1")
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return conversation(templated(tmp_path_factory.mktemp("model"), PLAIN))


@pytest.fixture
def talk(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return opened


def state(talk):
    options = {name: getattr(talk.session.options, field) for name, field in PARAMETERS.items()}
    return talk.session.settings, options, talk.context, list(talk.messages), list(talk.staged)


@pytest.mark.parametrize(("typed", "said"), WRONG, ids=[typed[:50] for typed, _ in WRONG])
def test_it_is_said_in_one_line_and_a_hint_and_changes_nothing(talk, capsys, typed, said):
    before = state(talk)
    run_command(typed, talk)
    out, err = capsys.readouterr()
    assert (out, state(talk)) == ("", before)
    assert said in err and err.count("\n") <= 2
    assert all(len(line) < 250 for line in err.splitlines())


def test_every_command_and_setting_is_in_the_table():
    typed = [line.split() for line, _ in WRONG]
    for command in COMMANDS:
        if command.usage or command.names[0] not in ("/?",):
            assert any(words[0] in command.names for words in typed), command.names
    takes_nothing = {setting.names[0] for setting in SETTINGS if not setting.usage}
    assert takes_nothing >= {"verbose", "nothink"}
    assert RANGES.keys() | {"stop"} == PARAMETERS.keys()


@pytest.mark.parametrize("name", [n for s in SETTINGS if not s.usage for n in s.names])
def test_a_setting_without_a_value_takes_none(talk, capsys, name):
    run_command(f"/set {name} x", talk)
    assert f"/set {name} takes no argument, got 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.usage], ids=lambda c: c.names[0])
def test_a_command_without_an_argument_takes_none(talk, capsys, command):
    for name in command.names:
        try:
            run_command(f"{name} {HUGE}", talk)
        except Leave:
            pytest.fail("left")
        assert f"{name} takes no argument, got '999" in capsys.readouterr().err


def test_help_for_one_command_shows_its_row(talk, capsys):
    for typed in ("/help set", "/? /set"):
        run_command(typed, talk)
        assert capsys.readouterr().err.splitlines() == [
            "/set NAME [VALUE]  change a setting, or list the settings"
        ]


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("temperature 1e-3", "temperature", 0.001),
        ("top_k  7", "top_k", 7),
        ("repeat_penalty 1.1", "repetition_penalty", 1.1),
        ("presence_penalty -1", "presence_penalty", -1.0),
        ("num_predict 5", "max_tokens", 5),
        ("seed 18446744073709551615", "seed", (1 << 64) - 1),
        ("stop END of it", "stop", ["END of it"]),
    ],
)
def test_a_value_is_read_as_on_the_command_line(tmp_path, capsys, typed, field, value):
    talk = conversation(templated(tmp_path, PLAIN))
    run_command(f"/set parameter {typed}", talk)
    assert getattr(talk.session.options, field) == value
    send(talk, "hi")
    assert "conifer:" not in capsys.readouterr().err


def test_a_file_that_a_message_mentions_goes_with_it(talk, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("On Friday.")
    before = list(talk.messages)
    send(talk, "When is it, says @notes.txt?")
    sent = talk.messages[len(before)]["content"]
    talk.messages[:] = before
    assert sent == "notes.txt:\nOn Friday.\n\nWhen is it, says notes.txt?"
    assert "Sent with it: notes.txt." in capsys.readouterr().err


def test_a_mentioned_file_that_is_not_text_is_refused_and_nothing_is_sent(talk, capsys, tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG" + bytes(100))
    before = state(talk)
    send(talk, "What is in @x.png ?")
    assert state(talk) == before
    assert "x.png is a PNG image" in capsys.readouterr().err
