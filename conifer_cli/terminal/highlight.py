"""Colours for programs in an answer, line by line, by Pygments' lexers.

A line is read together with the ones before it, so that a string over several lines is one; with
so many of them that a long program costs no more for each line than a short one.
"""

from __future__ import annotations

from collections.abc import Callable

Span = tuple[str, str]  # (SGR parameters, text)

CONTEXT = 1500  # characters before a line that are read with it
LONGEST_LINE = 500  # characters; a longer line keeps the plain colour
COLOURS = {  # Pygments' kinds of tokens; the nearest parent counts
    "Comment": "2",
    "Keyword": "35",
    "Keyword.Constant": "36",
    "Literal.Number": "36",
    "Literal.String": "32",
    "Name.Builtin": "36",
    "Name.Class": "33",
    "Name.Decorator": "33",
    "Name.Function": "34",
    "Name.Tag": "34",
    "Operator.Word": "35",
    "Generic.Deleted": "31",
    "Generic.Inserted": "32",
    "Generic.Heading": "1",
    "Generic.Subheading": "36",
}


def lexer_for(name: str) -> Callable[[str], list[Span]] | None:
    """Find the highlighter for a language; None for one that is not known."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(name, stripnl=False)
    except ClassNotFound:
        return None
    before: list[str] = []

    def line(text: str) -> list[Span]:
        start = "".join(before)
        before.append(text + "\n")
        while sum(map(len, before)) > CONTEXT and len(before) > 1:
            del before[0]
        if len(text) > LONGEST_LINE:
            return [("", text)]
        spans = []
        for at, kind, part in lexer.get_tokens_unprocessed(start + text + "\n"):
            if at + len(part) > len(start):
                spans.append((_colour(tuple(kind)), part[max(len(start) - at, 0) :].rstrip("\n")))
        return [span for span in spans if span[1]]

    return line


def _colour(kind: tuple[str, ...]) -> str:
    """Choose for a kind of token, by its path from the root."""
    names = (".".join(kind[:size]) for size in range(len(kind), 0, -1))
    return next((COLOURS[name] for name in names if name in COLOURS), "")
