"""Highlight the code in an answer line by line, with Pygments lexers."""

from __future__ import annotations

from collections.abc import Callable

from conifer_cli.terminal.inline import Row

CONTEXT = 1500  # preceding characters to lex with each line, for multi-line strings
LONGEST_LINE = 500  # characters; longer lines are not highlighted
COLOURS = {  # Pygments token type -> SGR parameters; other types use their parent's
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


def lexer_for(name: str) -> Callable[[str], Row] | None:
    """Return a function that highlights the next line, or None for an unknown language."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(name, stripnl=False)
    except ClassNotFound:
        return None
    before: list[str] = []

    def line(text: str) -> Row:
        start = "".join(before)
        before.append(text + "\n")
        while sum(map(len, before)) > CONTEXT and len(before) > 1:
            del before[0]
        if len(text) > LONGEST_LINE:
            return [("", text)]
        spans: Row = []
        for at, kind, part in lexer.get_tokens_unprocessed(start + text + "\n"):
            if at + len(part) > len(start):
                spans.append((_colour(tuple(kind)), part[max(len(start) - at, 0) :].rstrip("\n")))
        return [span for span in spans if span[1]]

    return line


def _colour(kind: tuple[str, ...]) -> str:
    names = (".".join(kind[:size]) for size in range(len(kind), 0, -1))
    return next((COLOURS[name] for name in names if name in COLOURS), "")
