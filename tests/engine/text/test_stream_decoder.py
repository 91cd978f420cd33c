"""Decoding ids one at a time gives the text of all of them, and never a part of a character."""

from __future__ import annotations

import random

import pytest

from engine.text.tokenizer import Tokenizer, from_metadata
from support.vocab import REAL, byte_vocabulary, scored_vocabulary, tokenizer


def streamed(found: Tokenizer, ids: list[int]) -> list[str]:
    stream = found.stream()
    return [*(stream.push(id) for id in ids), stream.finish()]


@pytest.mark.parametrize("name", REAL)
def test_random_ids_stream_to_what_decode_gives(name: str) -> None:
    found = tokenizer(name)
    rng = random.Random(7)
    # Half of the ids are of characters cut into bytes, where splitting could show.
    cut = [id for text in ("语言", "😀👩‍🚀", "ᏣᎳᎩ", "é½") for id in found.encode(text)]
    for _ in range(2000):
        ids = [
            rng.choice(cut) if rng.random() < 0.5 else rng.randrange(found.vocab_size)
            for _ in range(rng.randint(1, 12))
        ]
        pieces = streamed(found, ids)
        whole = found.decode(ids)
        assert "".join(pieces) == whole
        assert "".join(pieces).count("\ufffd") == whole.count("\ufffd")


@pytest.mark.parametrize("name", REAL)
def test_text_streams_without_replacement_characters(name: str) -> None:
    text = "naïve 语言 😀👨‍👩‍👧‍👦 नमस्ते ½"
    found = tokenizer(name)
    pieces = streamed(found, found.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_out_whole_with_its_last_byte() -> None:
    found = from_metadata(byte_vocabulary())
    assert streamed(found, found.encode("é!")) == ["", "é", "!", ""]
    assert streamed(found, found.encode("😀")) == ["", "", "", "😀", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    found = from_metadata(byte_vocabulary())
    ids = found.encode("x😀")[:-1]
    assert streamed(found, ids) == ["x", "", "", "", "\ufffd"]
    assert found.decode(ids) == "x\ufffd"


def test_a_byte_that_fits_nowhere_is_replaced_at_once() -> None:
    found = from_metadata(byte_vocabulary())
    first = found.encode("é")[0]
    assert streamed(found, [first, *found.encode("a")]) == ["", "\ufffda", ""]


def test_the_space_before_scored_text_is_dropped_once() -> None:
    found = from_metadata(scored_vocabulary({"▁": -9, "a": -9, "▁a": -1}))
    bos, a = 1, 261
    assert streamed(found, [bos, a, a]) == ["", "a", " a", ""]
    assert found.decode([bos, a, a]) == "a a"
