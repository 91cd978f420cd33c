"""Show progress for loading, prompt processing and transfers."""

from __future__ import annotations

import sys
import time

from conifer_cli.terminal.console import dimensions, is_terminal, log, policy, write_stderr
from conifer_cli.terminal.format import duration, size
from conifer_cli.terminal.keyboard import dumb
from conifer_cli.terminal.sanitize import clean_line

LINE_EVERY_S = 10.0  # if stderr is not a terminal
REDRAW_EVERY_S = 0.1  # on a terminal
SILENT_START_S = 1.0  # shorter work shows no progress
BAR_WIDTH = 10
ECHO_WIDTH = 2  # columns of ^C


def bar(done: int, total: int) -> str:
    """Return a bar of fixed width: `[###.......]`."""
    filled = min(BAR_WIDTH * done // max(total, 1), BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]"


class Progress:
    """Progress on stderr: a live line on a terminal, otherwise a line every ten seconds.

    always: if False, print nothing unless stderr is a terminal.
    """

    def __init__(self, label: str, unit: str = "bytes", always: bool = True) -> None:
        self._label = clean_line(label)
        self._unit = unit
        self._start = self._last = time.monotonic()
        self._first = None if unit == "bytes" else 0  # a resumed transfer starts in the middle
        self._drawn = 0  # width of the live line on the screen
        self._live = is_terminal(sys.stderr) and not dumb()
        self._silent = policy.quiet or not (always or is_terminal(sys.stderr))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def update(self, done: int, total: int | None) -> None:
        """Show the progress, at most once per interval."""
        if self._silent:
            return
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        pause_s = REDRAW_EVERY_S if self._live else LINE_EVERY_S
        if now - self._start < SILENT_START_S or now - self._last < pause_s:
            return
        self._last = now
        amount, *more = self._parts(done, total, (done - self._first) / (now - self._start))
        if not self._live:
            log(", ".join((amount, *more)))
            return
        percent = f"{bar(done, total)} {100 * done // total:3} % " if total else ""
        self._draw(f"{percent}{amount}", more)

    def clear(self) -> None:
        if self._drawn:
            self._drawn += ECHO_WIDTH  # Ctrl-C may have been echoed behind the line
            self._draw("", [])
            write_stderr("\r")

    def _parts(self, done: int, total: int | None, per_s: float) -> list[str]:
        """Return the amount, the rate and the time left, most important first."""
        if self._unit == "bytes":
            text, whole, rate = size(done), size(total or 0), f"{size(int(per_s))}/s"
        else:
            text, whole = f"{done:,}", f"{total or 0:,} {self._unit}"
            rate = f"{per_s:,.0f} {self._unit}/s"
        parts = [f"{self._label}: {text}" + (f" of {whole}" if total else ""), rate]
        if total and per_s > 0:
            parts.append(f"{duration((total - done) / per_s)} left")
        return parts

    def _draw(self, line: str, more: list[str]) -> None:
        """Draw the line, with as many of the parts `more` as fit."""
        room = max(dimensions()[0] - 1 - ECHO_WIDTH, 0)
        for part in more:
            if len(line) + 2 + len(part) > room:
                break
            line += f", {part}"
        line = line[:room]
        write_stderr("\r" + line.ljust(self._drawn))
        self._drawn = len(line)
