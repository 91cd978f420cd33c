"""Stream a model's answer to stdout and its thinking to stderr, both cleaned."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from conifer_cli.errors import OutputError
from conifer_cli.terminal.console import (
    ReaderGone,
    dimensions,
    supports_styles,
    write_stderr,
    write_stdout,
)
from conifer_cli.terminal.format import duration
from conifer_cli.terminal.keyboard import keyboard
from conifer_cli.terminal.progress import Progress
from conifer_cli.terminal.sanitize import Filter

if TYPE_CHECKING:
    from conifer_cli.terminal.markdown import MarkdownRenderer

DIM, UNDIM = "\x1b[2m", "\x1b[22m"


def renderer(styled: bool) -> MarkdownRenderer | None:
    """Return what lays out an answer as Markdown in the terminal, or None if not `styled`."""
    if not styled:
        return None
    from conifer_cli.terminal.highlight import lexer_for
    from conifer_cli.terminal.markdown import MarkdownRenderer

    return MarkdownRenderer(*dimensions(), lexer_for)


class AnswerPrinter:
    """Print a cleaned answer to stdout, ending with exactly one newline.

    thinking: show thinking on stderr. folded: show it as one line. raw: do not clean the answer.
    quiet: write nothing to stdout.
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
        self._newlines = 0  # held back, because newlines at the end are dropped
        self._started = False
        self._resumed = keyboard.resumed
        self._thinking = ThinkingPrinter(folded) if thinking else None

    def __enter__(self) -> AnswerPrinter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thinking is not None:
            self._thinking.end()
        if self._raw or self._quiet or isinstance(error, ReaderGone | OutputError):
            return
        self._redraw_after_stop()
        # After a signal, exit without rendering more text.
        if self._renderer is not None and (error is None or isinstance(error, Exception)):
            write_stdout(self._renderer.finish())
        if error is None or self._started:
            write_stdout("\n")

    def think(self, piece: str) -> None:
        if self._thinking is not None:
            self._thinking.push(piece)

    def push(self, piece: str) -> None:
        """Print a piece of the answer, holding back anything not yet safe to print."""
        if self._thinking is not None:
            self._thinking.end()
        if self._quiet:
            return
        if self._raw:
            write_stdout(piece)
            return
        self._redraw_after_stop()
        text = self._filter.push(piece)
        body = text.rstrip("\n")
        held, self._newlines = self._newlines, len(text) - len(body)
        if not body:
            self._newlines += held
        else:
            self._started = True
            body = "\n" * held + body
            write_stdout(body if self._renderer is None else self._renderer.push(body))

    def notice(self, text: str) -> None:
        """Print a line to stderr in the middle of the answer, which then goes on below it."""
        styled = supports_styles(sys.stderr)
        write_stderr(f"\n{DIM}{text}{UNDIM}\n" if styled else f"\n{text}\n")
        if self._renderer is not None:
            self._renderer.restart()

    def _redraw_after_stop(self) -> None:
        if self._renderer is not None and self._resumed != keyboard.resumed:
            self._resumed = keyboard.resumed
            self._renderer.restart()


class ThinkingPrinter:
    """Print cleaned, dimmed thinking to stderr. folded: show a live line, then the duration."""

    def __init__(self, folded: bool = False) -> None:
        self._filter = Filter()
        self._begun = False
        self._resumed = keyboard.resumed
        self._dims = supports_styles(sys.stderr)
        self._live = Progress("thinking", "characters") if folded and self._dims else None
        self._start = time.monotonic()
        self._size = 0

    def push(self, piece: str) -> None:
        text = self._filter.push(piece)
        if text and not self._begun:
            self._begun = True
            self._start = time.monotonic()
            self._resumed = -1
        self._size += len(text)
        if text and self._dims and self._resumed != keyboard.resumed:  # at first, and after a stop
            self._resumed = keyboard.resumed
            text = DIM + text
        if self._live is None:
            write_stderr(text)
        else:
            self._live.update(self._size, None)

    def end(self) -> None:
        """End this stretch of thinking. Another one may follow."""
        if not self._begun:
            return
        self._begun = False
        if self._live is None:
            write_stderr((UNDIM if self._dims else "") + "\n\n")
        else:
            self._live.clear()
            took = duration(time.monotonic() - self._start)
            write_stderr(f"{DIM}thought for {took} (press Ctrl-O to show){UNDIM}\n\n")
