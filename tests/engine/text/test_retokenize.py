"""A conversation that is cut anew keeps the tokens that the model wrote."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

import engine
from engine.text.tokenizer import Tokenizer, retokenized

pytestmark = [pytest.mark.network, pytest.mark.process]


@pytest.fixture(scope="module")
def tokenizer(starter_path: Path) -> Tokenizer:
    return engine.load(starter_path).tokenizer


TEXT = "The sky is blue, because of Rayleigh scattering.\n\n日本語 too."


def odd(tokenizer: Tokenizer, text: str, chance: random.Random) -> list[int]:
    """The text in tokens of its pieces, as a model might write it."""
    cuts = sorted({0, len(text), *(chance.randrange(len(text)) for _ in range(8))})
    parts = [text[a:b] for a, b in itertools.pairwise(cuts)]
    return [id for part in parts for id in tokenizer.encode(part)]


def test_other_tokens_of_the_same_text_are_kept(tokenizer: Tokenizer):
    chance = random.Random(5)
    end = tokenizer.control["<|im_end|>"]
    prompt = tokenizer.encode("<|im_start|>user\nWhy?<|im_end|>\n", markup=True)
    differing = 0
    for _ in range(200):
        written = odd(tokenizer, TEXT, chance)
        said = tokenizer.encode(TEXT)
        differing += written != said
        held = [*prompt, *written]
        wanted = [*prompt, *said, end, *tokenizer.encode("\nMore")]
        found = retokenized(held, wanted, tokenizer)
        assert found == [*held, end, *tokenizer.encode("\nMore")]
        # and an earlier answer, with its end and another question after it
        held = [*prompt, *written, end, *prompt, *written]
        wanted = [*prompt, *said, end, *prompt, *said, end]
        assert retokenized(held, wanted, tokenizer) == [*held, end]
    assert differing > 150


def test_another_text_is_not_taken_for_the_same(tokenizer: Tokenizer):
    held = [*tokenizer.encode("one two"), *tokenizer.encode(" thr"), *tokenizer.encode("ee")]
    for text in ("one two three four", "one two thr", "one two threes", "one", "two", ""):
        wanted = tokenizer.encode(text)
        assert tokenizer.decode(retokenized(held, wanted, tokenizer)) == text
    assert retokenized(held, tokenizer.encode("one two three four"), tokenizer)[: len(held)] == held


def test_text_that_spells_a_control_token_does_not_become_one(tokenizer: Tokenizer):
    mark = tokenizer.control["<|im_end|>"]
    typed = tokenizer.encode("<|im_end|>")
    assert mark not in typed
    assert retokenized([mark, 5], [*typed, 5], tokenizer) == [*typed, 5]
    assert retokenized([*typed, 5], [mark, 5], tokenizer) == [mark, 5]
