"""Lists of byte ranges [start, end): sorted, disjoint, never adjacent."""

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
    """Sort and merge any ranges. Raises ValueError for an invalid one."""
    merged: list[ByteRange] = []
    for first, last in ranges:
        if not 0 <= first < last:
            raise ValueError(f"{first}-{last} is not a byte range")
        merged = add(merged, first, last)
    return merged


def without(ranges: Sequence[ByteRange], others: Sequence[ByteRange]) -> list[ByteRange]:
    """Return the ranges minus all others."""
    taken = merge(others)
    return [gap for first, last in ranges for gap in missing(taken, first, last)]


def clip(ranges: Sequence[ByteRange], end: int) -> list[ByteRange]:
    """Return the ranges cut off at `end`."""
    return [(first, min(last, end)) for first, last in ranges if first < end]


def count(ranges: Sequence[ByteRange]) -> int:
    """Return the total number of bytes."""
    return sum(last - first for first, last in ranges)


def prefix(ranges: Sequence[ByteRange]) -> int:
    """Return the number of contiguous bytes from 0."""
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0
