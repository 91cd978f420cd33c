"""Rendering is transformers' rendering, and a prompt's ids are those of its text."""

from __future__ import annotations

import hashlib
import json
import re
import time
from datetime import datetime

import numpy as np
import pytest

from engine.errors import TemplateError
from engine.text import chat_template
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import from_metadata
from support.conversations import BOS, CONVERSATIONS, EOS, NOW
from support.plain_words import FOREIGN
from support.vocab import DATA, byte_vocabulary, metadata, renderings, template_source, tokenizer

pytestmark = pytest.mark.process

STORED = renderings()
HELLO = [{"role": "user", "content": "Hello"}]


def chat(source: str) -> ChatTemplate:
    vocabulary = byte_vocabulary(control=[BOS, EOS], bos_token_id=257, eos_token_id=258)
    return ChatTemplate(source, from_metadata(vocabulary), clock=lambda: NOW)


def test_every_stored_template_has_renderings() -> None:
    assert sorted(STORED) == sorted(path.name for path in (DATA / "templates").iterdir())
    assert all(set(texts) == set(CONVERSATIONS) for texts in STORED.values())


@pytest.mark.parametrize("name", sorted(STORED))
def test_templates_render_as_transformers_does(name: str) -> None:
    found = chat(template_source(name))
    for conversation, expected in STORED[name].items():
        if expected is None:
            with pytest.raises(TemplateError, match="chat template failed"):
                found.render(**CONVERSATIONS[conversation])
        else:
            assert found.render(**CONVERSATIONS[conversation]) == expected


@pytest.mark.parametrize("name", sorted(STORED))
def test_ids_of_a_harmless_chat_are_those_of_its_text(name: str) -> None:
    vocabulary = tokenizer("llama-bpe")
    found = ChatTemplate(template_source(name), vocabulary, clock=lambda: NOW)
    kind = "system" if STORED[name]["system"] is not None else "think"  # some refuse that role
    conversation = CONVERSATIONS[kind]
    text = found.render(**conversation)
    ids = vocabulary.encode(text, markup=True)
    assert found.encode(**conversation) == (ids if ids[0] == 128000 else [128000, *ids])


def test_starter_prompts_have_their_stored_ids() -> None:
    found = chat_template.from_metadata(metadata("smollm"), tokenizer("smollm"))
    assert found is not None
    cases = json.loads((DATA / "starter_prompts.json").read_text())
    assert len(cases) == 5
    for case in cases:
        assert found.render(case["messages"]) == case["prompt"]
        assert found.encode(case["messages"]) == case["prompt_ids"]


def test_a_file_without_a_template_gives_none() -> None:
    vocabulary = byte_vocabulary()
    assert chat_template.from_metadata(vocabulary, from_metadata(vocabulary)) is None


def test_a_template_that_is_no_text_is_refused() -> None:
    vocabulary = {**byte_vocabulary(), "tokenizer.chat_template": np.zeros(3)}
    with pytest.raises(
        TemplateError, match=r"tokenizer\.chat_template must be a string, got ndarray"
    ):
        chat_template.from_metadata(vocabulary, from_metadata(vocabulary))


def test_bos_is_written_once() -> None:
    letters = from_metadata(byte_vocabulary()).encode("Hello")
    vocabulary = byte_vocabulary(control=["<s>"], bos_token_id=257, add_bos_token=True)
    found = from_metadata(vocabulary)
    said = "{{ messages[0].content }}"
    for source in ("{{ bos_token }}" + said, said, "<s>" + said):
        assert ChatTemplate(source, found).encode(HELLO) == [257, *letters]
    without = from_metadata({**vocabulary, "tokenizer.ggml.add_bos_token": False})
    assert ChatTemplate("{{ bos_token }}" + said, without).encode(HELLO) == [257, *letters]
    assert ChatTemplate(said, without).encode(HELLO) == letters


def test_the_digest_is_the_sha256_of_the_source() -> None:
    assert chat("ä").digest == hashlib.sha256("ä".encode()).hexdigest()


def test_the_date_is_the_clocks() -> None:
    assert chat("{{ strftime_now('%Y-%m-%d') }}").render(HELLO) == "2025-01-02"
    found = ChatTemplate("{{ strftime_now('%Y') }}", from_metadata(byte_vocabulary()))
    assert found.render(HELLO) == str(datetime.now().year)


def test_switches_reach_the_template() -> None:
    found = chat("{{ enable_thinking }} {{ add_generation_prompt }} {{ tools }} {{ x is defined }}")
    assert found.render(HELLO) == " True None False"
    assert (
        found.render(HELLO, tools=[{"a": 1}], add_generation_prompt=False, enable_thinking=True)
        == "True False [{'a': 1}] False"
    )


def test_tags_and_filters_that_authors_rely_on_are_there() -> None:
    source = (
        "{%- for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}"
        "{% generation %}{{ {'k': 'é<&>'} | tojson }}{% endgeneration %}"
    )
    assert chat(source).render(HELLO) == '13{"k": "é<&>"}'


def test_an_assistants_reasoning_goes_by_all_its_names() -> None:
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    for name in ("reasoning", "thinking", "reasoning_content"):
        assert chat(source).render([{"role": "assistant", name: "why"}]) == "why why"


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        chat("{{ raise_exception('roles must alternate') }}").render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        *(
            "{% if %}",
            "{{ 1 / 0 }}",
            "{{ none.x.y }}",
            "{{ 'a' + 1 }}",
            "{{ [][3].x }}",
            "{{ f() }}",
        ),
        *("{{ (10 ** 5000) | string }}", r"{{ strftime_now('%Q\ud800') }}", "{{ 'a'.index('b') }}"),
        *("{{ raise_exception('') }}", "{{ {}.x.y }}", "{{ messages | int + 'a' }}"),
    ],
)
def test_a_broken_template_is_an_error_and_the_next_rendering_works(source: str) -> None:
    found = chat(source)
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"chat template failed: .+") as caught:
            found.render(HELLO)
        assert not re.search("|".join(FOREIGN), str(caught.value))


@pytest.mark.parametrize("data", [object(), {1: "x"}, [b"x"], {"a": {"b": np.float32(1)}}, len])
def test_only_plain_data_enters(data: object) -> None:
    with pytest.raises(TypeError, match="chat template input must"):
        chat("x").render([{"role": "user", "content": data}])


def test_odd_text_passes_unchanged() -> None:
    text = "\x00 \ud800 \u2028 \U0010ffff \\u0041 {{ x }} {% y %}\r\n"
    assert chat("{{ messages[0].content }}").render([{"role": "user", "content": text}]) == text


@pytest.mark.parametrize("name", sorted(STORED))
@pytest.mark.alone
def test_rendering_is_quick(name: str) -> None:
    found = chat(template_source(name))
    kind = "turns" if STORED[name]["turns"] is not None else "think"
    found.render(**CONVERSATIONS[kind])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        found.render(**CONVERSATIONS[kind])
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1
