"""Colour the code in an answer, line by line.

A model wrote the code, so it is untrusted: the time for a line must be linear in its length. No
pattern can match the same text in two ways. docs/decisions/0007-live-markdown.md explains why
Conifer does not use a library's lexers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

from conifer_cli.terminal.inline import Row, Span
from conifer_cli.terminal.languages import (
    BY_NAME,
    CLASS_WORDS,
    FUNCTION_WORDS,
    LINE_BY_LINE,
    Language,
)

COMMENT, KEYWORD, CONSTANT, STRING, NAME, CLASS = "2", "35", "36", "32", "34", "33"
_STYLES = {"comment": COMMENT, "number": CONSTANT, "tag": NAME, "decorator": CLASS}
_DIFF = ((("diff ", "index "), "1"), (("@@",), "36"), (("+",), "32"), (("-",), "31"))
_QUOTE_OR_ESCAPE = {quote: re.compile(rf"\\.|{quote}") for quote in "\"'"}
_COLON = re.compile(r"\s*:")


def lexer_for(name: str) -> Callable[[str], Row] | None:
    """Return a function that colours the next line, or None for an unknown language."""
    name = name.lower()
    if name in LINE_BY_LINE:
        return _diff_line
    return _Lexer(BY_NAME[name]).line if name in BY_NAME else None


def _diff_line(text: str) -> Row:
    style = next((style for starts, style in _DIFF if text.startswith(starts)), "")
    return [(style, text)] if text else []


class _Lexer:
    """Reads one language line by line. Keeps the end mark and style of an open block."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._words, self._pattern = _vocabulary(language), _pattern(language)
        self._closes = self._style = ""

    def line(self, text: str) -> Row:
        """Return the next line's spans."""
        return [span for span in self._spans(text) if span[1]]

    def _spans(self, text: str) -> Iterator[Span]:
        at = self._block_end(text, 0) if self._closes else 0
        yield self._style, text[:at]
        unclosed = before = ""  # unclosed quotes; the last word, if only spaces follow
        while found := self._pattern.search(text, at):
            kind, start, end = found.lastgroup or "", found.start(), found.end()
            yield "", text[at:start]
            before = "" if text[at:start].strip() else before
            style = _STYLES.get(kind, "")
            if kind == "block":
                self._closes = dict(self._language.blocks)[found[0]]
                style = self._style = COMMENT if found[0].strip("\"'`[") else STRING
                end = self._block_end(text, end)
            elif kind == "quote" and found[0] not in unclosed:
                end, style = self._string(text, found)
                unclosed += "" if style else found[0]
            elif kind == "word":
                style = self._word_style(text, found, before)
            yield style, text[start:end]
            at, before = end, found[0]
        yield "", text[at:]

    def _block_end(self, text: str, at: int) -> int:
        """Return where the open block ends: after its end mark, or at the end of the line."""
        end = text.find(self._closes, at)
        if end < 0:
            return len(text)
        end += len(self._closes)
        self._closes = ""
        return end

    def _string(self, text: str, found: re.Match[str]) -> tuple[int, str]:
        marks = _QUOTE_OR_ESCAPE[found[0]].finditer(text, found.end())
        end = next((mark.end() for mark in marks if mark[0] == found[0]), None)
        if end is None:
            return found.end(), ""
        return end, NAME if self._language.keys and _COLON.match(text, end) else STRING

    def _word_style(self, text: str, found: re.Match[str], before: str) -> str:
        if before in FUNCTION_WORDS and before in self._words:
            return NAME
        if before in CLASS_WORDS and before in self._words:
            return CLASS
        if self._language.keys and _COLON.match(text, found.end()):
            return NAME
        return self._words.get(found[0].lower() if self._language.ignore_case else found[0], "")


@cache
def _vocabulary(language: Language) -> dict[str, str]:
    """Return the style of each keyword and constant."""
    styles = dict.fromkeys(language.constants.split(), CONSTANT)
    styles |= dict.fromkeys(language.words.split(), KEYWORD)
    return {word.lower(): styles[word] for word in styles} if language.ignore_case else styles


@cache
def _pattern(language: Language) -> re.Pattern[str]:
    """Return a pattern for the next text that is not plain.

    Each alternative is a fixed text, a run of one class of characters, or both, so that no search
    reads a position more than a few times.
    """
    hyphen = "-" if language.hyphens else ""
    # "#" and ";" begin a comment only after a space: "$#" and "a;" have none.
    comments = [
        (r"(?<!\S)" if mark in "#;" else "") + re.escape(mark) for mark in language.comments
    ]
    parts = {
        "block": "|".join(re.escape(start) for start, _ in language.blocks),
        "comment": "|".join(f"{mark}.*" for mark in comments),
        "quote": f"[{language.quotes}]" if language.quotes else "",
        "tag": r"</?[^\W\d][\w:.-]*" if language.tags else "",
        "decorator": r"@[\w.-]*" if language.decorators else "",
        "word": rf"\$?[^\W\d][\w{hyphen}]*",  # "$for" is a variable, not a keyword
        "number": r"\d[\w.]*",
    }
    return re.compile("|".join(f"(?P<{kind}>{text})" for kind, text in parts.items() if text))
