"""Lay out a Markdown table while it streams, in time linear in its length."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import zip_longest

from conifer_cli.terminal.inline import BOLD, DIM, Row, inline, joined, styled, width_of
from conifer_cli.terminal.layout import cut, wrap

_RULE = re.compile(r"\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?)?")
_BAR = re.compile(r"(?<!\\)\|")
_GAP = 3  # columns between two cells: " │ "
_LEAST = 6  # columns of a cell that is wrapped


@dataclass(slots=True)
class _Line:
    """A line of a table and its rows on the screen. cells: None if there are too many."""

    text: str
    cells: list[Row] | None
    is_rule: bool = False
    is_head: bool = False
    rows: list[Row] = field(default_factory=list)


class Table:
    """The lines of a table that may still be on the screen. Earlier ones have scrolled away.

    The cells of a table that is wider than the screen are wrapped at words. Without a rule below
    its first line, or if its cells would be too narrow, a table is shown as plain text. width,
    height: of the screen.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._lines: list[_Line] = []
        self._count = 0  # lines so far
        self._widths: list[int] = []
        self._plain = False  # show plain text from now on
        self._grid: list[int] | None = None  # the columns' widths in `_lines`; None: no columns

    def rows(self, text: str, ended: bool) -> list[Row]:
        """Return the rows on the screen, with one more line. It is kept only if it has `ended`."""
        line = self._read(text)
        pairs = zip_longest(self._widths, map(width_of, line.cells or ()), fillvalue=0)
        widths = [max(pair) for pair in pairs]
        grid = None if line.cells is None else self._fitted(widths)
        plain = self._plain or not grid or (self._count == 1 and not line.is_rule)
        self._lay_out(None if plain or not self._count else grid)
        line.rows = self._rows_of(line)
        rows = [row for known in (*self._lines, line) for row in known.rows]
        if ended:
            self._lines.append(line)
            self._widths, self._plain, self._count = widths, plain, self._count + 1
        return rows

    def forget(self) -> int:
        """Drop the lines that have left the screen. Return how many rows they had."""
        gone = self._lines[: -self._height]
        del self._lines[: -self._height]
        return sum(len(line.rows) for line in gone)

    def _read(self, text: str) -> _Line:
        if self._count == 1 and _RULE.fullmatch(text.strip()):
            return _Line(text, [], is_rule=True)
        parts = _BAR.split(text.strip().removeprefix("|").removesuffix("|"))
        if _GAP * (len(parts) - 1) > self._width:
            return _Line(text, None)
        cells = [joined(inline(part.strip(), "", True)) for part in parts]
        return _Line(text, cells, is_head=not self._count)

    def _fitted(self, widths: list[int]) -> list[int] | None:
        """Return the columns' widths on the screen, the widest reduced; None if too narrow."""
        room, shared = self._width - _GAP * (len(widths) - 1), sorted(widths)
        for at, width in enumerate(shared):
            most = room // (len(shared) - at)  # for each of the columns from here on
            if width > most:
                return [min(each, most) for each in widths] if most >= _LEAST else None
            room -= width
        return widths

    def _lay_out(self, grid: list[int] | None) -> None:
        if grid != self._grid:
            self._grid = grid
            for line in self._lines:
                line.rows = self._rows_of(line)

    def _rows_of(self, line: _Line) -> list[Row]:
        if self._grid is None:
            return cut([("", line.text)], self._width)
        if line.is_rule:
            return [[(DIM, "\u2500\u253c\u2500".join("\u2500" * size for size in self._grid))]]
        cells = line.cells or []
        wrapped = [
            wrap(cells[at] if at < len(cells) else [], size) for at, size in enumerate(self._grid)
        ]
        return [
            self._row([each[at] if at < len(each) else [] for each in wrapped], line.is_head)
            for at in range(max(map(len, wrapped)))
        ]

    def _row(self, cells: list[Row], is_head: bool) -> Row:
        spans: Row = []
        for at, (cell, size) in enumerate(zip(cells, self._grid or (), strict=True)):
            spans += [(DIM, " \u2502 ")] if at else []
            spans += [(styled(style, BOLD) if is_head else style, text) for style, text in cell]
            spans.append(("", " " * (size - width_of(cell))))
        return joined([span for span in spans if span[1]])
