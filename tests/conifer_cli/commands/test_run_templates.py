"""What the user said reaches the model, whatever form its chat template wants, or the run fails."""

from __future__ import annotations

import json

import pytest

from conifer_cli.chat.turn import send
from engine.gguf.reader import open_model
from support.gguf_writer import gguf_bytes
from support.program import MODELS, run_conifer, run_unplugged, templated
from support.rewrite import all_tensors
from support.talk import conversation

pytestmark = pytest.mark.process

ONE = ("--json", "--max-tokens", "1", "--temperature", "0")
TYPED = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)
TYPED_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'][0]['text'] }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{{ m['role'] }}: {{ m['content'] }}\n"
    "{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}\n{% endfor %}"
OTHER_KEYS = "{% for m in messages %}{{ m['sender'] }}: {{ m['body'] }}\n{% endfor %}"
FOLDED = b"system message"
LONG = "word " * 60


def prompt_tokens(model: str, home, *arguments: str) -> int:
    done = run_unplugged("run", model, *ONE, *arguments, home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["usage"]["prompt_tokens"]


@pytest.mark.parametrize("template", [TYPED, TYPED_SYSTEM, NO_SYSTEM, DROPS_SYSTEM])
def test_a_longer_message_is_a_longer_prompt(template: str, tmp_path):
    model = templated(tmp_path, template)
    short, long = (prompt_tokens(model, tmp_path, "-p", said) for said in ("hi", LONG))
    assert long > short + 50
    with_system = prompt_tokens(model, tmp_path, "-p", "hi", "-s", LONG)
    assert with_system > short + 50


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_message_without_a_place_is_folded_with_a_note(template: str, tmp_path):
    model = templated(tmp_path, template)
    done = run_unplugged("run", model, *ONE, "-p", "hi", "-s", "Be brief.", home=tmp_path)
    assert done.returncode == 0
    assert FOLDED in done.stderr and done.stderr.count(b"\n") == 1


def test_words_that_a_template_drops_are_an_error(tmp_path):
    done = run_unplugged("run", templated(tmp_path, OTHER_KEYS), "-p", "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'body'" in done.stderr or b"body" in done.stderr


def test_a_token_that_the_file_does_not_define_is_empty(tmp_path):
    source, target = MODELS / "qwen3moe" / "model.gguf", tmp_path / "no-bos.gguf"
    metadata = dict(open_model(source).metadata)
    for key in ("bos_token_id", "add_bos_token"):
        metadata.pop(f"tokenizer.ggml.{key}", None)
    metadata["tokenizer.chat_template"] = "{{ bos_token + messages[0]['content'] }}"
    target.write_bytes(gguf_bytes(metadata, all_tensors(source)))
    done = run_unplugged("run", str(target), *ONE, "-p", "hi", home=tmp_path)
    assert done.returncode == 0, done.stderr


EMPTY = "{% if false %}x{% endif %}"


def test_a_model_that_makes_no_prompt_is_told_in_one_line(tmp_path):
    done = run_unplugged("run", templated(tmp_path, EMPTY), "-p", "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") <= 2


@pytest.mark.parametrize("template", [EMPTY, OTHER_KEYS])
def test_a_chat_goes_on_after_a_message_that_makes_no_prompt(template, tmp_path, capsys):
    talk = conversation(templated(tmp_path, template))
    for _ in range(2):
        send(talk, "hi")
        out, err = capsys.readouterr()
        assert out.strip() == "" and err.startswith("conifer: ") and err.count("\n") <= 3
        assert talk.messages == []


@pytest.mark.parametrize(
    ("template", "more", "finish", "said"),
    [
        ("{{ messages[0].content }}", ("--stop", "{first}"), "stop", b"ended it at once"),
        ("{{ messages[0].content }}<think>\n", (), "length", b"was reached while"),
    ],
)
def test_an_answer_that_never_came_is_told(template, more, finish, said, tmp_path):
    model, options = templated(tmp_path, template), ("--temperature", "0", "--max-tokens", "8")
    whole = run_conifer("run", model, "hi", *options, home=tmp_path).stdout.decode()
    more = tuple(word.replace("{first}", whole[:1]) for word in more)
    done = run_conifer("run", model, "hi", *options, *more, "--json", home=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, found["finish_reason"], found["answer_empty"]) == (0, finish, True)
    assert b"no answer: " in done.stderr and said in done.stderr


def test_an_answer_that_came_is_not_empty(tmp_path):
    model = templated(tmp_path, "{{ messages[0].content }}")
    done = run_conifer("run", model, "hi", "--json", "--max-tokens", "8", home=tmp_path)
    found = json.loads(done.stdout)
    assert found["answer_empty"] == (not found["answer"].strip())
    assert found["answer_empty"] == (b"no answer" in done.stderr)


def test_a_prompt_of_many_megabytes_with_one_emoji_is_too_long(tmp_path):
    text = (b"some words " * (1 << 18)) + "\N{PARTY POPPER}".encode()  # 2.9 MB
    model = str(MODELS / "qwen3moe" / "model.gguf")
    done = run_unplugged("run", model, "-", home=tmp_path, stdin=text)
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"tokens" in done.stderr and b"2,048" in done.stderr
