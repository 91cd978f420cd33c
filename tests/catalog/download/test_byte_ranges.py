"""Spans of bytes, against a set of numbers."""

from __future__ import annotations

import itertools
import random

from catalog.download import byte_ranges


def numbers(found: list[byte_ranges.ByteRange]) -> set[int]:
    return {at for first, last in found for at in range(first, last)}


def test_spans_behave_as_sets_of_numbers_do() -> None:
    draw = random.Random(0)
    for _ in range(300):
        here: list[byte_ranges.ByteRange] = []
        for _ in range(6):
            start = draw.randrange(30)
            here = byte_ranges.add(here, start, start + draw.randrange(1, 8))
        assert all(a[1] < b[0] for a, b in itertools.pairwise(here))
        inside = numbers(here)
        assert byte_ranges.count(here) == len(inside)
        assert numbers(byte_ranges.missing(here, 3, 33)) == set(range(3, 33)) - inside
        assert numbers(byte_ranges.clip(here, 20)) == {at for at in inside if at < 20}
        other = byte_ranges.missing(here, 0, 40)
        assert byte_ranges.without(here, other) == here
        assert byte_ranges.without([(0, 40)], here) == other
        assert set(range(byte_ranges.prefix(here))) <= inside
        assert byte_ranges.prefix(here) not in inside
