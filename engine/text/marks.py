"""Find special tokens in text, in time that hardly depends on how many of them there are.

Longer tokens take precedence, wherever they occur. Among tokens of equal length, the first in
the vocabulary does, then the leftmost occurrence.
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Found(NamedTuple):
    """A token in a text, from `start` to `end`."""

    start: int
    end: int
    id: int


class Marks:
    """Special tokens, as ids by text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        texts = sorted(filter(None, ids))
        self._texts, self._ids = texts, ids
        self._rank = {text: (-len(text.encode()), rank) for rank, text in enumerate(ids)}
        self._longest = max(map(len, texts), default=0)
        self._prefixes = _prefixes(texts)
        self._start = _starts(texts)

    def find(self, text: str) -> list[Found]:
        """Return the tokens in the text, from left to right. They do not overlap."""
        queue = [
            (*self._rank[mark], match.start(), mark)
            for match in self._start.finditer(text)
            if (mark := self._at(text, match.start(), self._longest))
        ]
        heapq.heapify(queue)
        found: dict[int, Found] = {}
        owner: dict[int, int] = {}  # for each position in a token, the token's start
        while queue:
            *_, start, mark = heapq.heappop(queue)
            if start in owner:
                continue
            end = start + len(mark)
            # Shorter tokens are still in the queue, so a conflict covers this token's end.
            if end - 1 in owner:
                shorter = self._at(text, start, owner[end - 1] - start)
                if shorter:
                    heapq.heappush(queue, (*self._rank[shorter], start, shorter))
                continue
            found[start] = Found(start, end, self._ids[mark])
            owner.update(dict.fromkeys(range(start, end), start))
        return [found[start] for start in sorted(found)]

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the text before each token with the token's id, then the rest with None."""
        at = 0
        for start, end, id in self.find(text):
            yield text[at:start], id
            at = end
        yield text[at:], None

    def _at(self, text: str, start: int, limit: int) -> str:
        """Return the longest token of at most `limit` characters at `start`, or an empty string."""
        window = text[start : start + limit]
        # All tokens that the window starts with are prefixes of the last token that sorts before.
        at = bisect_right(self._texts, window) - 1
        if at < 0:
            return ""
        near = self._texts[at]
        if window.startswith(near):
            return near
        sizes = self._prefixes.get(near, ())
        fitting = bisect_left(sizes, True, key=lambda size: not window.startswith(near[:size]))
        return near[: sizes[fitting - 1]] if fitting else ""


def _starts(texts: list[str]) -> re.Pattern[str]:
    """Return a pattern for the places where a token may start, judged by its first two letters."""
    seconds: dict[str, set[str]] = {}
    for text in texts:
        seconds.setdefault(text[0], set()).add(text[1:2])
    starts = [
        re.escape(first) + ("" if "" in then else f"(?=[{''.join(map(re.escape, sorted(then)))}])")
        for first, then in seconds.items()
    ]
    return re.compile("|".join(starts) or "(?!)")


def _prefixes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the lengths of the tokens that each of these sorted tokens starts with, if any."""
    found: dict[str, tuple[int, ...]] = {}
    open_: list[str] = []  # each starts with the one before
    for text in texts:
        while open_ and not text.startswith(open_[-1]):
            open_.pop()
        if open_:
            found[text] = tuple(map(len, open_))
        open_.append(text)
    return found
