"""Conversations saved with the model's state, and forged or damaged files."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import engine
from conifer_cli import app
from conifer_cli.session import checkpoint
from engine.gguf.reader import open_model
from engine.kernels import native
from engine.nn.cache.state import CacheState, dump, load
from support.gguf_writer import split_bytes
from support.hub_server import running_hub
from support.program import MODELS, command, environment, run_conifer, templated
from support.rewrite import all_tensors
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

MAPS = Path("/proc/self/maps")
QWEN = str(MODELS / "qwen3moe" / "model.gguf")
SAID = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
GREEDY = ("--temperature", "0", "--max-tokens", "8", "--json")


def usage(done):
    return json.loads(done.stdout)["usage"]


def facts(path):
    return json.loads(path.read_bytes().split(b"\n")[1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a saved conversation of one turn, and its model."""
    home = tmp_path_factory.mktemp("saved")
    model = templated(home, SAID)
    done = run_conifer("run", model, "hello", *GREEDY, "--save", "talk", home=home)
    assert (done.returncode, done.stderr) == (0, b"")
    return home, model, home / "talk", json.loads(done.stdout)


def test_a_conversation_goes_on_and_only_what_is_new_is_read(kept, tmp_path):
    _, model, path, first = kept
    second = run_conifer("run", model, "and", *GREEDY, "--resume", str(path), home=tmp_path)
    assert (second.returncode, second.stderr) == (0, b"")
    before = first["usage"]["prompt_tokens"]
    assert usage(second)["cached_tokens"] >= before
    said = f"user=hello;assistant={first['answer']};user=and;"
    fresh = run_conifer("run", QWEN, said, *GREEDY, home=tmp_path)
    assert json.loads(second.stdout)["answer"] == json.loads(fresh.stdout)["answer"]
    assert usage(fresh)["cached_tokens"] == 0


def test_the_model_need_not_be_named_again(kept, tmp_path):
    _, _, path, _ = kept
    done = run_conifer("run", "-p", "and", *GREEDY, "--resume", str(path), home=tmp_path)
    assert done.returncode == 0 and usage(done)["cached_tokens"] > 0


def test_a_resumed_conversation_can_be_saved_over_itself(kept, tmp_path):
    _, model, path, _ = kept
    own = tmp_path / "own"
    shutil.copy(path, own)
    for turn in (1, 2):
        again = ("run", model, f"turn {turn}", *GREEDY, "--resume", "own", "--save", "own")
        assert run_conifer(*again, home=tmp_path).returncode == 0
    assert [message["role"] for message in facts(own)["messages"]] == ["user", "assistant"] * 3
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["own"]


@pytest.mark.parametrize("flags", [("--kv-type", "q8"), ("--kernels", "stock")])
def test_with_another_form_of_cache_the_text_is_read_anew(kept, tmp_path, flags):
    _, model, path, _ = kept
    done = run_conifer("run", model, "and", *GREEDY, "--resume", str(path), *flags, home=tmp_path)
    assert (done.returncode, usage(done)["cached_tokens"]) == (0, 0)


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="no extension")
def test_another_instruction_set_reads_the_text_anew(kept, tmp_path):
    _, model, path, _ = kept
    flags = ("--resume", str(path), "--isa", "portable")
    done = run_conifer("run", model, "and", *GREEDY, *flags, home=tmp_path)
    assert (done.returncode, usage(done)["cached_tokens"]) == (0, 0)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux reports memory mappings")
