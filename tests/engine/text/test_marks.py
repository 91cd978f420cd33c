"""Special tokens are found as by cutting the text at each in turn, and in bounded time."""

from __future__ import annotations

import random
import time

import pytest

from engine.text.chat_template import ChatTemplate
from engine.text.marks import Marks
from engine.text.tokenizer import from_metadata
from support.vocab import byte_vocabulary

MANY = 100_000
PROSE = "A <b>word</b> of <|code|> in 12 lines.\n"


def cut_in_turn(text: str, ids: dict[str, int]) -> list[str | int]:
    """The slow way: split the text at each token, the longest first."""
    fragments: list[str | int] = [text]
    for mark, id in sorted(ids.items(), key=lambda item: -len(item[0].encode())):
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
                continue
            first, *others = fragment.split(mark)
            cut += [first, *(part for words in others for part in (id, words))]
        fragments = cut
    return [fragment for fragment in fragments if fragment != ""]


@pytest.mark.parametrize("letters", ["ab", "abc", "aé中", "[]-&^\\"])
def test_marks_cut_as_the_slow_way_does(letters: str) -> None:
    chance = random.Random(letters)
    for _ in range(2000):
        words = ("".join(chance.choices(letters, k=chance.randrange(1, 7))) for _ in range(9))
        ids = {word: id for id, word in enumerate(dict.fromkeys(words))}
        text = "".join(chance.choices(letters, k=chance.randrange(30)))
        parts = [part for pair in Marks(ids).split(text) for part in pair]
        assert [part for part in parts if part not in ("", None)] == cut_in_turn(text, ids)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ([f"<|t{n}|>" for n in range(MANY)], "<|t"),
        ([f"{n}w" for n in range(MANY)], "1234567890"),
        (["a" * n + "b" for n in range(1, 2000)], "a"),
        (["a" * n for n in range(1, 2000)], "a"),
    ],
    ids=["starts", "numbers", "near", "nested"],
)
def test_no_vocabulary_makes_a_text_slow(marks: list[str], text: str) -> None:
    found = Marks({mark: id for id, mark in enumerate(marks)})
    start = time.perf_counter()
    found.find((text * 100_000)[:100_000])
    assert time.perf_counter() - start < 5  # about 0.5 on one idle core


@pytest.mark.alone
@pytest.mark.process
@pytest.mark.parametrize("kind", ["control", "user_defined"])
def test_many_special_tokens_do_not_slow_a_prompt(kind: str) -> None:
    marks = [f"<|t{n}|>" for n in range(MANY)]
    found = from_metadata(byte_vocabulary(**{kind: marks}))
    chat = ChatTemplate("{{ messages[0].content }}", found)
    chat.encode([{"role": "user", "content": "warm"}])
    for text in ((PROSE * 6000)[:225_000], "".join(marks)[:225_000]):
        start = time.perf_counter()
        ids = chat.encode([{"role": "user", "content": text}])
        assert time.perf_counter() - start < 8  # about 1 on one idle core
        assert found.decode(ids) == text
