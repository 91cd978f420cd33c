"""Generate an answer as a stream of tokens: prefill, then decode.

The next step starts before the current token is read, so the device never waits for Python. The
step that runs past the end of an answer also writes to the cache. Those entries are not counted,
and the next answer overwrites them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from engine.errors import ContextOverflow, EngineError, NumericError
from engine.limits import enough_memory
from engine.nn.cache.cache import DECODED, Cache
from engine.sampling import NOT_FINITE, PENALTY_WINDOW, Sampler, Settings
from engine.text.reasoning import Kind, Part, control_markers, find_dialect, new_reader, overlap

if TYPE_CHECKING:
    from engine.kernels.base import ExpertStore, Kernels
    from engine.nn.router_stats import RouterStats
    from engine.text.chat_template import ChatTemplate
    from engine.text.constrained import Guide
    from engine.text.tokenizer import Tokenizer

POLL_S = 0.05  # how often to look for a signal while experts come from the disk

OnPrefill = Callable[[int, int], None]  # (tokens processed, total tokens)
Check = Callable[[], None]


class LanguageModel(Protocol):
    """The parts of a model that generation needs. `engine.model.Model` implements them."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    kernels: Kernels

    @property
    def routes(self) -> RouterStats | None: ...

    @property
    def expert_store(self) -> ExpertStore | None: ...

    def prefill(
        self, tokens: list[int], cache: Cache, on_prefill: OnPrefill | None, check: Check
    ) -> mx.array: ...

    def forward(self, tokens: mx.array, cache: Cache) -> mx.array: ...

    def check_file(self) -> None: ...


