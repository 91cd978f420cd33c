"""Inline Markdown: parse the emphasis, code and links in a line into styled spans.

The text must already be clean. Underscores are literal: in answers they appear in names far more
often than as emphasis.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property

Span = tuple[str, str]  # (SGR parameters, text)
Row = list[Span]

BOLD, DIM, ITALIC, UNDERLINE, STRUCK, CODE = "1", "2", "3", "4", "9", "36"

_MARKS = "*`~\\"
_INLINE = re.compile(
    r"\\(?P<escaped>[\\`*_{}\[\]()#+.!|>~-])|(?P<code>`+)|(?P<emphasis>\*\*\*|\*\*|~~|\*)"
    r"|\[(?P<link>[^\]\[]+)\]\((?P<target>[^()\s]*)\)"
)
_EMPHASIS = {"***": f"{BOLD};{ITALIC}", "**": BOLD, "~~": STRUCK, "*": ITALIC}
_CLOSES = {
    "***": re.compile(r"(?<!\s)\*\*\*"),
    "**": re.compile(r"(?<!\s)\*\*"),
    "~~": re.compile(r"(?<!\s)~~"),
    "*": re.compile(r"(?<![\s*])\*(?!\*)"),
}
_BACKTICKS = re.compile("`+")


def cells(text: str) -> int:
    """Return the width of text on a terminal, in columns."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def width_of(row: Row) -> int:
    return sum(cells(text) for _, text in row)


def joined(row: Row) -> Row:
    """Merge adjacent spans that have the same style."""
    whole: Row = []
    for style, text in row:
        if whole and whole[-1][0] == style:
            whole[-1] = (style, whole[-1][1] + text)
        else:
            whole.append((style, text))
    return whole


def inline(text: str, style: str, ended: bool) -> Row:
    """Parse a line into spans, in time linear in its length.

    Unless `ended`, drop markers at the end of the line and close open ones there.
    """
    text = text if ended else text.rstrip(_MARKS)
    return [span for span in _Parser(text).spans(0, len(text), style, ended) if span[1]]


class _Parser:
    """Reads a line once: each search for a closing mark starts where the last one ended."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._closing: dict[str, tuple[int, int]] = {}  # mark: (searched from, found)

    @cached_property
    def _runs(self) -> dict[int, list[int]]:
        """Where runs of backticks start, by their length."""
        runs: dict[int, list[int]] = {}
        for run in _BACKTICKS.finditer(self._text):
            runs.setdefault(len(run[0]), []).append(run.start())
        return runs

    def spans(self, start: int, end: int, style: str, ended: bool) -> Iterator[Span]:
        """Yield the spans of text[start:end]."""
        at, text = start, self._text
        while found := _INLINE.search(text, at, end):
            yield style, text[at : found.start()]
            at, kind = found.end(), found.lastgroup
            if kind == "escaped":
                yield style, found["escaped"]
            elif kind == "target":  # the last group in a link
                yield from _link(found, style)
            elif kind == "code":
                code, at = self._code(found, end, ended)
                yield (styled(style, CODE) if code else style), code or found[0]
            elif not self._opens(found, start, end, ended):
                yield style, found[0]
            else:
                inner = styled(style, _EMPHASIS[found[0]])
                closing = self._closer(found[0], at + 1)
                if closing + len(found[0]) <= end:
                    yield from self.spans(at, closing, inner, True)
                    at = closing + len(found[0])
                elif ended:
                    yield style, found[0]
                else:  # the rest of the line is emphasised until the closing mark arrives
                    start, style = at, inner
        yield style, text[at:end]

    def _code(self, found: re.Match[str], end: int, ended: bool) -> tuple[str, int]:
        """Return the code after a run of backticks, or "" if there is none, and where it ends."""
        text, start = self._text, found.end()
        runs = self._runs.get(len(found[0]), [])
        at = bisect_left(runs, start)
        closing = runs[at] if at < len(runs) else len(text)
        closed = closing + len(found[0]) <= end
        if not closed and (ended or not cells(text[start : start + 1])):
            return "", start
        code = text[start : closing if closed else end]
        if len(code) > 1 and code.startswith(" ") and code.endswith(" ") and code.strip():
            code = code[1:-1]
        return code, closing + len(found[0]) if closed else end

    def _opens(self, found: re.Match[str], start: int, end: int, ended: bool) -> bool:
        before = self._text[max(found.start() - 1, start) : found.start()]
        after = self._text[found.end() : min(found.end() + 1, end)]
        within_word = before.isalnum() and after.isalnum()
        opens = not within_word or (ended and found[0] == "**")
        return opens and bool(after.strip()) and bool(cells(after))

    def _closer(self, mark: str, at: int) -> int:
        """Return the start of the first closing mark from `at` on, past the end if there is none.

        Each search starts where the last one ended, so together they read the line once per mark.
        """
        searched, found = self._closing.get(mark, (at, -1))
        if not searched <= at <= found:
            closing = _CLOSES[mark].search(self._text, at)
            found = closing.start() if closing else len(self._text)
            self._closing[mark] = at, found
        return found


def _link(found: re.Match[str], style: str) -> Iterator[Span]:
    yield from inline(found["link"], styled(style, UNDERLINE), True)
    if found["target"] and found["target"] != found["link"]:
        yield styled(style, DIM), f" ({found['target']})"


def styled(style: str, more: str) -> str:
    """Combine two styles."""
    parts = filter(None, [*style.split(";"), *more.split(";")])
    return ";".join(dict.fromkeys(parts))
