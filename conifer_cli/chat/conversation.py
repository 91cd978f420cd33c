"""The state of a conversation: its messages, session and current settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog import UnknownModel
from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate
from conifer_cli.chat.line_editor import Editor, EditorHost
from conifer_cli.interrupts import Interrupts
from conifer_cli.session import history
from conifer_cli.session.open import open_session
from conifer_cli.session.response import Response
from conifer_cli.session.session import Generation, Messages, Session
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.format import tokens as short
from conifer_cli.terminal.output import AnswerPrinter, renderer

ANSWER_ROOM = 512  # free tokens required to start an answer; at most context / 4


class Conversation:
    """The messages and the session that answers them. `repl` sets `editor` and `host`.

    staged: texts to send with the next message. number: of the conversation in the history, once
    it has been kept. keeps: whether it is kept. attempts: the number of times the answer to the
    last message has been regenerated.
    """

    editor: Editor
    host: EditorHost

    def __init__(self, session: Session, messages: Messages, interrupts: Interrupts) -> None:
        self.session, self.messages, self.interrupts = session, messages, interrupts
        self.context = session.context
        self.shows_stats = session.options.stats
        self.styled = console.styles() and not session.options.plain
        self.staged: list[str] = []
        self.number: int | None = None
        self.keeps = console.conversing() and history.is_on(session.options.history)
        self.last_thinking = ""
        self.folds = False
        self.totals = Totals()
        self.attempts = 0
        self._measured: tuple[Any, int | None] = (None, None)

    def meter(self) -> str:
        """Return the context usage, such as `ctx 6.1k/32k`."""
        used = self.used()
        return f"ctx {'?' if used is None else short(used)}/{short(self.context)}"

    def used(self) -> int | None:
        """Return the number of tokens in the next prompt, without the next message.

        0 in a new conversation. None if the template cannot render the conversation. Counted again
        only after a change.
        """
        options = self.session.options
        change = (self.session, options.think, options.effort, self.staged[:], self.messages[:])
        if self._measured[0] != change:
            self._measured = (change, self._count())
        return self._measured[1]

    def _count(self) -> int | None:
        earlier = [] if self.session.raw else self.messages
        if not earlier and not self.staged:
            return 0
        try:
            return len(self.session.encode([*earlier, self.compose("")]))
        except errors.known_exceptions():
            return None

    def compose(self, text: str) -> dict[str, str]:
        """Return the message with the staged texts and `text`."""
        return {"role": "user", "content": "\n\n".join(filter(None, [*self.staged, text]))}

    def answer_room(self) -> int:
        """Return how many tokens must be free before an answer starts."""
        limit = self.session.options.max_tokens or ANSWER_ROOM
        return min(limit, ANSWER_ROOM, max(self.context // 4, 1))

    def encode(self) -> list[int]:
        """Encode the messages, using the cached tokens for any text already in the cache."""
        from engine.text.tokenizer import retokenized

        session = self.session
        cached = session.cache.tokens if session.cache else []
        return retokenized(cached, session.encode(self.messages), session.model.tokenizer)

    def ask(self, tokens: list[int], **settings: Any) -> tuple[Response, Generation]:
        """Generate and print an answer to `tokens`. settings: overrides for this answer."""
        session = self.session
        saved = session.settings
        if self.attempts and saved.seed is not None:  # the same seed would repeat the answer
            settings["seed"] = (saved.seed + self.attempts) % (1 << 63)
        session.settings = replace(saved, **settings)
        response = Response(session.options, self._printer())
        try:
            session.model.count_routes()  # for /experts
            generation = session.answer(tokens, self.context)
            with self.interrupts.on_interrupt(generation.stream.stop):
                response.print(generation)
        finally:
            session.settings = saved
        return response, generation

    def switch_model(self, name: str) -> None:
        """Switch to another model. On an error or Ctrl-C, reopen the old model and raise."""
        target, old = _locate(name), self.session
        old.close()  # both models may not fit in memory at once
        failure: BaseException | None = None
        try:
            with self.interrupts.propagate():
                self.session = open_session(target, replace(old.options, context=None))
        except KeyboardInterrupt:
            failure = errors.UsageError(f"cancelled; still using {old.report.name}")
        except errors.known_exceptions() as error:
            failure = error.with_traceback(None)  # its frames would keep the new weights alive
        if failure is not None:
            self.session = Session(old.report, old.options)
            raise failure
        self.context, self.totals = self.session.context, Totals()

    def toggle_fold(self) -> None:
        """Fold or unfold the model's thinking. Unfolding also prints the last answer's thinking."""
        hidden = self.session.options.show_thinking is False
        self.folds = not (self.folds or hidden)
        if hidden:
            self.session.change(show_thinking=True)
        console.log(f"Thinking is now {'folded' if self.folds else 'shown'}.")
        if not self.folds and self.last_thinking:
            console.log_text(self.last_thinking)

    def keep(self) -> None:
        """Store the conversation as it is now in the history, unless the user has opted out."""
        if self.keeps:
            saved = self.session.options.save or ""
            path = str(Path(saved).absolute()) if saved else ""
            name = history.model_of(self.session.report)
            self.number = history.keep(self.number, name, self.messages, path)

    def clear(self) -> None:
        self.messages[:] = self.session.initial_messages()
        self.staged, self.last_thinking, self.attempts, self.number = [], "", 0, None
        self.totals = Totals()

    def resize(self, context: int) -> None:
        """Change the context size. Drops the cache, so the messages are processed again."""
        self.context, self.session.cache = context, None

    def _printer(self) -> AnswerPrinter:
        thinking = console.shows_thinking(self.session.options.show_thinking)
        return AnswerPrinter(thinking, renderer=renderer(self.styled), folded=self.folds)


def _locate(name: str) -> RequestedModel:
    try:
        return locate(name)
    except (errors.UsageError, UnknownModel) as error:
        closest = getattr(error, "closest", None)
        known = "Run `conifer list --catalog` to see every model."
        hint = f"Did you mean /model {closest}?" if closest else known
        raise errors.UsageError(str(error), hint) from error


class Totals:
    """Token counts and times of all answers since the conversation began or the model changed.

    last: the last answer's statistics, in parts.
    """

    def __init__(self) -> None:
        self.answers = self.prompt = self.cached = self.decoded = 0
        self.prefill_s = self.decode_s = 0.0
        self.last: list[str] = []

    def add(self, generation: Generation) -> None:
        stats = generation.stream.stats
        self.answers += 1
        self.prompt += stats.prompt_tokens
        self.cached += stats.cached_tokens
        self.decoded += stats.decoded_tokens
        self.prefill_s += stats.prefill_s
        self.decode_s += stats.decode_s
        self.last = [*generation.stats(), f"time to first token: {generation.first_s:.2f} s"]

    def lines(self) -> list[str]:
        """Return the last answer's statistics and the totals, one line each."""
        if not self.answers:
            return ["No answers yet."]
        computed = self.prompt - self.cached
        return [
            f"last: {'; '.join(self.last)}",
            f"total: {counted(self.answers, 'answer')}; "
            f"prompts: {counted(self.prompt, 'token')} ({self.cached:,} cached, "
            f"{computed:,} processed in {self.prefill_s:.1f} s); "
            f"answers: {counted(self.decoded, 'token')} in {self.decode_s:.1f} s",
        ]