@dataclass(slots=True)
class Stats:
    """Token counts and wall times for one answer. Prefill includes generating the first token."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens found in the cache
    prefill_s: float = 0.0
    decoded_tokens: int = 0
    thinking_tokens: int = 0  # generated before the visible answer; set by `parts()`
    decode_s: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens processed per second, excluding cached ones."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_per_s(self) -> float:
        """Tokens generated per second, excluding the first."""
        return (self.decoded_tokens - 1) / self.decode_s if self.decode_s else 0.0


class _Stopped(Exception):
    """Generation was stopped during prefill."""


class TokenStream:
    """The answer to a prompt. Read it once: iterate for token ids, or call `text()` or `parts()`.

    finish: why generation ended. "stop" means an end-of-generation token or a stop string, "length"
    means that a limit was reached, and "interrupted" means that `stop` was called. None until
    generation ends.
    cut_by: which limit ended the answer, "max_tokens" or "context", if finish is "length".
    found_stop: whether a stop string ended the answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: list[int],
        settings: Settings,
        cache: Cache,
        on_prefill: OnPrefill | None,
        guide: Guide | None = None,
    ) -> None:
        self.model, self.tokens, self.settings, self.cache = model, tokens, settings, cache
        self.on_prefill, self.guide = on_prefill, guide
        self.finish: str | None = None
        self.cut_by: str | None = None
        self.found_stop = False
        self.stats = Stats(prompt_tokens=len(tokens))
        self._shown: frozenset[int] = frozenset()
        self._steps = self._run()
        self._stopping = False
        self._ahead: tuple[mx.array, int] | None = None  # a step that has begun: result, number

    def stop(self) -> None:
        """End the answer after the current step. Safe to call from a signal handler.

        The cache stays valid, and the next answer reuses the tokens processed so far.
        """
        self._stopping = True

    def settle(self) -> None:
        """Wait for the step that runs ahead, if experts come from the disk. `stop` ends it."""
        if self._ahead is not None:
            result, step = self._ahead
            self._awaited(result, result, step)

    def __iter__(self) -> Iterator[int]:
        yield from (token for token, _ in self._steps if token is not None)

    def text(self) -> Iterator[str]:
        """Yield the answer in pieces that never split a character, without the stop string."""
        yield from (piece for _, piece in self._steps if piece)

    def parts(self) -> Iterator[Part]:
        """Yield the pieces of `text()`, each labelled with its kind, such as thinking or answer."""
        for _, parts in self.steps():
            yield from parts

    def steps(
        self, shown: frozenset[int] = frozenset(), calls: bool = False
    ) -> Iterator[tuple[int | None, list[Part]]]:
        """Yield (id, labelled pieces) for each token, then (None, remaining pieces).

        shown: control tokens to keep in the text. calls: yield also the names of called functions,
        for models that write them in headers.
        """
        tokenizer = self.model.tokenizer
        dialect = find_dialect(tokenizer, self.model.template)
        self._shown = control_markers(dialect, tokenizer) | shown
        reader = new_reader(dialect, tokenizer, self.tokens)
        reader.names_calls = calls
        before, thinks = 0, False
        for token, piece in self._steps:
            parts = list(reader.push(piece))
            thinks = thinks or any(kind is Kind.THINKING for kind, _ in parts)
            before += token is not None and not reader.answering
            self.stats.thinking_tokens = before if thinks else 0
            yield token, parts
        yield None, list(reader.finish())

    def _run(self) -> Iterator[tuple[int | None, str]]:
        """Yield (id, text completed by this token) for each token, then (None, remaining text)."""
        decoder = self.model.tokenizer.stream(self._shown)
        stops = StopFilter(self.settings.stop)
        for token in self._decode():
            piece = stops.push(decoder.push(token))
            if stops.found:
                self.finish, self.cut_by, self.found_stop = "stop", None, True
            yield token, piece
            if stops.found:
                return
        yield None, stops.push(decoder.finish()) + stops.finish()

    def _decode(self) -> Iterator[int]:
        limit = self._limit()
        if limit == 0:
            self.finish = "length"
            return
        started = time.perf_counter()
        # A penalty on the ends of earlier turns would keep this answer from ending.
        ends = self.model.tokenizer.eog_ids
        earlier = [token for token in self.tokens[-PENALTY_WINDOW:] if token not in ends]
        sampler = Sampler(self.settings, earlier, self.model.kernels.sample)
        endings = frozenset() if self.settings.ignore_end else ends
        guide = self.guide
        try:
            pending = sampler.choose(self._prefill(), guide.allowed() if guide else None)
        except _Stopped:
            self.finish, self.cut_by = "interrupted", None
            return
        mx.async_eval(pending)
        store, step = self.model.expert_store, 0
        for count in range(1, limit + 1):
            if self._stopping:
                self._awaited(pending, pending, step)
                self.finish, self.cut_by = "interrupted", None
                return
            token, ahead, step_of_token = pending, count < limit, step
            if ahead:
                if store is not None:
                    store.check_stop = self._check_stop
                try:
                    logits = self.model.forward(token[None], self.cache)
                except _Stopped:  # while it waited for the disk
                    self.finish, self.cut_by = "interrupted", None
                    return
                step = store.begun if store else 0
                pending = logits if guide else sampler.choose(logits)
                mx.async_eval(pending)
                self._ahead = pending, step
            if count > 1 and not self._awaited(token, pending, step_of_token):
                self.finish, self.cut_by = "interrupted", None
                return
            with enough_memory():
                value = int(token.item())  # type: ignore[arg-type]  # blocks until the device is done
            self._check_file()
            ended = value in endings
            if count == 1 or not ended:  # the end-of-generation token is not part of the answer
                started = self._clock(count, started)
            if value == NOT_FINITE:
                raise NumericError(f"the logits after token {self.cache.length:,} are not finite")
            if ended:
                self.stats.decoded_tokens = count - 1
                self.finish, self.cut_by = "stop", None
                return
            if ahead:
                self.cache.extend([value], DECODED)
                if self.model.routes is not None:
                    self.model.routes.commit_step()
            else:
                self.finish = "length"
            if ahead and guide:  # compute the mask while the device computes the logits
                guide.accept(value)
                pending = sampler.choose(logits, guide.allowed())
                mx.async_eval(pending)
            yield value

    def _check_file(self) -> None:
        """Raise an error if the weights could not be read. The cache loses what they computed."""
        try:
            self.model.check_file()
        except EngineError:
            self.cache.trim(max(self.cache.length - 1, 0))
            raise

    def _awaited(self, token: mx.array, next_token: mx.array, step: int) -> bool:
        """Wait for a token whose experts may come from the disk. Returns False if stopped.

        The step that computes the token, and the one after it, then end early. The cache loses the
        token before.
        """
        store = self.model.expert_store
        if store is None:
            return True
        done = False
        try:
            while not (done := store.wait(token, step, POLL_S)) and not self._stopping:
                pass
        finally:
            if not done:
                store.stop()
                mx.eval(token, next_token)
                store.resume()
                self.cache.trim(self.cache.length - 1)
                if self.model.routes is not None:
                    self.model.routes.take_back_step()
        return done

    def _limit(self) -> int:
        """Return the answer's maximum length in tokens. Sets `cut_by` to the limit that applies."""
        room = self.cache.context - len(self.tokens)
        if self.settings.max_tokens is not None and self.settings.max_tokens <= room:
            self.cut_by = "max_tokens"
            return self.settings.max_tokens
        self.cut_by = "context"
        if room < 0:
            raise ContextOverflow(len(self.tokens), self.cache.context)
        return room

    def _prefill(self) -> mx.array:
        """Process the uncached part of the prompt. Returns the next token's logits (V,)."""
        self.cache.reuse(self.tokens)
        self.stats.cached_tokens = self.cache.length
        self._check_stop()
        fresh = self.tokens[self.cache.length :]
        return self.model.prefill(fresh, self.cache, self.on_prefill, self._check_stop)

    def _check_stop(self) -> None:
        if self._stopping:
            raise _Stopped

    def _clock(self, count: int, started: float) -> float:
        now = time.perf_counter()
        self.stats.decoded_tokens = count
        if count == 1:
            self.stats.prefill_s = now - started
        else:
            self.stats.decode_s += now - started
        return now


class StopFilter:
    """Pass text through until the first stop string.

    Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text and return the part that cannot belong to a stop string."""
        text = self.held + piece
        cuts = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if cuts:
            self.found, self.held = True, ""
            return text[: min(cuts)]
        kept = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return the text still held back. Call this after the last piece."""
        held, self.held = self.held, ""
        return held
