"""Lay out styled rows for a terminal's width: wrap at words, and drop a table's least columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from conifer_cli.terminal.inline import BOLD, CODE, ITALIC, Row, Span, cells, joined, width_of
from conifer_cli.terminal.sanitize import clean, clean_line

GOOD, WARNING, BAD, FAINT = "32", "33", "31", "2"
PROSE_WIDTH = 100  # columns; longer lines are hard to read
LEAST_CELL = 12  # columns that a wrapped cell keeps, even if the table is then too wide
GAP = "  "

Cell = str | Span
_COMMAND = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True)
class Column:
    """A table's column. rank: columns with the highest rank are dropped first; 0 is never.

    least: its width in columns, even if no cell is so wide.
    """

    head: str = ""
    right: bool = False
    rank: int = 0
    least: int = 0


class Grid:
    """A table that fits a terminal: it drops columns, then wraps its widest text at words."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        self._columns = list(columns)
        self._rows = [
            [(style, clean_line(text)) for style, text in map(_span, row)] for row in rows
        ]
        if any(column.head for column in columns):
            self._rows.insert(0, [(BOLD, column.head) for column in columns])

    def lines(self, width: int | None) -> list[Row]:
        """Return the rows for a width in columns. None: as wide as necessary."""
        shown = list(range(len(self._columns)))
        sizes = [
            max([column.least, *(cells(row[at][1]) for row in self._rows)])
            for at, column in enumerate(self._columns)
        ]
        while width is not None and _width(sizes, shown) > width:
            least = max(shown, key=lambda at: (self._columns[at].rank, at))
            if not self._columns[least].rank:
                break
            shown.remove(least)
        texts = [at for at in shown if not self._columns[at].right] or shown
        while width is not None and _width(sizes, shown) > width:
            widest = max(texts, key=lambda at: sizes[at])
            if sizes[widest] <= LEAST_CELL:
                break
            sizes[widest] -= 1
        return [line for row in self._rows for line in self._row(row, shown, sizes)]

    def _row(self, row: list[Span], shown: list[int], sizes: list[int]) -> list[Row]:
        parts = {at: wrap(marked(row[at]), sizes[at]) for at in shown}
        height = max((len(part) for part in parts.values()), default=0)
        return [
            self._line([part[n] if n < len(part) else [] for part in parts.values()], shown, sizes)
            for n in range(height)
        ]

    def _line(self, parts: list[Row], shown: list[int], sizes: list[int]) -> Row:
        line: Row = []
        for at, part in zip(shown, parts, strict=True):
            space = ("", " " * (sizes[at] - width_of(part)))
            line += [("", GAP)] if line else []
            line += [space, *part] if self._columns[at].right else [*part, space]
        return stripped(line)


Line = str | Row | Grid


def labelled(pairs: Iterable[tuple[str, Cell]]) -> Grid:
    """Return (label, value) pairs as a table with one pair per row."""
    return Grid([Column(), Column()], [(f"{label}:", value) for label, value in pairs])


def marked(text: Cell) -> Row:
    """Return text as spans, with commands in backticks coloured."""
    style, text = _span(text)
    row, at = [], 0  # type: Row, int
    for found in _COMMAND.finditer(text):
        row += [(style, text[at : found.start()]), (style or CODE, found[0])]
        at = found.end()
    return [span for span in [*row, (style, text[at:])] if span[1]]


def plain(row: Row) -> str:
    """Return a row's text without its styles."""
    return "".join(text for _, text in row)


def painted(row: Row) -> str:
    """Return a row with escape sequences for its styles."""
    return "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in row if text)


def stripped(row: Row) -> Row:
    """Return a row without spaces at its end."""
    row = joined([span for span in row if span[1]])
    while row and not (bare := row[-1][1].rstrip(" ")):
        row.pop()
    return [*row[:-1], (row[-1][0], bare)] if row else []


def rows_of(line: Line, width: int | None) -> list[Row]:
    """Return the rows of a line or table, cleaned. width: in columns; None: unlimited."""
    if isinstance(line, Grid):
        return line.lines(width)
    if isinstance(line, list):
        row = [(style, clean(text)) for style, text in line]
        return [row] if width is None else wrap(row, width)
    parts = clean(line).split("\n")
    if width is None:
        return [marked(part) for part in parts]
    return [row for part in parts for row in _wrap_text(part, width)]


def text_of(lines: Iterable[Line]) -> str:
    """Return lines and tables as plain text of any width."""
    return "\n".join(plain(row) for line in lines for row in rows_of(line, None))


def _wrap_text(text: str, width: int) -> list[Row]:
    """Wrap a line of prose, and indent its other rows as much as the first."""
    indent = text[: len(text) - len(text.lstrip(" "))]
    body = text[len(indent) :]
    rows = wrap(marked(body), min(width, PROSE_WIDTH), indent, indent)
    return [stripped(row) for row in rows]


def wrap(row: Row, width: int, first: str = "", following: str = "") -> list[Row]:
    """Wrap a row at spaces. first, following: the indentation of its first and other rows."""
    rows: list[Row] = [[("", first)] if first else []]
    col, gap = cells(first), ""
    if cells(following) > width // 2:
        following = ""
    for word in _words(row):
        if not word[0][1].strip(" "):
            gap = word[0][1] if rows[-1] or not first else ""
            continue
        size = width_of(word)
        if col + len(gap) + size <= width:
            if gap:
                rows[-1].append((word[0][0] if rows[-1] else "", gap))
        elif col > cells(following):
            rows.append([("", following)] if following else [])
            col, gap = cells(following), ""
        col += len(gap)
        gap = ""
        if col + size > width:
            head, *tail = cut([("", " " * col), *word], width)
            rows[-1] += head[1:] if col else head
            rows += tail
            col = width_of(rows[-1])
            continue
        rows[-1] += word
        col += size
    return [joined(row) for row in rows]


def cut(row: Row, width: int) -> list[Row]:
    """Break a row at a width, even within words."""
    rows, col = [[]], 0  # type: list[Row], int
    for style, text in row:
        text = text.expandtabs(4)
        while text:
            part = _fitting(text, width - col)
            if part:
                rows[-1].append((style, part))
                col += cells(part)
                text = text[len(part) :]
            else:
                rows.append([])
                col = 0
    return rows


def _span(cell: Cell) -> Span:
    return ("", cell) if isinstance(cell, str) else cell


def _width(sizes: list[int], shown: list[int]) -> int:
    return sum(sizes[at] for at in shown) + len(GAP) * (len(shown) - 1)


def _words(row: Row) -> list[Row]:
    words: list[Row] = []
    for style, text in row:
        for part in re.findall(r" +|[^ ]+", text.expandtabs(4)):
            if part[0] == " ":
                words.append([("", part) if style in ("", BOLD, ITALIC) else (style, part)])
            elif words and words[-1][0][1][0] != " ":
                words[-1].append((style, part))
            else:
                words.append([(style, part)])
    return words


def _fitting(text: str, room: int) -> str:
    if text.isascii():
        return text[: max(room, 0)]
    widths = takewhile(lambda width: width <= room, accumulate(map(cells, text)))
    return text[: len(list(widths))]
