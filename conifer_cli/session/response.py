"""Print an answer as it is generated, and collect its text and thinking."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from conifer_cli.errors import NoCode
from conifer_cli.run_options import RunOptions
from conifer_cli.terminal import console
from conifer_cli.terminal.code_block import first_code_block
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.loops import LoopWatch
from conifer_cli.terminal.output import AnswerPrinter, renderer

if TYPE_CHECKING:
    from conifer_cli.session.session import Generation
    from engine.text.reasoning import Part

REPEATS = "(The answer repeats itself. Ctrl-C stops it.)"


class Response:
    """An answer being printed. The text for stdout may be only a code block."""

    def __init__(self, options: RunOptions, printer: AnswerPrinter | None = None) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._shown: list[str] = []
        self._extracts, self._streams = options.extract, not options.no_stream
        show = False if options.as_json and options.show_thinking is None else options.show_thinking
        watches = console.is_terminal(sys.stderr) and console.is_terminal(sys.stdout)
        self._watch = LoopWatch() if watches and self._streams else None
        plain = options.plain or options.raw or options.as_json or options.extract
        self._printer = printer or AnswerPrinter(
            console.shows_thinking(show),
            raw=options.raw,
            quiet=options.as_json,
            renderer=renderer(console.styles() and not plain),
        )

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        return "".join(self._thinking)

    @property
    def shown(self) -> str:
        """The text for stdout so far."""
        return "".join(self._shown)

    def print(self, parts: Iterable[Part]) -> None:
        """Print the parts as they arrive. Only the answer goes to stdout.

        Raises NoCode, after printing the answer to stderr.
        """
        with self._printer as printer:
            pieces = self._answer_of(parts)
            try:
                for piece in first_code_block(pieces) if self._extracts else pieces:
                    self._shown.append(piece)
                    if self._streams:
                        printer.push(piece)
            except NoCode:
                console.log(self.text)  # an answer may have taken minutes
                raise
            if not self._streams:
                printer.push(self.shown)

    def _answer_of(self, parts: Iterable[Part]) -> Iterator[str]:
        from engine.text.reasoning import Kind

        for kind, piece in parts:
            if kind is Kind.ANSWER:
                self._text.append(piece)
                yield piece
                if self._watch is not None and self._watch.push(piece):
                    self._printer.notice(REPEATS)
            else:
                if kind is Kind.THINKING:
                    self._thinking.append(piece)
                self._printer.think(piece)

    def notice(self, generation: Generation) -> str:
        """Return a line that says why there is no answer, or an empty string if there is one."""
        if self.text.strip() or generation.stream.finish == "interrupted":
            return ""
        stats = generation.stream.stats
        within = " while the model was still reasoning" if self.thinking.strip() else ""
        if generation.stream.finish == "length":
            limit = counted(stats.decoded_tokens, "token")
            return f"no answer: the limit of {limit} was reached{within}"
        if within or stats.thinking_tokens:
            return "no answer: the model ended while it was still reasoning"
        return "no answer: " + (
            "the model wrote only white space"
            if self.text
            else "the model or a stop string ended it at once"
        )

    def message(self) -> dict[str, str]:
        """Return the message to add to the conversation.

        It includes the thinking, which the chat template may omit from later prompts.
        """
        message = {"role": "assistant", "content": self.text}
        return {**message, "reasoning_content": self.thinking} if self.thinking else message
