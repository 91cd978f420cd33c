"""Render Markdown as styled terminal rows while it streams. The text must already be clean.

Only the open block (the current line, or a table) can change. When text arrives, the block is laid
out again, and only the rows that differ from the screen are written. For the reasons, see
docs/decisions/0007-live-markdown.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import takewhile
from operator import eq

from conifer_cli.terminal.code_block import FENCE, closes
from conifer_cli.terminal.inline import (
    BOLD,
    DIM,
    UNDERLINE,
    Row,
    cells,
    inline,
    width_of,
)
from conifer_cli.terminal.layout import cut, painted, wrap
from conifer_cli.terminal.table import Table

Lexer = Callable[[str], Row]  # the next line of code -> its spans

LONG_LINE = 3000  # characters; the rest of a longer line is written unrendered
STEPS = 64  # a line with markers is laid out again once it has grown by 1/STEPS
RULE_WIDTH = 40
MIN_WIDTH = 20

# Every pattern must match in linear time: adjacent character classes are disjoint, or the line is
# stripped first.
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*)")
_ITEM = re.compile(r"(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)")
_QUOTE = re.compile(r"\s{0,3}>\s?(.*)")
_RULE = re.compile(r"\s{0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})")
_PLAIN = re.compile(r"[^*`~\\\[\]()|\n]+")
_UNDECIDED = re.compile(r"#{1,6}|[-*+_]+|`+|~+|>|\d{1,9}[.)]?|")


class MarkdownRenderer:
    """Turn pieces of Markdown into terminal output: `push` each piece, then `finish` once."""

    def __init__(
        self, width: int, height: int, lexer_for: Callable[[str], Lexer | None] | None = None
    ) -> None:
        self._width = max(width - 1, MIN_WIDTH)  # terminals disagree on when the last column wraps
        self._lexer_for = lexer_for
        self._line = ""  # the current line so far
        self._table: Table | None = None
        self._fence = ""  # the fence of the open code block
        self._lexer: Lexer | None = None
        self._rows = LineDiff(height)  # the rows of the open block
        self._settled = False  # if True, plain text can change only the last row
        self._following = ""  # indentation of the next row
        self._overlong = False  # if True, the rest of the line is written unrendered
        self._due = 0  # length of the line at which it is laid out again

    def push(self, text: str) -> str:
        drawn = ""
        if self._overlong:
            drawn, newline, text = text.partition("\n")
            if not newline:
                return drawn
            drawn += self._end_overlong()
        elif self._settled and _PLAIN.fullmatch(text):
            return self._append_plain(text)
        *lines, self._line = (self._line + text).split("\n")
        drawn += "".join(map(self._end_line, lines))
        if lines or len(self._line) >= self._due:
            drawn += self._draw_line(self._line, ended=False)
            self._due = len(self._line) + len(self._line) // STEPS
        else:
            self._settled = False
        self._line = "" if self._overlong else self._line
        return drawn

    def finish(self) -> str:
        """Return the remaining output, without a newline at the end."""
        drawn = "" if self._overlong else self._draw_line(self._line, ended=True)
        self._line, self._table, self._fence, self._rows = "", None, "", LineDiff(self._rows.height)
        self._overlong, self._settled, self._due = False, False, 0
        return drawn

    def restart(self) -> None:
        """Draw the open block anew from the cursor: something else has written to the terminal."""
        self._rows, self._settled = LineDiff(self._rows.height), False

    def _append_plain(self, text: str) -> str:
        """Add plain text to a paragraph. Only the paragraph's last row can change."""
        spaces = self._line[len(self._line.rstrip(" ")) :]
        self._line += text
        self._settled = len(self._line) <= LONG_LINE
        *before, last = self._rows.shown
        row = [*last, ("", spaces + text)]
        return self._rows.show([*before, *wrap(row, self._width, following=self._following)])

    def _end_line(self, line: str) -> str:
        drawn = self._draw_line(line, ended=True)
        if self._overlong:
            return drawn + self._end_overlong()
        if self._is_row(line):
            return drawn
        if not self._fence and (found := FENCE.fullmatch(line)):
            self._fence, language = found["fence"], found["language"]
            self._lexer = self._lexer_for(language) if self._lexer_for and language else None
        elif self._fence and closes(line, self._fence):
            self._fence, self._lexer = "", None
        return drawn + self._rows.leave()

    def _end_overlong(self) -> str:
        self._overlong, self._table = False, None
        return self._rows.leave()

    def _is_row(self, line: str) -> bool:
        return not self._fence and line.lstrip().startswith("|")

    def _draw_line(self, line: str, ended: bool) -> str:
        self._settled = False
        if len(line) > LONG_LINE:
            self._overlong = True
            return self._draw_line(line[:LONG_LINE], ended=True) + line[LONG_LINE:]
        if self._is_row(line):
            self._table = self._table or Table(self._width, self._rows.height)
            drawn = self._rows.show(self._table.rows(line, ended))
            self._rows.forget(self._table.forget())
            return drawn
        if self._table and not line.strip() and not ended:
            return ""
        before = self._rows.leave() if self._table else ""
        self._table = None
        return before + self._rows.show(self._layout(line, ended))

    def _layout(self, line: str, ended: bool) -> list[Row]:
        if self._fence:
            return self._code(line, ended)
        if not ended and _UNDECIDED.fullmatch(line.strip()):
            return [[]]
        if FENCE.fullmatch(line):
            return cut([(DIM, line)], self._width)
        if found := _HEADING.fullmatch(line):
            style = f"{BOLD};{UNDERLINE}" if len(found[1]) == 1 else BOLD
            return wrap(inline(_heading_text(found[2]), style, ended), self._width)
        if ended and _RULE.fullmatch(line):
            return [[(DIM, "\u2500" * min(self._width, RULE_WIDTH))]]
        if found := _ITEM.fullmatch(line):
            mark = "\u2022" if found[2] in "-*+" else found[2]
            first = f"{self._indent(found[1])}{mark} "
            return self._paragraph(found[4], ended, first, " " * len(first))
        if found := _QUOTE.fullmatch(line):
            return wrap(inline(found[1], DIM, ended), self._width, "\u2502 ", "\u2502 ")
        text = line.lstrip(" ")
        indent = self._indent(line[: len(line) - len(text)])
        return self._paragraph(text, ended, indent, indent)

    def _indent(self, spaces: str) -> str:
        return " " * min(cells(spaces.expandtabs(4)), self._width // 2)

    def _paragraph(self, text: str, ended: bool, first: str, following: str) -> list[Row]:
        row = inline(text, "", ended)
        # Settled: no marker still needs a closing one.
        self._settled = not ended and bool(text.strip()) and row == inline(text, "", True)
        self._following = following
        return wrap(row, self._width, first, following)

    def _code(self, line: str, ended: bool) -> list[Row]:
        if closes(line, self._fence):
            return [[(DIM, line)]]
        row = self._lexer(line) if ended and self._lexer else [("", line)]
        return cut(row, self._width)


def _heading_text(text: str) -> str:
    """Return a heading without its closing marks."""
    text = text.rstrip()
    bare = text.rstrip("#")
    return bare.rstrip() if bare[-1:].isspace() else text


class LineDiff:
    """The open block's rows on the screen. The cursor stays at the end of the last row."""

    def __init__(self, height: int) -> None:
        self.height = max(height, 2)  # on a single row, only the last row can be drawn again
        self.shown: list[Row] = [[]]

    def leave(self) -> str:
        self.shown = [[]]
        return "\n"

    def forget(self, count: int) -> None:
        """Drop the first rows, which have scrolled off the screen."""
        del self.shown[:count]

    def show(self, rows: list[Row]) -> str:
        """Return the output that replaces the rows on the screen with `rows`."""
        old, self.shown = self.shown, rows
        same = _common_prefix(old, rows)
        if same == len(old):
            return "".join("\n" + painted(row) for row in rows[same:])
        at = max(min(same, len(rows) - 1), len(old) - self.height + 1)
        if at >= len(rows):  # the changed rows have scrolled off the screen
            return ""
        col, rest = _beyond(old[at], rows[at])
        up = len(old) - 1 - at
        if not up and col == width_of(old[at]):
            drawn = painted(rest)
        else:
            move = (f"\x1b[{up}A" if up else "") + "\r" + (f"\x1b[{col}C" if col else "")
            drawn = f"{move}{painted(rest)}\x1b[K"
        drawn += "".join(f"\n{painted(row)}\x1b[K" for row in rows[at + 1 :])
        return drawn + ("\x1b[J" if len(old) > len(rows) else "")


def _beyond(old: Row, new: Row) -> tuple[int, Row]:
    at = _common_prefix(old, new)
    col = width_of(new[:at])
    if at < min(len(old), len(new)) and old[at][0] == new[at][0]:
        style, text = new[at]
        shared = _shared(old[at][1], text)
        return col + cells(text[:shared]), [(style, text[shared:]), *new[at + 1 :]]
    return col, new[at:]


def _common_prefix(a: Iterable[object], b: Iterable[object]) -> int:
    return sum(takewhile(bool, map(eq, a, b)))


def _shared(a: str, b: str) -> int:
    same = _common_prefix(a, b)  # reduced below so as not to split combining characters
    while 0 < same < len(b) and not b[same].isascii() and cells(b[same]) == 0:
        same -= 1
    return same
