"""Sorted lists of byte ranges [start, end), which never overlap or touch."""

from __future__ import annotations

from collections.abc import Sequence

ByteRange = tuple[int, int]


def add(ranges: Sequence[ByteRange], start: int, end: int) -> list[ByteRange]:
    """Return the ranges with [start, end) added."""
    apart = [one for one in ranges if one[1] < start or one[0] > end]
    met = [one for one in ranges if one[1] >= start and one[0] <= end]
    first = min([start, *(one[0] for one in met)])
    last = max([end, *(one[1] for one in met)])
    return sorted([*apart, (first, last)])


def missing(ranges: Sequence[ByteRange], start: int, end: int) -> list[ByteRange]:
    """Return the parts of [start, end) that no range covers."""
    gaps = []
    for first, last in ranges:
        if last <= start:
            continue
        if first >= end:
            break
        if first > start:
            gaps.append((start, first))
        start = last
    if start < end:
        gaps.append((start, end))
    return gaps


def merge(ranges: Sequence[ByteRange]) -> list[ByteRange]:
    """Sort and merge byte ranges. Raises ValueError if a range is invalid."""
    merged: list[ByteRange] = []
    for first, last in ranges:
        if not 0 <= first < last:
            raise ValueError(f"invalid byte range {first}-{last}")
        merged = add(merged, first, last)
    return merged


def without(ranges: Sequence[ByteRange], others: Sequence[ByteRange]) -> list[ByteRange]:
    """Return the bytes in `ranges` that are not in `others`."""
    taken = merge(others)
    return [gap for first, last in ranges for gap in missing(taken, first, last)]


def clip(ranges: Sequence[ByteRange], end: int) -> list[ByteRange]:
    """Return the ranges, clipped at `end`."""
    return [(first, min(last, end)) for first, last in ranges if first < end]


def count(ranges: Sequence[ByteRange]) -> int:
    """Return the total number of bytes in the ranges."""
    return sum(last - first for first, last in ranges)


def prefix(ranges: Sequence[ByteRange]) -> int:
    """Return the number of contiguous bytes starting at 0."""
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0
