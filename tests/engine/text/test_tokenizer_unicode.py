"""llama.cpp's ids for 2,000 mixed strings per kind of vocabulary, and text that is barely text."""

from __future__ import annotations

import time

import pytest

from support.strings import mixed_strings
from support.vocab import ALL, llama_cpp_ids, tokenizer

STRINGS = mixed_strings(2000)


@pytest.mark.parametrize("name", ALL)
def test_mixed_strings_give_the_ids_of_llama_cpp(name: str) -> None:
    found, expected = tokenizer(name), llama_cpp_ids(name)
    assert len(expected) == len(STRINGS)
    wrong = [text for text, ids in zip(STRINGS, expected, strict=True) if found.encode(text) != ids]
    assert wrong == []


@pytest.mark.parametrize("name", ALL)
def test_mixed_strings_come_back(name: str) -> None:
    found = tokenizer(name)
    for text in STRINGS:
        # Scored vocabularies write a space as U+2581 and cannot tell the two apart.
        expected = text.replace("▁", " ") if name == "llama-spm" else text
        assert found.decode(found.encode(text)) == expected


@pytest.mark.parametrize("name", ALL)
def test_mixed_strings_are_the_same_ids_as_markup_once_they_spell_none(name: str) -> None:
    found = tokenizer(name)
    marks = [*found.control, *found.unknown]
    for text in STRINGS[:500]:
        if not any(mark in text for mark in marks):
            assert found.encode(text, markup=True) == found.encode(text)


@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
def test_surrogates_become_characters(name: str) -> None:
    found = tokenizer(name)
    assert found.encode("a\ud83d\ude00b") == found.encode("a😀b")
    assert found.decode(found.encode("a\udc00b")) == "a\ufffdb"


@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
@pytest.mark.parametrize("unit", ["The quick brown fox, 1234 times.\n", "a", " ", "语", "\n"])
def test_long_text_is_quick(name: str, unit: str) -> None:
    found = tokenizer(name)
    found.encode(unit)
    text = unit * (225_000 // len(unit.encode()))
    start = time.perf_counter()
    ids = found.encode(text)
    assert time.perf_counter() - start < 3  # about 0.3 on one idle core
    assert found.decode(ids) == text
