"""What a model says, on its way to stdout, and what it thinks, on its way to stderr: cleaned."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from conifer_cli.terminal.console import (
    OutputError,
    Progress,
    ReaderGone,
    dumb,
    is_terminal,
    write_stderr,
    write_stdout,
)
from conifer_cli.terminal.format import duration
from conifer_cli.terminal.sanitize import Filter

if TYPE_CHECKING:
    from conifer_cli.terminal.markdown import MarkdownRenderer

DIM, UNDIM = "\x1b[2m", "\x1b[22m"


class AnswerPrinter:
    """Stream a model's answer to stdout: cleaned, and ended by exactly one newline.

    thinking: whether what the model thinks is shown, on stderr; folded: only that it does. raw: as
    it is, and no newline is added. quiet: nothing goes to stdout. renderer: styles what it says.
    """

    def __init__(
        self,
        thinking: bool = False,
        raw: bool = False,
        quiet: bool = False,
        renderer: MarkdownRenderer | None = None,
        folded: bool = False,
    ) -> None:
        self._raw, self._quiet, self._renderer = raw, quiet, renderer
        self._filter = Filter()
        self._newlines = ""  # held back: they may be the last thing
        self._started = False
        self._thoughts = ThinkingPrinter(folded) if thinking else None

    def __enter__(self) -> AnswerPrinter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the line, but print nothing at all where nothing was answered because of an error."""
        if self._thoughts is not None:
            self._thoughts.end()
        if self._raw or self._quiet or isinstance(error, ReaderGone | OutputError):
            return
        if self._renderer is not None:
            write_stdout(self._renderer.finish())
        if error is None or self._started:
            write_stdout("\n")

    def think(self, piece: str) -> None:
        """Print a piece of thinking, if it is shown."""
        if self._thoughts is not None:
            self._thoughts.push(piece)

    def push(self, piece: str) -> None:
        """Print what of `piece` is safe to print now."""
        if self._thoughts is not None:
            self._thoughts.end()
        if self._quiet:
            return
        if self._raw:
            write_stdout(piece)
            return
        text = self._newlines + self._filter.push(piece)
        body = text.rstrip("\n")
        self._newlines = text[len(body) :]
        if body:
            self._started = True
            write_stdout(body if self._renderer is None else self._renderer.push(body))


class ThinkingPrinter:
    """Stream a model's thinking to stderr: cleaned, dimmed on a terminal, a blank line after it.

    folded: on a terminal that can, one line says that the model thinks, and then for how long.
    """

    def __init__(self, folded: bool = False) -> None:
        self._filter = Filter()
        self._begun = False
        plain = "NO_COLOR" in os.environ or dumb()
        self._dims = is_terminal(sys.stderr) and not plain
        self._live = Progress("thinking", "characters") if folded and self._dims else None
        self._start = time.monotonic()
        self._size = 0

    def push(self, piece: str) -> None:
        """Print what of `piece` is safe to print now."""
        text = self._filter.push(piece)
        if text and not self._begun:
            self._begun = True
            self._start = time.monotonic()
            text = text if self._live else (DIM if self._dims else "") + text
        self._size += len(text)
        if self._live is None:
            write_stderr(text)
        else:
            self._live.update(self._size, None)

    def end(self) -> None:
        """Say that no thinking follows, at least for now."""
        if not self._begun:
            return
        self._begun = False
        if self._live is None:
            write_stderr((UNDIM if self._dims else "") + "\n\n")
        else:
            self._live.clear()
            took = duration(time.monotonic() - self._start)
            write_stderr(f"{DIM}thought for {took}; Ctrl-O shows it{UNDIM}\n\n")
