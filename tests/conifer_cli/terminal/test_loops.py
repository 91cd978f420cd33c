"""Answers that repeat themselves are noticed once, others never."""

from __future__ import annotations

import random

import pytest

from conifer_cli.terminal.loops import LoopWatch, repeats

POEM = "".join(f"Line {n} of a text in which every line begins alike.\n" for n in range(200))


def noticed(text: str, seed: int = 0) -> list[int]:
    """Push a text in pieces. Return where it was noticed."""
    chance, watch, at, found = random.Random(seed), LoopWatch(), 0, []
    while at < len(text):
        step = chance.randint(1, 9)
        at += step
        if watch.push(text[at - step : at]):
            found.append(at)
    return found


@pytest.mark.parametrize(
    "piece", ["i'm just a chat. ", "ab", "one\ntwo\nthree\n" * 4, "x" * 99 + "y"]
)
def test_a_loop_is_noticed_once_and_soon(piece):
    [at] = noticed(POEM[:900] + piece * (4000 // len(piece)))
    assert at <= 900 + 5 * max(len(piece), 300) + 200


@pytest.mark.parametrize("text", [POEM, "-" * 3000, "no no no, " * 9 + POEM, "", "short"])
def test_other_texts_are_none(text):
    assert noticed(text) == [] and not repeats(text)
