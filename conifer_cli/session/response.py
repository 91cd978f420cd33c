"""Print an answer while it is generated, and collect its text and thinking."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from conifer_cli.errors import NoCode
from conifer_cli.session.session import RunOptions
from conifer_cli.terminal import console
from conifer_cli.terminal.code_block import FirstBlock
from conifer_cli.terminal.output import AnswerPrinter

if TYPE_CHECKING:
    from engine.text.reasoning import Part


class Response:
    """An answer as it is printed, and what was said so far: `text`, and `thinking` before it.

    shown: what of the text is for stdout, which `extract` makes less.
    """

    def __init__(self, options: RunOptions, answer: AnswerPrinter | None = None) -> None:
        self.text, self.thinking, self.shown = "", "", ""
        self._code = FirstBlock() if options.extract else None
        self._streams = not options.no_stream
        wish = False if options.as_json and options.show_thinking is None else options.show_thinking
        self._answer = answer or AnswerPrinter(
            console.shows_thinking(wish), raw=options.raw, quiet=options.as_json
        )

    def print(self, answering: Iterable[Part]) -> None:
        """Print the parts as they arrive. Only the answer goes to stdout."""
        from engine.text.reasoning import Kind

        with self._answer as answer:
            for kind, piece in answering:
                if kind is not Kind.ANSWER:
                    self.thinking += piece if kind is Kind.THINKING else ""
                    answer.think(piece)
                    continue
                self.text += piece
                self._show(self._code.push(piece) if self._code else piece)
                if self._code and self._code.ended:
                    break
            self._finish()

    def _show(self, text: str) -> None:
        self.shown += text
        if self._streams:
            self._answer.push(text)

    def _finish(self) -> None:
        """Print what waited for the end."""
        if self._code:
            self._show(self._code.finish())
            if not self._code.begun:
                raise NoCode("the answer has no code block")
        if not self._streams:
            self._answer.push(self.shown)

    def message(self) -> dict[str, str]:
        """The message for the conversation: its template chooses what is kept of the thinking."""
        said = {"role": "assistant", "content": self.text}
        return {**said, "reasoning_content": self.thinking} if self.thinking else said
