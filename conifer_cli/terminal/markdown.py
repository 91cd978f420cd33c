"""Markdown as styled rows of a terminal, while it arrives.

A block is what may still change: the line that is being written, or a table. With every piece of
text only that block is laid out anew, and of its rows only what differs from the screen is written
again, so that nothing flickers and a long answer costs no more than a short one. Marks are taken
for what they open until their line has ended without what closes them. Text must be clean
(`escapes`) before it comes here; where it goes is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from conifer_cli.terminal.inline import (
    BOLD,
    DIM,
    ITALIC,
    UNDERLINE,
    Row,
    cells,
    inline,
    joined,
    settled,
    styled,
    width_of,
)
from conifer_cli.terminal.line_diff import LineDiff

Lexer = Callable[[str], Row]  # the next line of a program -> its spans

LONG_LINE = 3000  # characters of a paragraph beyond which it is not laid out anew
RULE_WIDTH = 40
MIN_WIDTH = 20

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*")
_ITEM = re.compile(r"(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)", re.DOTALL)
_QUOTE = re.compile(r"\s{0,3}>\s?(.*)")
_RULE = re.compile(r"\s{0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})")
_TABLE_RULE = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?)?\s*")
_PLAIN = re.compile(r"[^*`~\\\[\]()|\n]+")
_UNDECIDED = re.compile(r"\s*(?:#{1,6}|[-*+_]+|`+|~+|>|\d{1,9}[.)]?)?\s*")


class MarkdownRenderer:
    """Turns pieces of Markdown into what is to be written: `push` each, then `finish` once.

    width, height: of the terminal, in cells. lexer_for: gives a highlighter for the name of a
    language, or None.
    """

    def __init__(
        self, width: int, height: int, lexer_for: Callable[[str], Lexer | None] | None = None
    ) -> None:
        self._width = max(width - 1, MIN_WIDTH)  # the last column wraps, or does not yet
        self._lexer_for = lexer_for
        self._line = ""  # what has come of the last line
        self._table: list[str] = []
        self._fence = ""  # what closes the code that is open
        self._lexer: Lexer | None = None
        self._rows = LineDiff(height)  # of the block
        self._settled = False  # whether plain words can only change the last row
        self._following = ""  # what the next row begins with
        self._plain = 0  # characters of a very long line that are on the screen

    def push(self, text: str) -> str:
        """Take the next text; give what is to be written now."""
        if self._settled and _PLAIN.fullmatch(text):
            return self._go_on(text)
        *lines, rest = (self._line + text).split("\n")
        drawn = [self._end_line(line) for line in lines]
        self._line = rest
        drawn.append(self._draw_line(rest, ended=False))
        return "".join(drawn)

    def finish(self) -> str:
        """Give what the end of the text still changes. The last line is not ended."""
        drawn = self._draw_line(self._line, ended=True)
        self._line, self._table, self._fence, self._rows = "", [], "", LineDiff(self._rows.height)
        self._plain, self._settled = 0, False
        return drawn

    def _go_on(self, text: str) -> str:
        """Add plain words to a paragraph: only its last row can change."""
        spaces = self._line[len(self._line.rstrip(" ")) :]
        self._line += text
        self._settled = len(self._line) <= LONG_LINE
        *before, last = self._rows.shown
        row = [*last, ("", spaces + text)]
        return self._rows.show([*before, *self._wrap(row, following=self._following)])

    def _end_line(self, line: str) -> str:
        drawn = self._draw_line(line, ended=True)
        self._plain = 0
        if self._table and self._table[-1] is line:
            return drawn
        if not self._fence and (found := _FENCE.fullmatch(line)):
            self._fence = found[1]
            self._lexer = self._lexer_for(found[2]) if self._lexer_for and found[2] else None
        elif self._fence and self._closes(line):
            self._fence, self._lexer = "", None
        return drawn + self._rows.leave()

    def _draw_line(self, line: str, ended: bool) -> str:
        """Draw the block that `line` belongs to, which is the last one."""
        self._settled = False
        is_row = not self._fence and line.lstrip().startswith("|")
        if is_row:
            rows = self._table_rows([*self._table, line])
            if ended:
                self._table.append(line)
            return self._rows.show(rows)
        if self._table and not line.strip() and not ended:
            return ""
        before = ""
        if self._table:
            self._table, before = [], self._rows.leave()
        if self._plain or len(line) > LONG_LINE:
            return before + self._append(line)
        return before + self._rows.show(self._layout(line, ended))

    def _append(self, line: str) -> str:
        """Write what is new of a very long line as it is; the terminal breaks it."""
        start = self._plain or 0
        before = ""
        if not start:
            before, start = self._rows.show(self._layout(line[:LONG_LINE], ended=True)), LONG_LINE
        self._plain = len(line)
        return before + line[start:]

    # Blocks

    def _layout(self, line: str, ended: bool) -> list[Row]:
        if self._fence:
            return self._code(line, ended)
        if not ended and _UNDECIDED.fullmatch(line):
            return [[]]
        if _FENCE.fullmatch(line):
            return self._cut([(DIM, line)])
        if found := _HEADING.fullmatch(line):
            style = f"{BOLD};{UNDERLINE}" if len(found[1]) == 1 else BOLD
            return self._wrap(inline(found[2], style, ended))
        if ended and _RULE.fullmatch(line):
            return [[(DIM, "\u2500" * min(self._width, RULE_WIDTH))]]
        if found := _ITEM.fullmatch(line):
            mark = "\u2022" if found[2] in "-*+" else found[2]
            first = f"{found[1]}{mark} "
            return self._paragraph(found[4], ended, first, " " * len(first))
        if found := _QUOTE.fullmatch(line):
            return self._wrap(inline(found[1], DIM, ended), "\u2502 ", "\u2502 ")
        indent = line[: len(line) - len(line.lstrip(" "))]
        return self._paragraph(line[len(indent) :], ended, indent, indent)

    def _paragraph(self, text: str, ended: bool, first: str, following: str) -> list[Row]:
        self._settled = not ended and bool(text.strip()) and settled(text)
        self._following = following
        return self._wrap(inline(text, "", ended), first, following)

    def _closes(self, line: str) -> bool:
        line = line.strip()
        return len(line) >= len(self._fence) and not line.strip(self._fence[0])

    def _code(self, line: str, ended: bool) -> list[Row]:
        if self._closes(line):
            return [[(DIM, line)]]
        if ended and self._lexer:
            return self._cut(self._lexer(line))
        return self._cut([("", line)])

    def _table_rows(self, lines: list[str]) -> list[Row]:
        """Lay out a table with columns as wide as their widest cell, if there is room for them."""
        plain = [row for line in lines for row in self._cut([("", line)])]
        if len(lines) < 2 or not _TABLE_RULE.fullmatch(lines[1]):
            return plain
        grid = [_cells_of(line) for line in (lines[0], *lines[2:])]
        columns = max(map(len, grid))
        grid = [[*row, *[[] for _ in range(columns - len(row))]] for row in grid]
        widths = [max(width_of(row[at]) for row in grid) for at in range(columns)]
        if sum(widths) + 3 * (columns - 1) > self._width:
            return plain
        rows = [_table_row(row, widths, bold=not at) for at, row in enumerate(grid)]
        rule: Row = [(DIM, "\u2500\u253c\u2500".join("\u2500" * size for size in widths))]
        return [rows[0], rule, *rows[1:]]

    def _cut(self, row: Row) -> list[Row]:
        """Break a row wherever it reaches the width."""
        rows, col = [[]], 0  # type: list[Row], int
        for style, text in row:
            text = text.expandtabs(4)
            while text:
                part = _fitting(text, self._width - col)
                if part:
                    rows[-1].append((style, part))
                    col += cells(part)
                    text = text[len(part) :]
                else:
                    rows.append([])
                    col = 0
        return rows

    def _wrap(self, row: Row, first: str = "", following: str = "") -> list[Row]:
        """Break a row between words, where one is not wider than the width by itself."""
        rows: list[Row] = [[("", first)] if first else []]
        col, gap = cells(first), ""
        if cells(following) > self._width // 2:
            following = ""
        for word in _words(row):
            if not word[0][1].strip(" "):
                gap = word[0][1] if rows[-1] or not first else ""
                continue
            size = width_of(word)
            if col + len(gap) + size <= self._width:
                if gap:
                    rows[-1].append((word[0][0] if rows[-1] else "", gap))
            elif col > cells(following) or not rows[-1]:
                rows.append([("", following)] if following else [])
                col, gap = cells(following), ""
            col += len(gap)
            gap = ""
            if col + size > self._width:
                head, *tail = self._cut([("", " " * col), *word])
                rows[-1] += head[1:] if col else head
                rows += tail
                col = width_of(rows[-1])
                continue
            rows[-1] += word
            col += size
        return [joined(row) for row in rows]


def _words(row: Row) -> list[Row]:
    """Cut a row into words, of maybe several styles, and the spaces between them."""
    words: list[Row] = []
    open_word = False
    for style, text in row:
        for part in re.findall(r" +|[^ ]+", text.expandtabs(4)):
            if part[0] == " ":
                words.append([("", part) if style in ("", BOLD, ITALIC) else (style, part)])
                open_word = False
            elif open_word:
                words[-1].append((style, part))
            else:
                words.append([(style, part)])
                open_word = True
    return words


def _fitting(text: str, room: int) -> str:
    """Give the longest start of text that takes at most `room` cells."""
    if text.isascii():
        return text[: max(room, 0)]
    end = 0
    for character in text:
        room -= cells(character)
        if room < 0:
            break
        end += 1
    return text[:end]


def _cells_of(line: str) -> list[Row]:
    parts = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [joined(inline(part.strip(), "", True)) for part in parts]


def _table_row(row: list[Row], widths: list[int], bold: bool) -> Row:
    spans: Row = []
    for at, (cell, size) in enumerate(zip(row, widths, strict=True)):
        if at:
            spans.append((DIM, " \u2502 "))
        spans += [(styled(style, BOLD) if bold else style, text) for style, text in cell]
        spans.append(("", " " * (size - width_of(cell))))
    return joined([span for span in spans if span[1]])
