"""A terminal's screen, as far as our own output needs one: what is on it after some text.

Knows line feeds (which return, as a terminal does for a program), carriage returns, the cursor's
moves, erasing, styles and modes, which it ignores. Anything else that is no plain text fails.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

SEQUENCE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")


class Screen:
    """`lines`: the text of every row so far; `styles`: beside each, the style of every cell."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        self.styles: list[list[str]] = [[]]
        self.row = self.col = 0
        self.style = ""

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            if found := SEQUENCE.match(text, at):
                self._control(found[1], found[2])
                at = found.end()
                continue
            self._character(text[at])
            at += 1

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines)

    def styled(self, word: str) -> str:
        """The style of the first cell of a word."""
        for line, styles in zip(self.lines, self.styles, strict=True):
            if word in (text := "".join(line)):
                return styles[cell_len(text[: text.index(word)])]
        raise AssertionError(f"no {word!r} on the screen")

    def _control(self, parameters: str, final: str) -> None:
        count = int(parameters or 1) if parameters.isdecimal() or not parameters else 0
        if final == "A":
            assert count < self.height, "the cursor cannot go above the screen"
            self.row = max(self.row - count, len(self.lines) - self.height, 0)
        elif final == "C":
            self.col += count
        elif final == "D":
            self.col -= count
        elif final in "hl":
            assert parameters.startswith("?")
        elif final == "K":
            del self.lines[self.row][self.col :], self.styles[self.row][self.col :]
        elif final == "J":
            self._control("", "K")
            del self.lines[self.row + 1 :], self.styles[self.row + 1 :]
        elif final == "m":
            self.style = "" if parameters in ("", "0", "22") else parameters
        else:
            raise AssertionError(f"unknown sequence {parameters}{final}")

    def _character(self, character: str) -> None:
        if character == "\n":
            self.row, self.col = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append([])
                self.styles.append([])
        elif character == "\r":
            self.col = 0
        elif character == "\b":
            self.col -= 1
        else:
            assert character >= " " and not "\x7f" <= character <= "\x9f", repr(character)
            self._put(character)

    def _put(self, character: str) -> None:
        size = cell_len(character)
        if self.col + size > self.width:
            self._character("\n")
        line, styles = self.lines[self.row], self.styles[self.row]
        while len(line) < self.col:
            line.append(" ")
            styles.append("")
        if size == 0:
            if line:
                line[self.col - 1] += character
            return
        line[self.col : self.col + size] = [character, *[""] * (size - 1)]
        styles[self.col : self.col + size] = [self.style] * size
        self.col += size
