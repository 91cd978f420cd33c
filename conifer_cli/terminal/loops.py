"""Notice that an answer repeats itself, as small models do, while it streams."""

from __future__ import annotations

TAIL = 1200  # characters that are looked at
LEAST = 300  # characters that must repeat
TIMES = 4  # how often in a row
LONGEST = TAIL // TIMES
EVERY = 200  # characters between two looks


class LoopWatch:
    """Watches a stream of text. Reports a repetition once."""

    def __init__(self) -> None:
        self._tail = ""
        self._unseen = 0
        self._told = False

    def push(self, text: str) -> bool:
        """True if the text that now ends here has begun to repeat itself."""
        self._tail = (self._tail + text)[-TAIL:]
        self._unseen += len(text)
        if self._told or self._unseen < EVERY:
            return False
        self._unseen = 0
        self._told = repeats(self._tail)
        return self._told


def repeats(text: str) -> bool:
    """True if a text ends in the same piece, over and over."""
    sample = text[-EVERY // 4 :]
    start = text.rfind(sample, 0, len(text) - 1)
    if start < 0:
        return False
    period = len(text) - len(sample) - start
    end = text[-max(LEAST, TIMES * period) :]
    if not 0 < period <= LONGEST or len(end) < max(LEAST, TIMES * period):
        return False
    return end[period:] == end[:-period] and len(set(end)) > 1
