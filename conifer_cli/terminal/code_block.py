"""The first fenced code block of a text that arrives in pieces.

Fences are Markdown's: three or more backticks or tildes at the start of a line; those that close a
block are at least as many as those that opened it, with nothing behind them.
"""

from __future__ import annotations

import re

_OPENS = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")


class FirstBlock:
    """Passes on the lines between the first pair of fences.

    begun: the first of the pair has come; ended: both have.
    """

    def __init__(self) -> None:
        self.begun = self.ended = False
        self._line = self._fence = ""

    def push(self, piece: str) -> str:
        """Take the next text; give the lines of the block that are complete."""
        *lines, self._line = (self._line + piece).split("\n")
        return "".join(map(self._take, lines))

    def finish(self) -> str:
        """Give what is left of a block that nothing closed."""
        return self._take(self._line).rstrip("\n")

    def _take(self, line: str) -> str:
        """Read one line; give it back, with its end, if it lies in the block."""
        if self.ended:
            return ""
        if not self.begun:
            opening = _OPENS.match(line)
            if opening:
                self.begun, self._fence = True, opening[1]
            return ""
        bare = line.strip()
        if len(bare) >= len(self._fence) and not bare.strip(self._fence[0]):
            self.ended = True
            return ""
        return line + "\n"
