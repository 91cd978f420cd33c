"""The conversation loop on a real pseudo-terminal."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from conifer_cli.chat.slash_commands import COMMANDS
from support.hub_server import running_hub
from support.program import MODELS, command, environment, templated
from support.rewrite import all_tensors, rewrite
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


@pytest.fixture
def chat(tmp_path):
    arguments = [*command(), "run", QWEN, "--temperature", "0", "--max-tokens", "4", "--stats"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        yield session


@pytest.mark.parametrize("goodbye", ["/bye\n", "/exit\n", "/quit\n", "exit\n", "Quit\n", "\x04"])
def test_a_person_can_leave(chat, goodbye):
    chat.type(goodbye)
    assert chat.wait() == 0


def test_a_message_is_answered_and_the_next_one_too(chat):
    for _ in range(2):
        chat.type("hello\n")
        chat.expect("answer: 4 tokens")
        chat.expect(">>> ")


def test_ctrl_c_at_the_prompt_explains_how_to_leave(chat):
    time.sleep(0.5)  # the prompt appears shortly before readline is ready
    chat.type("\x03")
    chat.expect("Use Ctrl-D or /bye to exit.")
    chat.expect(">>> ")


def test_an_unknown_command_is_not_sent_to_the_model(chat):
    chat.type("/cls now\n")
    chat.expect("Unknown command '/cls'. Type /? for help.")
    assert "answer:" not in chat.expect(">>> ")


def test_a_path_is_a_message(chat):
    chat.type("/etc/hosts is what?\n")
    chat.expect("answer: 4 tokens")


def test_help_names_every_command(chat):
    chat.type("/?\n")
    said = chat.expect(">>> ")
    assert all(word in said for word in ("/?", "/clear", "/bye", "Ctrl-C"))


def test_clear_forgets_the_conversation(chat):
    chat.type("/clear\n")
    chat.expect("Started a new conversation.")


def test_an_empty_line_asks_again(chat):
    chat.type("\n")
    assert chat.expect(">>> ").strip() == ""


def test_ctrl_c_at_any_moment_leaves_the_conversation_alive(tmp_path):
    chance, lost = random.Random(6), 0
    arguments = [*command(), "run", QWEN, "--temperature", "2", "--seed", "1"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        for _ in range(50):
            session.type("go\n")
            session.expect("\n")
            time.sleep(chance.random() * chance.choice([0, 0.002, 0.02, 0.2]))
            session.type("\x03")
            try:
                session.expect(">>> ", deadline_s=5)
            except AssertionError:  # Python may lose it in a destructor: press again
                lost += 1
                session.type("\x03")
                session.expect(">>> ")
        assert lost <= 2
        session.type("/?\n")
        session.expect("/bye")
        session.expect(">>> ")
        session.type("/bye\n")
        assert session.wait() == 0
        assert "Traceback" not in session.screen


def test_a_conversation_needs_no_stderr(tmp_path):
    script = f"{' '.join(command())} run {QWEN} --max-tokens 4 2>&-"
    with TerminalSession(["/bin/sh", "-c", script], environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        session.type("hello\n")
        session.expect(">>> ")
        session.type("/bye\n")
        assert session.wait() == 0


@pytest.mark.parametrize("flag", ["--json", "--raw", "-x", "--cache"])
def test_what_is_for_one_answer_is_refused_where_it_is_typed(tmp_path, flag):
    arguments = [*command(), "run", QWEN, flag]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect("requires a prompt")
        assert session.wait() == 2


def test_a_standing_wish_for_one_answer_is_left_out_of_a_conversation(tmp_path):
    arguments = [*command(), "run", QWEN, "--max-tokens", "4", "--stats"]
    standing = {"CONIFER_EXTRACT": "1", "CONIFER_CACHE": "1", "CONIFER_RAW": "1"}
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb", **standing)) as session:
        session.expect(">>> ")
        session.type("hello\n")
        session.expect("answer: 4 tokens")


def test_ctrl_c_at_the_question_about_another_model_keeps_the_one_of_before(tmp_path):
    arguments = [*command(), "run", QWEN, "--max-tokens", "4", "--stats"]
    path, licence = Path(QWEN), {"general.license": "llama3.1"}  # must be confirmed
    other = rewrite(path, tmp_path / "other.gguf", all_tensors(path), licence)
    with running_hub() as hub:
        hub.files["org/tiny/tiny-F32.gguf"] = other.read_bytes()
        where = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        with TerminalSession(arguments, environment(tmp_path, TERM="dumb", **where)) as session:
            session.expect(">>> ")
            session.type("/model hf:org/tiny\n")
            session.expect("and download the model? [Y/n] ")
            session.type("\x03")
            session.expect("cancelled; still using ")
            session.expect(">>> ")
            session.type("hello\n")
            session.expect("answer: 4 tokens")


def test_a_message_over_the_context_is_said_with_both_counts_and_a_choice(tmp_path):
    arguments = [*command(), "run", QWEN, "-c", "16", "--max-tokens", "4", "--stats"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        session.type("word " * 40 + "\n")
        session.expect("but the context holds only 16.")
        session.expect("[g] grow the context to ")
        session.expect("[c] cancel: ")
        session.type("c\n")
        session.expect("Your message was not added.")
        session.expect(">>> ")
        session.type("word " * 40 + "\n")
        session.expect("[c] cancel: ")
        session.type("g\n")
        session.expect("The context is now ")
        session.expect("answer: 4 tokens")


def test_the_second_turn_holds_the_first_and_takes_it_from_the_cache(tmp_path):
    path = templated(tmp_path, "{% for m in messages %}<|bos|>{{ m.content }}{% endfor %}<|eos|>")
    arguments = [*command(), "run", path, "--temperature", "0", "--max-tokens", "4", "--stats"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        session.type("hello\n")
        session.expect("prompt: ")
        first = int(session.expect(" tokens, "))
        session.expect(">>> ")
        session.type("hello\n")
        session.expect("prompt: ")
        second = int(session.expect(" tokens ("))
        cached = int(session.expect(" from the cache"))
    assert second >= 2 * first - 1
    assert first - 1 <= cached < second


def test_every_command_begins_with_a_slash():
    names = [name for command in COMMANDS for name in command.names]
    assert all(name.startswith("/") for name in names)
    assert len(set(names)) == len(names)
