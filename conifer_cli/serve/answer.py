"""Turn a request into a stream of events, whatever its protocol."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conifer_cli.fit.streaming import records
from conifer_cli.run_options import RunOptions
from conifer_cli.serve.fields import BadRequest
from conifer_cli.serve.host import Host, ServedModel
from conifer_cli.serve.tools import Tools, with_tools
from conifer_cli.session.session import SEED_BITS, settings_for
from engine.errors import TemplateError
from engine.serving.processors import FrequencyPenalty, LogitBias, Logprob, LogprobRecorder
from engine.serving.scheduler import Decoded, Finished, Happening, Job
from engine.text import reasoning
from engine.text.reasoning import Kind
from engine.tools.dialects import call_markers
from engine.tools.parser import CallParser, CallPiece

if TYPE_CHECKING:
    from engine.sampling import Processor, Settings
    from engine.text.constrained import Constraint, Guide
    from engine.text.reasoning import Part

PULSE_S = 5.0  # a client hears from the server at least this often
GAP_S = 0.02  # tokens that arrive within it share a piece: sending each would slow the steps
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    """A request in no protocol's terms.

    messages: the conversation in OpenAI's form, or None to continue `prompt`. schema: the JSON
    schema of the answer. top_logprobs: None for no log probabilities. variables: for the chat
    template. sampling: fields of Settings.
    """

    model: str | None
    messages: Messages | None = None
    prompt: str | list[int] = ""
    tools: Tools = field(default_factory=Tools)
    schema: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    think: bool | None = None
    effort: str | None = None
    budget: int | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    client: str = ""


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token of the answer with its log probability and the most likely alternatives."""

    token: int
    logprob: float
    top: list[Logprob]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of the answer or of the thinking, and the tokens since the last piece."""

    kind: Kind
    text: str
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Pulse:
    """The answer is still waiting, or its prompt is being read."""


AnswerEvent = TextPiece | CallPiece | Pulse | Finished


class Answer:
    """An answer that has been queued. Iterate once; `cancel` in any case.

    constraint: the grammar of its calls, or None if the model decides freely. position: how many
    answers were before it. called: whether it contains calls.
    """

    called = False

    def __init__(
        self,
        host: Host,
        served: ServedModel,
        ask: Ask,
        tokens: list[int],
        constraint: Constraint | None,
    ) -> None:
        self.served, self.tokens, self.ask, self._host = served, tokens, ask, host
        self._constraint = constraint
        self.id, self.created_s = f"resp_{secrets.token_hex(12)}", time.time()
        self._loop = asyncio.get_running_loop()
        self._events: deque[Happening | TokenChance | Pulse] = deque()
        self._chances: list[TokenChance] = []
        self._arrived, self._told, self._last_s = asyncio.Event(), False, 0.0
        self._recorder: LogprobRecorder | None = None
        self._guided = False
        dialect = ask.tools.dialect_for(served.model) if ask.tools.used else None
        self._parser = CallParser(dialect, ask.tools.schemas) if dialect is not None else None
        self._job = Job(
            served.prefixes,
            tokens,
            self._settings(),
            self._emit,
            guide=self._guide,
            shown=call_markers(dialect, served.model.tokenizer) if dialect else frozenset(),
            calls=dialect is not None,
            client=ask.client,
        )
        self.position = host.scheduler.submit(self._job)
        host.metrics.asked(self.position)
        self._pulse = self._loop.call_later(PULSE_S, self._beat)

    def cancel(self) -> None:
        """End the answer before its next step, if it has not ended."""
        self._host.scheduler.cancel(self._job)

    async def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for event in self._joined():
                if isinstance(event, Finished) and event.error is not None:
                    raise event.error
                yield event
                if isinstance(event, Finished):
                    return

    def _joined(self) -> Iterator[AnswerEvent]:
        """Yield what has arrived, consecutive texts of a kind in one piece."""
        kinds = groupby(self._read(), lambda piece: isinstance(piece, TextPiece) and piece.kind)
        for kind, pieces in kinds:
            if kind is False:
                yield from pieces
            else:
                texts = list(pieces)
                chances = tuple(chance for piece in texts for chance in piece.chances)
                yield TextPiece(kind, "".join(piece.text for piece in texts), chances)

    def _read(self) -> Iterator[Any]:
        while self._events:
            event = self._events.popleft()
            if isinstance(event, TokenChance):
                self._chances.append(event)
            elif isinstance(event, Decoded):
                for piece in self._pieces(event):
                    self.called = self.called or isinstance(piece, CallPiece)
                    yield self._labelled(piece)
            elif isinstance(event, Finished):
                if self._chances:
                    yield self._labelled((Kind.ANSWER, ""))
                for piece in self._parser.finish() if self._parser else ():
                    yield self._labelled(piece)
                self.called = bool(self._parser and self._parser.calls)
                yield event
            else:
                yield Pulse()

    def _labelled(self, piece: CallPiece | Part) -> CallPiece | TextPiece:
        if isinstance(piece, CallPiece):
            return piece
        chances, self._chances = tuple(self._chances), []
        return TextPiece(*piece, chances)

    def _pieces(self, event: Decoded) -> list[Any]:
        parser = self._parser
        if parser is None:
            return list(event.parts)
        return [piece for kind, text in event.parts for piece in parser.push(kind, text)]

    def _emit(self, event: Happening) -> None:
        """Pass an event from the scheduler's thread to the event loop."""
        if self._recorder is not None and isinstance(event, Decoded) and event.token is not None:
            self._events.append(TokenChance(event.token, *self._recorder.next(event.token)))
        if isinstance(event, Finished):
            self._keep_stream(event)  # first: a server may be stopped once its answer is read
        self._events.append(event)
        if isinstance(event, Finished):
            self._loop.call_soon_threadsafe(self._end, event)
        elif not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """Let the answer be read, but not sooner than `GAP_S` after the last time."""
        wait_s = self._last_s + GAP_S - self._loop.time()
        if wait_s > 0:
            self._loop.call_later(wait_s, self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        self._told = False  # before the events are read: a later one is told again
        self._last_s = self._loop.time()
        self._arrived.set()

    def _end(self, event: Finished) -> None:
        self._pulse.cancel()
        self._host.release(self.served)
        self._host.metrics.answered(event)
        self._arrived.set()

    def _keep_stream(self, event: Finished) -> None:
        """Record what an answer that ran alone says of the experts on the disk, as `run` does."""
        # A guide or processors slow decoding, so these rates are not recorded.
        if event.experts is None or event.error is not None or self._guided:
            return
        if not self._job.settings.processors:
            served, kv_type = self.served, self._host.options.kv_type
            kernels = served.model.kernels.name
            records.keep_stream(served.report, *event.experts, event, kernels, kv_type)

    def _beat(self) -> None:
        self._pulse = self._loop.call_later(PULSE_S, self._beat)
        self._events.append(Pulse())
        self._arrived.set()

    def _settings(self) -> Settings:
        ask, processors = self.ask, list[Any]()
        if ask.logit_bias:
            processors.append(LogitBias(ask.logit_bias))
        if ask.frequency_penalty:
            processors.append(FrequencyPenalty(ask.frequency_penalty))
        if ask.top_logprobs is not None:
            self._recorder = LogprobRecorder(ask.top_logprobs)
            processors.append(self._recorder)
        found: tuple[Processor, ...] = tuple(processors)
        options = RunOptions(
            **ask.sampling,
            think=ask.think,
            max_tokens=ask.max_tokens,
            stop=list(ask.stop),
            seed=secrets.randbits(SEED_BITS) if ask.seed is None else ask.seed,
        )
        try:
            return replace(settings_for(self.served.report.entry, options), processors=found)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _guide(self, tokens: list[int]) -> Guide | None:
        guide = self._new_guide(tokens)
        self._guided = guide is not None
        return guide

    def _new_guide(self, tokens: list[int]) -> Guide | None:
        from engine.text.constrained import Guide

        ask, model = self.ask, self.served.model
        if self._constraint is not None:
            free = (model.tokenizer, model.template, tokens, None, ask.budget, ask.think)
            return Guide(*free, self._constraint)
        if ask.schema is None and ask.budget is None:
            return None
        return Guide(model.tokenizer, model.template, tokens, ask.schema, ask.budget, ask.think)


async def start(host: Host, ask: Ask) -> Answer:
    """Load the model if necessary, encode the prompt and queue the answer.

    Raises BadRequest if the prompt does not fit the context, SchemaError if a tool's parameters
    cannot be enforced.
    """
    served = await host.lease(ask.model)
    with ExitStack() as unless_queued:
        unless_queued.callback(host.release, served)
        tokens = await asyncio.to_thread(encode, served, ask)
        # Not in the scheduler's thread: a large schema takes seconds.
        constraint = await asyncio.to_thread(ask.tools.constraint, served.model)
        answer = Answer(host, served, ask, tokens, constraint)
        unless_queued.pop_all()
    return answer


def encode(served: ServedModel, ask: Ask) -> list[int]:
    """Return the prompt as tokens. Raises BadRequest if there is no room for an answer."""
    tokens = prompt_tokens(served, ask)
    if not tokens:
        raise BadRequest("the prompt is empty")
    if not 0 <= min(tokens) <= max(tokens) < served.model.config.vocab:
        raise BadRequest("a token id is outside the vocabulary")
    if not all(0 <= token < served.model.config.vocab for token in ask.logit_bias):
        raise BadRequest("a token id is outside the vocabulary", "logit_bias")
    if len(tokens) >= served.context:
        raise BadRequest(
            f"the prompt has {len(tokens):,} tokens, but the context has {served.context:,}, which "
            "must also hold the answer",
            code="context_length_exceeded",
        )
    return tokens


def prompt_tokens(served: ServedModel, ask: Ask) -> list[int]:
    """Return the prompt as tokens, whatever its length."""
    if ask.messages is None:
        return _plain_tokens(served, ask.prompt)
    return _chat_tokens(served, ask)


def render(served: ServedModel, ask: Ask) -> str:
    """Return the prompt of a conversation as text."""
    prompt: str = _rendered(served, ask, lambda template: template.render)
    return prompt


def _plain_tokens(served: ServedModel, prompt: str | list[int]) -> list[int]:
    tokenizer = served.model.tokenizer
    if not isinstance(prompt, str):
        return prompt
    start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return start + tokenizer.encode(prompt)


def _chat_tokens(served: ServedModel, ask: Ask) -> list[int]:
    tokens: list[int] = _rendered(served, ask, lambda template: template.encode)
    return tokens


def _rendered(served: ServedModel, ask: Ask, how: Callable[[Any], Callable[..., Any]]) -> Any:
    """Render a conversation, with the arguments of past calls in a form that the template reads."""
    template = served.model.template
    if template is None:
        raise BadRequest(f"{served.name} has no chat template; use /v1/completions", "messages")
    messages = ask.messages or []
    variables = {**reasoning.switches(ask.think, ask.effort, template.source), **ask.variables}
    if ask.tools.given or any(message.get("tool_calls") for message in messages):
        messages, tools = with_tools(messages, ask.tools, template.source)
        variables |= {"tools": tools} if tools else {}
    if "developer" not in template.source:
        messages = [_as_system(message) for message in messages]
    first: TemplateError | None = None
    for form in _forms(messages):
        try:
            return how(template)(form, **variables)
        except TemplateError as error:
            first = first or error
    assert first is not None
    raise first


def _forms(messages: Messages) -> Iterator[Messages]:
    """Yield a conversation in the forms that templates accept, the usual one first."""
    yield messages
    if any(message.get("tool_calls") for message in messages):
        # Older templates concatenate the arguments as text.
        yield [_with_text_arguments(message) for message in messages]
    if any(message["role"] == "system" for message in messages[1:]):
        yield [*messages[:1], *map(_as_user, messages[1:])]


def _as_user(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "user"} if message["role"] == "system" else message


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_text_arguments(call) for call in calls]}


def _text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    given = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": given}}
