"""Which bytes of a file are there: spans [start, end), sorted, disjoint, never touching.

Pure functions on lists of pairs; a handful of spans is the most there ever are.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]


def add(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """Return the spans with the bytes from start to end added."""
    apart = [span for span in spans if span[1] < start or span[0] > end]
    met = [span for span in spans if span[1] >= start and span[0] <= end]
    first = min([start, *(span[0] for span in met)])
    last = max([end, *(span[1] for span in met)])
    return sorted([*apart, (first, last)])


def missing(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """Return which bytes from start to end are in none of the spans."""
    gaps = []
    for span_start, span_end in spans:
        if span_end <= start:
            continue
        if span_start >= end:
            break
        if span_start > start:
            gaps.append((start, span_start))
        start = span_end
    if start < end:
        gaps.append((start, end))
    return gaps


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Return what the spans have and no other has."""
    taken: list[Span] = []
    for first, last in others:
        taken = add(taken, first, last)
    return [gap for first, last in spans for gap in missing(taken, first, last)]


def clip(spans: Sequence[Span], end: int) -> list[Span]:
    """Return the spans without what lies at `end` or after it."""
    return [(first, min(last, end)) for first, last in spans if first < end]


def count(spans: Sequence[Span]) -> int:
    """Return how many bytes there are in all."""
    return sum(last - first for first, last in spans)


def prefix(spans: Sequence[Span]) -> int:
    """Return how many bytes there are from 0 on without a gap."""
    return spans[0][1] if spans and spans[0][0] == 0 else 0
