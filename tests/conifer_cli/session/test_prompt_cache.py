"""--cache: a shared prefix is processed only once, even across processes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from conifer_cli import app
from conifer_cli.session import prompt_cache
from support.program import MODELS, run_conifer

pytestmark = pytest.mark.process

GREEDY = ("--temperature", "0", "--max-tokens", "6", "--json")
TEXT = "A long text that several questions are about. " * 8


def asked(home, name, prompt, *flags, said=b""):
    model = str(MODELS / name / "model.gguf")
    done = run_conifer("run", model, prompt, *GREEDY, *flags, home=home)
    assert done.returncode == 0 and re.fullmatch(said, done.stderr)
    record = json.loads(done.stdout)
    return record["answer"], record["usage"]


def stored(home):
    return sorted((home / "conifer" / "prompts").glob("*/*"))


# One cache rewinds to any token; the recurrent one does not.
@pytest.mark.parametrize("name", ["qwen3moe", "qwen3next"])
def test_a_shared_start_is_read_once_and_changes_no_answer(tmp_path, name):
    shared = 0
    for question in ("one", "what then", "three?"):
        answer, usage = asked(tmp_path, name, TEXT + question, "--cache")
        plain, fresh = asked(tmp_path, name, TEXT + question)
        assert answer == plain and fresh["cached_tokens"] == 0
        assert usage["prompt_tokens"] == fresh["prompt_tokens"]
        assert usage["cached_tokens"] >= shared
        shared = usage["prompt_tokens"] - 40  # the next question shares more than this
    assert len(stored(tmp_path)) <= 2
    assert not [path for path in stored(tmp_path) if path.suffix != ".prompt"]


def test_without_the_option_nothing_is_stored(tmp_path):
    asked(tmp_path, "qwen3moe", TEXT)
    assert not (tmp_path / "conifer" / "prompts").exists()


def test_a_short_prompt_is_not_stored(tmp_path):
    asked(tmp_path, "qwen3moe", "hi", "--cache")
    assert stored(tmp_path) == []


def test_a_damaged_file_is_removed_and_the_answer_is_the_same(tmp_path):
    first, _ = asked(tmp_path, "qwen3moe", TEXT, "--cache")
    (path,) = stored(tmp_path)
    data = path.read_bytes()
    for bad in (data[:-1], b"", data[:-50] + b"x" * 50):
        path.write_bytes(bad)
        note = rb"conifer: removed a stored prompt that cannot be used: [^\n]+\n"
        again, usage = asked(tmp_path, "qwen3moe", TEXT, "--cache", said=note)
        assert (again, usage["cached_tokens"]) == (first, 0)
        assert path.read_bytes() == data  # stored anew


def test_another_models_prompts_are_not_found(tmp_path):
    asked(tmp_path, "qwen3moe", TEXT, "--cache")
    _, usage = asked(tmp_path, "llama", TEXT, "--cache")
    assert usage["cached_tokens"] == 0
    assert len(stored(tmp_path)) == 2


def test_a_place_that_cannot_be_written_is_said_and_no_error(tmp_path):
    (tmp_path / "conifer").mkdir()
    (tmp_path / "conifer" / "prompts").write_text("in the way")
    model = str(MODELS / "qwen3moe" / "model.gguf")
    done = run_conifer("run", model, TEXT, *GREEDY, "--cache", home=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["answer"]
    assert done.stderr.count(b"\n") == 1 and b"cannot store the prompt" in done.stderr


def test_a_home_whose_name_is_too_long_is_said_and_no_error(tmp_path):
    model, home = str(MODELS / "qwen3moe" / "model.gguf"), str(tmp_path / ("x" * 300))
    done = run_conifer("run", model, TEXT, *GREEDY, "--cache", home=tmp_path, CONIFER_HOME=home)
    assert done.returncode == 0 and json.loads(done.stdout)["answer"]
    assert b"cannot store the prompt" in done.stderr and b"Traceback" not in done.stderr


def test_a_place_that_may_only_be_read_is_read(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    first, _ = asked(tmp_path, "qwen3moe", TEXT, "--cache")
    (path,) = stored(tmp_path)
    data = path.read_bytes()
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path / "conifer"))
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    model = str(MODELS / "qwen3moe" / "model.gguf")
    for stands, cached in ((data, True), (data[:-50] + b"x" * 50, False), (b"", False)):
        path.write_bytes(stands)
        code = app._outcome(["run", model, TEXT, *GREEDY, "--cache"])
        record = json.loads(capsys.readouterr().out)
        assert (code, record["answer"]) == (0, first)
        assert (record["usage"]["cached_tokens"] > 0) == cached


def test_the_least_recently_used_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(prompt_cache, "MAX_BYTES", 1000)
    now = time.time()
    (tmp_path / "model").mkdir()
    for age in range(5):
        path = tmp_path / "model" / f"{age}{prompt_cache.SUFFIX}"
        path.write_bytes(bytes(200))
        os.utime(path, (now - age, now - age))
    prompt_cache._make_room(450)
    left = sorted(path.stem for path in tmp_path.glob("*/*"))
    assert left == ["0", "1"]


def test_there_is_a_limit_to_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "folder", lambda: tmp_path)
    (tmp_path / "model").mkdir()
    for number in range(prompt_cache.MAX_FILES + 3):
        (tmp_path / "model" / f"{number}{prompt_cache.SUFFIX}").touch()
    prompt_cache._make_room(1)
    assert len(list(tmp_path.glob("*/*"))) == prompt_cache.MAX_FILES - 1
