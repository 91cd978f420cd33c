"""Rows of styled text on a screen: of new ones, only what differs is written.

The cursor is at the end of the last row. What has scrolled off the screen stays as it is.
"""

from __future__ import annotations

from conifer_cli.terminal.inline import Row, cells, width_of


class LineDiff:
    """The rows of what may still change. height: of the screen."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.shown: list[Row] = [[]]

    def leave(self) -> str:
        """Begin below: what is shown stays."""
        self.shown = [[]]
        return "\n"

    def show(self, rows: list[Row]) -> str:
        """Give what brings these rows to the screen instead."""
        old, self.shown = self.shown, rows
        same = 0
        while same < min(len(old), len(rows)) and old[same] == rows[same]:
            same += 1
        if same == len(old):
            return "".join("\n" + _painted(row) for row in rows[same:])
        at = max(min(same, len(rows) - 1), len(old) - self.height + 1)
        if at >= len(rows):  # what would have to change has scrolled away
            return ""
        col, rest = _beyond(old[at], rows[at])
        up = len(old) - 1 - at
        if not up and col == width_of(old[at]):
            drawn = _painted(rest)
        else:
            move = (f"\x1b[{up}A" if up else "") + "\r" + (f"\x1b[{col}C" if col else "")
            drawn = f"{move}{_painted(rest)}\x1b[K"
        drawn += "".join(f"\n{_painted(row)}\x1b[K" for row in rows[at + 1 :])
        return drawn + ("\x1b[J" if len(old) > len(rows) else "")


def _beyond(old: Row, new: Row) -> tuple[int, Row]:
    """Measure in cells what two rows begin with alike, and give what the new one has after it."""
    col = 0
    for at, (style, text) in enumerate(new):
        if at < len(old) and old[at] == (style, text):
            col += cells(text)
            continue
        if at < len(old) and old[at][0] == style:
            shared = _shared(old[at][1], text)
            return col + cells(text[:shared]), [(style, text[shared:]), *new[at + 1 :]]
        return col, new[at:]
    return col, []


def _shared(a: str, b: str) -> int:
    """Count the characters that both begin with, no mark that belongs to the last one cut off."""
    if b.startswith(a):
        same = len(a)
    else:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
    while 0 < same < len(b) and not b[same].isascii() and cells(b[same]) == 0:
        same -= 1
    return same


def _painted(row: Row) -> str:
    return "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in row if text)