@pytest.mark.parametrize("name", ["m", "mm"])  # so that arrays also start at odd offsets
def test_a_file_is_mapped_until_the_cache_is_filled(tmp_path, kernels, name):
    model = engine.load(QWEN, kernels)
    cache, other = model.new_cache(256, "f16"), model.new_cache(256, "f16")
    greedy = engine.Settings(temperature=0, max_tokens=4, ignore_end=True)
    list(model.generate([5, 9, 3, 7] * 10, greedy, cache))
    facts = {"model": name, "identity": "i", "form": "f", "messages": []}
    checkpoint.write(tmp_path / "talk", "conversation", facts, dump(model, cache))
    _, kept = checkpoint.read(tmp_path / "talk", checkpoint.ConversationHeader)
    assert str(tmp_path) in MAPS.read_text()
    load(model, kept, other)
    del kept
    assert str(tmp_path) not in MAPS.read_text()
    pairs = zip(dump(model, cache).arrays, dump(model, other).arrays, strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_a_file_is_read_where_it_cannot_be_mapped(tmp_path, monkeypatch):
    facts = {"model": "m", "identity": "i", "form": "f", "messages": []}
    state = CacheState([5, 9], [[0]], [np.arange(6, dtype=np.float16).reshape(2, 3)])
    checkpoint.write(tmp_path / "talk", "conversation", facts, state)

    def refuse(*arguments, **settings):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    _, kept = checkpoint.read(tmp_path / "talk", checkpoint.ConversationHeader)
    assert kept.tokens == state.tokens and np.array_equal(kept.arrays[0], state.arrays[0])


def test_another_models_conversation_is_refused(kept, tmp_path):
    _, _, path, _ = kept
    other = str(MODELS / "llama" / "model.gguf")
    done = run_conifer("run", other, "and", "--resume", str(path), home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"a different model file" in done.stderr


def test_a_file_that_is_not_there_exits_2(tmp_path):
    for name in ("none", "."):
        done = run_conifer("run", QWEN, "hi", "--resume", name, home=tmp_path)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"no saved conversation" in done.stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("notes.md", "refusing to overwrite notes.md: not a Conifer conversation"),
        ("pipe", "refusing to overwrite"),  # has no writer
        (".", "refusing to overwrite"),
        ("", "refusing to overwrite"),
        ("none/talk", "the folder 'none' does not exist"),
        ("notes.md/talk", "the folder 'notes.md' does not exist"),
    ],
)
def test_a_place_that_will_not_do_exits_2_before_anything_is_loaded(tmp_path, place, said):
    notes = tmp_path / "notes.md"
    notes.write_text("dear diary")
    os.mkfifo(tmp_path / "pipe")
    done = run_conifer("run", QWEN, "hi", *GREEDY, "--save", place, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert notes.read_text() == "dear diary"


def test_a_folder_that_may_not_be_written_to_exits_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    code = app._outcome(["run", QWEN, "hi", "--save", str(tmp_path / "talk")])
    assert (code, capsys.readouterr().out) == (2, "")


def test_a_file_that_cannot_be_written_exits_1_after_the_answer(tmp_path):
    done = run_conifer("run", QWEN, "hi", *GREEDY, "--save", "x" * 300, home=tmp_path)
    assert done.returncode == 1 and json.loads(done.stdout)["answer"]
    assert done.stderr.count(b"\n") == 1 and b"cannot write" in done.stderr


def test_nobody_else_may_read_it(kept):
    _, _, path, _ = kept
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversation_that_a_signal_ends_is_saved_as_text(tmp_path, number):
    talk = tmp_path / "talk"
    arguments = ["run", templated(tmp_path, SAID), *GREEDY[:-1], "--save", str(talk)]
    with TerminalSession([*command(), *arguments], environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        session.type("hello\n")
        session.expect(">>> ")
        time.sleep(0.5)  # the prompt appears shortly before readline is ready
        os.kill(session.pid, number)
        assert session.wait() == 128 + number
        assert "Traceback" not in session.screen
    assert [message["role"] for message in facts(talk)["messages"]] == ["user", "assistant"]
    done = run_conifer("run", "-p", "and", *GREEDY, "--resume", "talk", home=tmp_path)
    assert (done.returncode, usage(done)["cached_tokens"]) == (0, 0)


def test_a_signal_before_anything_was_said_leaves_what_was_saved_before(kept, tmp_path):
    _, model, path, _ = kept
    own = tmp_path / "own"
    shutil.copy(path, own)
    arguments = [*command(), "run", model, "-s", "be brief", "--save", str(own)]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        time.sleep(0.5)
        os.kill(session.pid, signal.SIGTERM)
        assert session.wait() == 143
    assert own.read_bytes() == path.read_bytes()


def test_a_split_model_of_the_hub_is_found_again(tmp_path):
    tensors = all_tensors(Path(QWEN))
    blobs = split_bytes(open_model(Path(QWEN)).metadata, [tensors[:9], tensors[9:]])
    with running_hub() as hub:
        for number, blob in enumerate(blobs, 1):
            hub.files[f"org/tiny/tiny-F32-{number:05}-of-00002.gguf"] = blob
        where = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        asked = ("run", "hf:org/tiny", "hi", *GREEDY, "--save", "talk")
        first = run_conifer(*asked, home=tmp_path, **where)
    assert first.returncode == 0, first.stderr
    again = run_conifer("run", "-p", "and", *GREEDY, "--resume", "talk", home=tmp_path)
    assert (again.returncode, again.stderr) == (0, b"")


def test_after_a_resume_that_named_no_model_another_may_be_fetched(kept, tmp_path):
    _, _, path, _ = kept
    arguments = [*command(), "run", "--resume", str(path), *GREEDY[:-1]]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> hello")  # the last exchange is shown
        session.expect(">>> ")
        session.type("/model hf:org/none\n")
        said = session.expect(">>> ")
    assert "HF_ENDPOINT" in said and "--offline" not in said


def test_a_resumed_system_message_is_shown_and_outlives_clear(tmp_path):
    model = templated(tmp_path, SAID)
    asked = ("run", model, "hi", *GREEDY, "-s", "be brief", "--save", "talk")
    assert run_conifer(*asked, home=tmp_path).returncode == 0
    arguments = [*command(), "run", "--resume", str(tmp_path / "talk"), *GREEDY[:-1]]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> hi")  # the last exchange is shown
        for line in ("/clear", "/show system"):
            session.expect(">>> ")
            session.type(f"{line}\n")
        assert "be brief" in session.expect(">>> ")


def test_a_system_message_cannot_be_changed_afterwards(kept, tmp_path):
    _, model, path, _ = kept
    asked = ("run", model, "and", "--resume", str(path))
    typed = run_conifer(*asked, "-s", "be brief", home=tmp_path)
    standing = run_conifer(*asked, *GREEDY, home=tmp_path, CONIFER_SYSTEM="be brief")
    assert (typed.returncode, standing.returncode) == (2, 0)


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def forged(data: bytes, **changes: object) -> bytes:
    """Return the same file with a changed header and a valid checksum."""
    first, line, rest = data.split(b"\n", 2)
    header = json.loads(line) | changes
    return sealed(b"\n".join((first, json.dumps(header).encode(), rest[:-32])))


def hostile(data: bytes) -> dict[str, bytes]:
    facts = json.loads(data.split(b"\n")[1])
    arrays, tokens = facts["arrays"], facts["tokens"]
    return {
        "empty": b"",
        "cut": data[:-1],
        "half": data[: len(data) // 2],
        "longer": data + b"x",
        "flipped": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "another format": data.replace(b"conversation 1\n", b"conversation 9\n", 1),
        "another kind": data.replace(b"conversation", b"prompt", 1),
        "a model": (MODELS / "qwen3moe" / "model.gguf").read_bytes(),
        "no json": sealed(b"conifer conversation 1\nnope\n"),
        "deep json": sealed(b"conifer conversation 1\n" + b"[" * 100_000 + b"\n"),
        "no line end": sealed(b"conifer conversation 1\n" + b'{"a": 1}'),
        "a list": sealed(b"conifer conversation 1\n[]\n"),
        "huge array": forged(data, arrays=[["float32", [1 << 40, 1 << 40]]]),
        "unknown type": forged(data, arrays=[["object", [1]], *arrays[1:]]),
        "no shape": forged(data, arrays=[["float16", "wide"], *arrays[1:]]),
        "negative": forged(data, arrays=[["float16", [-1]], *arrays[1:]]),
        "reshaped": forged(data, arrays=[[n, [*reversed(shape)]] for n, shape in arrays]),
        "tokens outside": forged(data, tokens=[1 << 30, *tokens[1:]]),
        "tokens missing": forged(data, tokens=tokens[1:]),
        "tokens no numbers": forged(data, tokens=["x"]),
        "marks": forged(data, marks=[[1.5]]),
        "messages": forged(data, messages=[{"role": "user", "content": 3}]),
        "role": forged(data, messages=[{"role": "root", "content": "x"}]),
        "no identity": forged(data, identity=None),
    }


def test_a_hostile_file_is_one_line_and_exit_3(kept, tmp_path, capsys, monkeypatch):
    _, model, path, _ = kept
    cases = hostile(path.read_bytes())
    assert len(cases) >= 24
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", None)
    for name, data in cases.items():
        bad = tmp_path / "bad"
        bad.write_bytes(data)
        code = app._outcome(["run", model, "hi", "--resume", str(bad), "--max-tokens", "2"])
        out, err = capsys.readouterr()
        assert (code, out) == (3, ""), (name, err)
        assert err.startswith("conifer: ") and err.count("\n") == 1, (name, err)


def test_what_a_hostile_file_says_does_not_reach_the_terminal(kept, tmp_path):
    _, _, path, _ = kept
    bad = tmp_path / "bad"
    bad.write_bytes(forged(path.read_bytes(), model="\x1b]0;owned\x07", identity="x"))
    done = run_conifer("run", QWEN, "hi", "--resume", "bad", home=tmp_path)
    assert done.returncode == 2 and b"\x1b" not in done.stderr
    unnamed = run_conifer("run", "-p", "hi", "--resume", "bad", home=tmp_path)
    assert unnamed.returncode in (2, 5) and b"\x1b" not in unnamed.stderr
