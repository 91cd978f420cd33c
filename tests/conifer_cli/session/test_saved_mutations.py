"""Forged conversations with a valid checksum: refused in one of our errors, or loaded."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import socket
from contextlib import suppress
from typing import Any

import pytest

import engine
from conifer_cli import app
from conifer_cli.errors import BadSaved
from conifer_cli.session import checkpoint
from conifer_cli.session.checkpoint import ConversationHeader
from engine.errors import CacheStateError, ContextOverflow, NumericError
from engine.nn.cache.state import dump, load
from support.program import MODELS
from support.talk import conversation

REFUSALS = (BadSaved, CacheStateError, ContextOverflow)
FACTS = {"model": "m", "identity": "i", "form": "f"}
SAID = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
VALUES = [
    *(0, 1, -1, True, None, 1.5, float("nan"), float("inf"), 2**31, 2**62, 2**63, 2**64, 10**4000),
    *("", "x", "\ud800", "a\0b", "float16", "int8", [], [[]], {}, [0, 2**62], [0, 0], [-1, -1]),
    *([2**21] * 3, [1] * 9, ["float16", [0, 2**62]], ["float32", [2**31, 2**33]]),
]


@pytest.fixture(
    scope="module", params=[("qwen3moe", "auto"), ("qwen3next", "stock"), ("lfm2", "auto")]
)
def saved(request, tmp_path_factory):
    """Return a model and a conversation saved with it."""
    name, kernels = request.param
    model = engine.load(MODELS / name / "model.gguf", kernels)
    cache = model.new_cache(64, "f16")
    list(model.generate([5, 9, 3, 7], engine.Settings(temperature=0, max_tokens=4), cache))
    path = tmp_path_factory.mktemp("saved") / "talk"
    checkpoint.write(path, "conversation", {**FACTS, "messages": SAID}, dump(model, cache))
    return model, path


def sealed(first: bytes, header: Any, rest: bytes) -> bytes:
    line = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = b"\n".join((first, line, rest))
    return data + hashlib.sha256(data).digest()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of all values within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, inner in items:
            found += (
                places(inner, (*path, key)) if isinstance(inner, dict | list) else [(*path, key)]
            )
    return found


def mutant(header: Any, chance: random.Random) -> Any:
    """Return a header with one to three values replaced, removed or repeated."""
    header = json.loads(json.dumps(header))
    for _ in range(chance.randint(1, 3)):
        *path, last = chance.choice(places(header))
        inner = header
        for key in path:
            inner = inner[key]
        kind = chance.randrange(6)
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, list):
            inner.insert(last, inner[last])
        else:
            inner[last] = copy.deepcopy(chance.choice(VALUES))
    return header


def outcome(model: engine.Model, path) -> str:
    """Read a file, load it and go on. Any error but ours fails the test."""
    cache = model.new_cache(64, "f16")
    try:
        _, kept = checkpoint.read(path, ConversationHeader)
        load(model, kept, cache)
    except REFUSALS as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return "refused"
    with suppress(NumericError):
        settings = engine.Settings(temperature=0, max_tokens=2)
        list(model.generate([*kept.tokens[:40], 1], settings, cache))
    return "loaded"


def mutate(saved, tmp_path, count: int) -> None:
    model, path = saved
    first, line, rest = path.read_bytes().split(b"\n", 2)
    header, chance = json.loads(line), random.Random(count)
    bad, seen = tmp_path / "bad", set()
    for _ in range(count):
        bad.write_bytes(sealed(first, mutant(header, chance), rest[:-32]))
        seen.add(outcome(model, bad))
    assert "refused" in seen


def test_a_few_mutants_end_in_our_errors(saved, tmp_path):
    mutate(saved, tmp_path, 150)


@pytest.mark.nightly
def test_many_mutants_end_in_our_errors(saved, tmp_path):
    mutate(saved, tmp_path, 4000)


def test_headers_that_are_no_headers_end_in_our_errors(saved, tmp_path):
    model, path = saved
    first, line, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    whole = json.dumps(header)
    lines = [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        whole.replace('"tokens": [', '"tokens": [' + "9" * 5000 + ", ").encode(),
        (whole[:-1] + ', "arrays": [], "arrays": []}').encode(),
        (whole[:-1] + ', "tokens": [0, 0]}').encode(),
        b"\xff\xfe" + line,
        b"\xef\xbb\xbf" + line[:10],
        json.dumps({**header, "tokens": [0] * 100}).encode(),
        json.dumps({**header, "arrays": [["int8", [0]]] * 70_000}).encode(),
    ]
    for forged in lines:
        bad = tmp_path / "bad"
        bad.write_bytes(sealed(first, forged, rest[:-32]))
        assert outcome(model, bad) == "refused", forged[:60]


@pytest.mark.parametrize("shape", [[0, 1 << 62], [0, 1 << 63], [1 << 62, 0], [0, 10**30], [0] * 9])
def test_a_shape_that_overflows_is_refused(saved, tmp_path, shape):
    _, path = saved
    first, line, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    header["arrays"] = [*header["arrays"], ["float16", shape]]
    bad = tmp_path / "bad"
    bad.write_bytes(sealed(first, header, rest[:-32]))
    with pytest.raises(BadSaved, match="is damaged"):
        checkpoint.read(bad, ConversationHeader)


def test_what_is_no_file_is_refused_without_waiting(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in ("pipe", "socket", "/dev/zero"):
            code = app._outcome(["run", "--resume", name, "-p", "hi"])
            err = capsys.readouterr().err
            assert (code, err.count("\n")) == (3, 1) and "not a saved conversation" in err, name


def test_a_forged_file_leaves_the_conversation_as_it_was(saved, tmp_path, capsys):
    from conifer_cli.chat.slash_commands import run_command

    _, path = saved
    first, line, rest = path.read_bytes().split(b"\n", 2)
    bad = tmp_path / "bad"
    header = json.loads(line)
    header["arrays"][0][1] = [0, 1 << 62]
    bad.write_bytes(sealed(first, header, rest[:-32]))
    os.mkfifo(tmp_path / "pipe")
    talk = conversation(MODELS / "qwen3moe" / "model.gguf")
    talk.messages[:] = SAID
    for name in ("bad", "pipe"):
        run_command(f"/load {tmp_path / name}", talk)
        assert capsys.readouterr().err.count("\n") == 1
    assert talk.messages == SAID
