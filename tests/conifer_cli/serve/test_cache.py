"""serve --cache: a later server, or `run --cache`, reads only what is new."""

from __future__ import annotations

import json
import time

import pytest

from support.program import run_conifer, templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process
TEXT = "A long text that several questions are about. " * 8


def asked(server, *said):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    body = server.ask(
        "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0}
    ).json
    usage = body["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return body["choices"][0]["message"]["content"], usage["prompt_tokens"], cached


def stored(home, least=0):
    """The stored prompts. They are written after an answer: waits for so many."""
    until = time.monotonic() + 20
    while len(found := sorted((home / "conifer" / "prompts").glob("*/*.prompt"))) < least:
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


# One cache rewinds to any token; the recurrent one does not.
@pytest.mark.parametrize("name", ["qwen3moe", "granitehybrid"])
def test_a_later_server_reads_only_what_is_new(tmp_path, name):
    path = templated(tmp_path, CHATML, name)
    with serving(tmp_path, path, "-c", "2048", "--cache") as server:
        first, prompt, cached = asked(server, TEXT)
        assert cached == 0 and len(stored(tmp_path, 1)) == 1
    with serving(tmp_path, path, "-c", "2048") as server:
        plain, _, cached = asked(server, TEXT, first, "And then?")
        assert cached == 0 and asked(server, TEXT)[0] == first
    with serving(tmp_path, path, "-c", "2048", "--cache") as server:
        again, _, cached = asked(server, TEXT, first, "And then?")
        assert again == plain and cached >= prompt - 64
        assert asked(server, "Another conversation. " * 20)[2] < 64
        assert len(stored(tmp_path, 2)) == 2  # the second turn is mostly stored already
    for file in stored(tmp_path):
        file.write_bytes(file.read_bytes()[:-1])
    with serving(tmp_path, path, "-c", "2048", "--cache") as server:
        assert asked(server, TEXT) == (first, prompt, 0)
        stored(tmp_path, 1)
        log = server.log.read_text()
    assert "removed a stored prompt that cannot be used" in log and "Traceback" not in log


def test_a_run_finds_what_a_server_has_stored(tmp_path):
    path = templated(tmp_path, CHATML, "qwen3moe")
    with serving(tmp_path, path, "-c", "2048", "--cache") as server:
        _, prompt, _ = asked(server, TEXT)
        stored(tmp_path, 1)
    done = run_conifer("run", path, TEXT, "--cache", "--json", "--max-tokens", "4", home=tmp_path)
    usage = json.loads(done.stdout)["usage"]
    assert usage["prompt_tokens"] == prompt and usage["cached_tokens"] == prompt - 1


def test_without_the_option_nothing_is_stored(tmp_path):
    path = templated(tmp_path, CHATML, "qwen3moe")
    with serving(tmp_path, path, "-c", "2048") as server:
        asked(server, TEXT)
    assert stored(tmp_path) == []
