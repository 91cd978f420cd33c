"""Spans of bytes, against a set of numbers."""

from __future__ import annotations

import itertools
import random

from catalog import spans


def numbers(found: list[spans.Span]) -> set[int]:
    return {at for first, last in found for at in range(first, last)}


def test_spans_behave_as_sets_of_numbers_do() -> None:
    draw = random.Random(0)
    for _ in range(300):
        here: list[spans.Span] = []
        for _ in range(6):
            start = draw.randrange(30)
            here = spans.add(here, start, start + draw.randrange(1, 8))
        assert all(a[1] < b[0] for a, b in itertools.pairwise(here))
        inside = numbers(here)
        assert spans.count(here) == len(inside)
        assert numbers(spans.missing(here, 3, 33)) == set(range(3, 33)) - inside
        assert numbers(spans.clip(here, 20)) == {at for at in inside if at < 20}
        other = spans.missing(here, 0, 40)
        assert spans.without(here, other) == here
        assert spans.without([(0, 40)], here) == other
        assert set(range(spans.prefix(here))) <= inside
        assert spans.prefix(here) not in inside
