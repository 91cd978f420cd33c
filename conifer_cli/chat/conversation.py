"""What a conversation is made of: the messages, the model that answers, and what was changed on
the way. It answers the last message; which commands there are is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.interrupts import Interrupts
from conifer_cli.session.response import Response
from conifer_cli.session.session import Messages, Session
from conifer_cli.terminal import console
from conifer_cli.terminal.format import tokens as short
from conifer_cli.terminal.output import AnswerPrinter

if TYPE_CHECKING:
    from conifer_cli.chat.editor import Editor, EditorHost
    from conifer_cli.session.session import Generation
    from engine.text.reasoning import Part

ANSWER_ROOM = 512  # tokens that must be free before an answer begins, or a quarter of the context


class Conversation:
    """Messages and who answers them. `editor` and `desk` are set by whoever holds it.

    context: tokens that the cache may hold. staged: texts that go with the next message.
    thoughts: what went before the last answer; folds: whether thinking is shown in one line.
    """

    editor: Editor
    desk: EditorHost

    def __init__(self, session: Session, messages: Messages, interrupts: Interrupts) -> None:
        self.session, self.messages, self.interrupts = session, messages, interrupts
        self.context = session.context
        self.shows_stats = session.options.stats
        self.styled = console.styles()
        self.staged: list[str] = []
        self.thoughts = ""
        self.folds = False
        self.turns = Turns()
        self.attempts = 0  # at the same answer

    def meter(self) -> str:
        """Say how full the context is: `ctx 6.1k/32k`."""
        cache = self.session.cache
        return f"ctx {short(cache.length if cache else 0)}/{short(self.context)}"

    def room(self) -> int:
        """Count the tokens that an answer must find free."""
        wish = self.session.options.max_tokens or ANSWER_ROOM
        return min(wish, ANSWER_ROOM, max(self.context // 4, 1))

    def encode(self) -> list[int]:
        """Turn the messages into tokens, those of the cache where it holds the same text."""
        from engine.text.retokenize import retokenized

        session = self.session
        tokens = session.encode(self.messages)
        held = session.cache.tokens if session.cache else []
        return retokenized(held, tokens, session.model.tokenizer)

    def ask(self, tokens: list[int], **settings: Any) -> tuple[Response, Generation, float]:
        """Print the answer to these tokens; also give the seconds to its first piece."""
        session = self.session
        kept = session.settings
        if self.attempts and kept.seed is not None:  # the same seed would say the same again
            settings["seed"] = (kept.seed + self.attempts) % (1 << 63)
        session.settings = replace(kept, **settings)
        reply = Response(session.options, self._printer())
        clock = Clock()
        try:
            session.model.count_routes()  # for /experts
            answering = session.answer(tokens, self.context)
            with console.keys(quiet=True), self.interrupts.calling(answering.stop):
                reply.print(clock.first_of(answering))
        finally:
            session.settings = kept
        return reply, answering, clock.first_s

    def switch(self, name: str) -> None:
        """Let another model go on with the same messages; the one of before if it cannot.

        Ctrl-C breaks it off. Raises what `errors` foresees.
        """
        from conifer_cli.acquire import locate
        from conifer_cli.session.open import open_session

        target, before = locate(name), self.session
        before.close()  # both at once may not fit
        failure: BaseException | None = None
        try:
            with self.interrupts.raising():
                self.session = open_session(target, replace(before.options, context=None))
        except KeyboardInterrupt:
            failure = errors.UsageError(f"stopped: {before.judged.name} goes on")
        except errors.foreseen() as error:
            failure = error.with_traceback(None)  # its frames hold what was loaded
        if failure is not None:
            self.session = Session(before.judged, before.options)
            raise failure
        self.context = self.session.context

    def fold(self) -> None:
        """Fold thinking from now on; or show it from now on, and what was thought last."""
        hidden = self.session.options.show_thinking is False
        self.folds = not (self.folds or hidden)
        if hidden:
            self.session.change(show_thinking=True)
        console.log(f"Thinking is {'folded' if self.folds else 'shown'} from here on.")
        if not self.folds and self.thoughts:
            console.log_text(self.thoughts)

    def clear(self) -> None:
        """Begin anew, with the system message."""
        self.messages[:] = self.session.initial_messages()
        self.staged, self.thoughts, self.attempts = [], "", 0

    def resize(self, context: int) -> None:
        """Take another context; what is in the cache has to be read anew."""
        self.context = context
        self.session.cache = None

    def _printer(self) -> AnswerPrinter:
        options = self.session.options
        painter = None
        if self.styled:
            from conifer_cli.terminal.highlight import lexer_for
            from conifer_cli.terminal.markdown import MarkdownRenderer

            painter = MarkdownRenderer(*console.dimensions(), lexer_for)
        return AnswerPrinter(
            console.shows_thinking(options.show_thinking), painter=painter, folded=self.folds
        )


class Clock:
    """Measures how long the first piece of an answer takes: `first_s`, 0 where none came."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.first_s = 0.0

    def first_of(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Pass the parts on."""
        for part in parts:
            if not self.first_s:
                self.first_s = time.perf_counter() - self._start
            yield part


class Turns:
    """What the answers so far took; `last` says it of the last one."""

    def __init__(self) -> None:
        self.count = self.prompt = self.cached = self.decoded = 0
        self.prefill_s = self.decode_s = 0.0
        self.last = ""

    def add(self, answering: Generation, first_s: float) -> None:
        """Take in one more."""
        stats = answering.stream.stats
        self.count += 1
        self.prompt += stats.prompt_tokens
        self.cached += stats.cached_tokens
        self.decoded += stats.decoded_tokens
        self.prefill_s += stats.prefill_s
        self.decode_s += stats.decode_s
        self.last = f"{answering.stats()}; first token after {first_s:.2f} s"

    def lines(self) -> list[str]:
        """Say it of all of them together."""
        if not self.count:
            return ["Nothing was answered yet."]
        computed = self.prompt - self.cached
        return [
            f"last: {self.last}",
            f"{self.count:,} answers: {self.prompt:,} prompt tokens, {self.cached:,} of them from "
            f"the cache, {computed:,} read in {self.prefill_s:.1f} s; "
            f"{self.decoded:,} tokens answered in {self.decode_s:.1f} s",
        ]
