"""A loaded model with its cache and settings. It turns messages into a stream of text."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli.errors import UsageError
from conifer_cli.fit import run_history
from conifer_cli.fit.context import advice
from conifer_cli.fit.streaming import records, wording
from conifer_cli.interrupts import time_limit
from conifer_cli.options import gpu_verdicts
from conifer_cli.run_options import RunOptions
from conifer_cli.session import checkpoint
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog import Entry
    from conifer_cli.fit.verdict import FitReport
    from engine.generate import TokenStream
    from engine.model import Model
    from engine.nn.cache.cache import Cache
    from engine.sampling import Settings
    from engine.streaming import StoreStats
    from engine.text.constrained import Guide
    from engine.text.reasoning import Part

JSON_OBJECT = '{"type": "object", "minProperties": 1}'  # the schema of --format json
SLOW = "using the slow kernels: {}. Install a C++ compiler, then reinstall Conifer."
REFUSED = "{} weights use MLX's own operations: {}. Run `conifer doctor --gpu` for all types."
ANSWER_ROOM = 2048  # tokens to keep free for an answer when a long prompt grows the context
LONG_CHARACTERS, MANY_MESSAGES = 1 << 20, 2000  # more are counted before rendering
FOLDED = (
    "this model's chat template takes no system message, so it is part of the first user message"
)
CACHE_VERSION = 2  # increment if caches are computed or stored differently
CHECK_S = 10  # the time limit for checking an answer against its schema
SEED_BITS = 53  # size of random seeds: every JSON parser reads these integers exactly

Messages = list[dict[str, str]]


class Session:
    """A model, its settings and its cache. raw: the model only completes text, without roles."""

    def __init__(self, report: FitReport, options: RunOptions) -> None:
        self.report = report
        self.options = options
        self.raw = is_raw(report)
        self._told_folded = False
        self.model = _loaded(report, options, chatting=not self.raw)
        if self.model.kernels.fallback_reason is not None:
            console.note(SLOW.format(self.model.kernels.fallback_reason))
        for type_name, reason in self.model.kernels.refusals.items():
            if reason is not None:
                console.note(REFUSED.format(type_name, reason))
        self.settings = settings_for(report.entry, options)
        self.cache: Cache | None = None
        if options.experts or options.experts_out:
            self.model.count_routes()

    def change(self, **changes: Any) -> None:
        """Change RunOptions fields for later answers. Raises ValueError."""
        options = replace(self.options, **changes)
        self.settings = settings_for(self.report.entry, options)
        self.options = options

    def close(self) -> None:
        import gc

        del self.model
        self.cache = None
        gc.collect()

    def initial_messages(self) -> Messages:
        system = self.options.system
        return [{"role": "system", "content": system}] if system else []

    def encode(self, messages: Messages) -> list[int]:
        """Encode a conversation. For a raw model, encode only the last message."""
        from engine.errors import EmptyPrompt
        from engine.text import reasoning

        template, tokenizer = self.model.template, self.model.tokenizer
        raw = self.raw or template is None
        self._require_room([m["content"] for m in (messages[-1:] if raw else messages)])
        if template is None or raw:
            start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
            tokens = start + tokenizer.encode(messages[-1]["content"])
        else:
            switches = reasoning.switches(self.options.think, self.options.effort, template.source)
            tokens = template.encode(messages, **switches)
            if template.folded and not self._told_folded:
                console.note(FOLDED)
                self._told_folded = True
        if not tokens:
            raise EmptyPrompt(
                "the prompt is empty: the model's vocabulary has no token for its text"
            )
        return tokens

    def _require_room(self, texts: list[str]) -> None:
        """Raise ContextOverflow if long texts alone exceed every context, before rendering them."""
        from engine.errors import ContextOverflow

        if sum(map(len, texts)) < LONG_CHARACTERS and len(texts) < MANY_MESSAGES:
            return
        limit = self.options.context or max(self.context, self.report.verdict.largest_context)
        used = sum(map(self.model.tokenizer.count, texts))
        if used > limit:
            raise ContextOverflow(used, limit)

    def answer(self, tokens: list[int], context: int | None = None) -> Generation:
        """Start an answer, reusing any prefix of `tokens` that is already in the cache."""
        cache = self.kv_cache(len(tokens), context)
        if self.model.routes is not None:
            self.model.routes.reset()
        return Generation(self, tokens, cache)

    def kv_cache(self, prompt_tokens: int, context: int | None = None) -> Cache:
        """Return a cache with room for at least `context` tokens.

        If `context` is None, the prompt length determines the capacity.
        """
        context = self._context(prompt_tokens) if context is None else context
        if self.cache is None or self.cache.context < context:
            self.cache = self.model.new_cache(context, self.options.kv_type)
        return self.cache

    @functools.cached_property
    def identity(self) -> str:
        """A digest that identifies the model's files."""
        return checkpoint.identity(self.report)

    def require_identity(self) -> None:
        """Identify the model's files now, because they may change before they are saved."""
        _ = self.identity

    @functools.cached_property
    def cache_format(self) -> str:
        """The format of this session's caches. A cache in another format cannot be restored."""
        return stored_format(self.model, self.options.kv_type)

    def save(self, path: Path, messages: Messages, with_cache: bool = True) -> None:
        """Write the conversation to a file. Raises OutputError or Unreadable.

        with_cache: if False, write only the messages and do not touch the model.
        """
        from engine.nn.cache.state import dump

        # Blob names do not carry the shard number, so keep the link's path.
        reference = self.report.paths[0] if self.report.entry is None else None
        facts = {
            "model": str(reference.absolute()) if reference else self.report.name,
            "identity": self.identity,
            "form": self.cache_format if with_cache else "",
            "messages": messages,
        }
        kept = dump(self.model, self.cache) if with_cache and self.cache is not None else None
        checkpoint.write(path, checkpoint.ConversationHeader.kind, facts, kept)

    def resume(self, path: Path) -> Messages:
        """Load a saved conversation's messages. Raises UsageError, BadSaved or CacheStateError."""
        from engine.nn.cache.state import load

        header, kept = checkpoint.read(path, checkpoint.ConversationHeader)
        if header.identity != self.identity:
            raise UsageError(
                f"{path} was saved with a different model file ({header.model})",
                "Specify that model, or omit the model name.",
            )
        if header.form == self.cache_format and kept.tokens:  # otherwise process the text again
            self.cache = None
            load(self.model, kept, self.kv_cache(len(kept.tokens)))
        first = header.messages[0] if header.messages else {}
        system = first["content"] if first.get("role") == "system" else None
        self.options = replace(self.options, system=system)
        return header.messages

    @property
    def context(self) -> int:
        """The cache's capacity in tokens, or the initial capacity if there is no cache yet."""
        return self.cache.context if self.cache else self.report.verdict.context

    @property
    def can_think(self) -> bool:
        """True if the model can think before it answers, or its template asks whether to."""
        from engine.text.reasoning import find_dialect

        template = self.model.template
        asks = template is not None and "thinking" in template.source
        return asks or find_dialect(self.model.tokenizer, template) is not None

    @contextmanager
    def explaining_overflow(self) -> Iterator[None]:
        """Add a note to ContextOverflow on how to get a larger context, or why there is none."""
        from engine.errors import ContextOverflow

        try:
            yield
        except ContextOverflow as error:
            advice = self.context_advice(error.used)
            error.add_note(f"Shorten the prompt. {advice}")
            raise

    def context_advice(self, needed: int) -> str:
        """Return how to get a context of `needed` tokens, or why there is none."""
        return advice(self.report, self.context, needed, self.options.kv_type)

    def _context(self, prompt_tokens: int) -> int:
        """Return the context to use. Unless the user set one, a long prompt at least doubles it."""
        context = self.context
        if self.report.expert_bytes is not None:  # experts have the rest of the memory
            return context
        needed = prompt_tokens + min(self.options.max_tokens or ANSWER_ROOM, ANSWER_ROOM)
        if self.options.context is not None or needed <= context:
            return context
        return max(context, min(max(needed, 2 * context), self.report.verdict.largest_context))


class Generation:
    """An answer being generated. Iterate over its parts, then read `stream.finish` and `.stats`."""

    def __init__(self, session: Session, tokens: list[int], cache: Cache) -> None:
        self._session = session
        self._progress = Progress("processing the prompt", "tokens", session.options.verbose)
        self._started = time.perf_counter()
        self._faults = run_history.disk_faults()
        self._experts_before = _expert_stats(session)
        self.first_s = self.total_s = 0.0  # seconds until the first and last parts
        self._call_markers: frozenset[int] | None = None
        settings = session.settings
        if settings.seed is None:
            settings = replace(settings, seed=secrets.randbits(SEED_BITS))
        self.seed = settings.seed
        self.stream: TokenStream = session.model.generate(
            tokens, settings, cache, on_prefill=self._progress.update, guide=_guide(session, tokens)
        )

    def keep_calls(self, markers: frozenset[int]) -> None:
        """Keep calls of functions in the parts. markers: the control tokens around them."""
        self._call_markers = markers

    def _parts(self) -> Iterator[Part]:
        if self._call_markers is None:
            return self.stream.parts()
        steps = self.stream.steps(self._call_markers, calls=True)
        return (part for _, parts in steps for part in parts)

    def __iter__(self) -> Iterator[Part]:
        with self._progress, self._session.explaining_overflow():
            for part in self._parts():
                self._progress.clear()
                self.total_s = time.perf_counter() - self._started
                self.first_s = self.first_s or self.total_s
                yield part
        self.total_s = time.perf_counter() - self._started
        kernels, kv_type = self._session.model.kernels.name, self._session.options.kv_type
        # A guide or processors slow decoding, so these rates are not recorded.
        if self.stream.guide is None and not self._session.settings.processors:
            faults = run_history.disk_faults() - self._faults
            run_history.record_answer(
                self._session.report, kernels, kv_type, self.stream.stats, faults
            )
            self._keep_routes()

    def _keep_routes(self) -> None:
        """Record how routers repeated themselves, and what that took from the disk."""
        report, routes = self._session.report, self._session.model.routes
        after = _expert_stats(self._session)
        if self._experts_before is not None and after is not None:
            before, stats = self._experts_before, self.stream.stats
            how = self._session.model.kernels.name, self._session.options.kv_type
            records.keep_stream(report, before, after, stats, *how)
        elif routes is not None:
            records.keep_reuse(report, routes)

    @property
    def streamed(self) -> StoreStats | None:
        """What was read from the disk for this answer; None if all experts are in memory."""
        after = _expert_stats(self._session)
        if self._experts_before is None or after is None:
            return None
        return after - self._experts_before

    @property
    def cut_by_context(self) -> bool:
        return self.stream.finish == "length" and self.stream.cut_by == "context"

    def require_schema(self, text: str) -> None:
        """Raise AnswerMismatch if a complete answer does not match its schema.

        Raises ConstraintError if the check takes too long: matching a `pattern` can take
        exponential time.
        """
        schema = self._session.options.grammar
        if schema is None or self.stream.finish != "stop" or self.stream.found_stop:
            return
        from engine.errors import ConstraintError
        from engine.text.json_document import require_match

        try:
            with time_limit(CHECK_S):
                require_match(text, schema)
        except TimeoutError as error:
            raise ConstraintError(
                f"the answer was not checked: its schema takes more than {CHECK_S} s"
            ) from error

    def record(self) -> dict[str, Any]:
        """Return the finish reason, token counts and rates for --json."""
        stats, done = self.stream.stats, self.streamed
        return {
            "finish_reason": self.stream.finish or "stop",
            "cut_by": self.stream.cut_by if self.stream.finish == "length" else None,
            "usage": {
                "prompt_tokens": stats.prompt_tokens,
                "cached_tokens": stats.cached_tokens,
                "completion_tokens": stats.decoded_tokens,
                "reasoning_tokens": stats.thinking_tokens,
                "total_tokens": stats.prompt_tokens + stats.decoded_tokens,
            },
            "rates": {
                "first_token_s": round(stats.prefill_s, 4),
                "total_s": round(self.total_s, 4),
                "prompt_tokens_per_s": round(stats.prompt_per_s, 2),
                "completion_tokens_per_s": round(stats.decode_per_s, 2),
            },
            **({"experts_from_disk": wording.streamed_document(done)} if done else {}),
        }

    def stats(self) -> list[str]:
        """Return token counts and rates of the prompt, then of the answer."""
        stats = self.stream.stats
        cached = f" ({stats.cached_tokens:,} from the cache)" if stats.cached_tokens else ""
        prompt, answer = (counted(n, "token") for n in (stats.prompt_tokens, stats.decoded_tokens))
        done = self.streamed
        return [
            f"prompt: {prompt}{cached}, {stats.prompt_per_s:,.1f} tokens/s",
            f"answer: {answer}, {stats.decode_per_s:,.1f} tokens/s",
            *([wording.streamed(done)] if done else []),
        ]


def _expert_stats(session: Session) -> StoreStats | None:
    store = session.model.expert_store
    return store.stats() if store is not None else None


def _guide(session: Session, tokens: list[int]) -> Guide | None:
    options = session.options
    if options.grammar is None and options.reasoning_budget is None:
        return None
    from engine.text.constrained import Guide

    model, budget = session.model, options.reasoning_budget
    return Guide(model.tokenizer, model.template, tokens, options.grammar, budget, options.think)


def _loaded(report: FitReport, options: RunOptions, chatting: bool) -> Model:
    """Load a model while the process that renders its chat template starts."""
    from engine.text.sandbox import Sandbox

    sandbox = Sandbox()
    if chatting:
        sandbox.start()
    from engine.model import load

    source = report.file or report.paths[0]
    with Progress("loading", always=False) as progress:
        model = load(
            *(source, options.kernels),
            sandbox=sandbox,
            on_load=progress.update,
            isa=options.isa,
            gpu_verdicts=gpu_verdicts(),
            expert_bytes=report.expert_bytes,
        )
    model.tokenizer.prepare()
    return model


def is_raw(report: FitReport) -> bool:
    """True if a model only completes text: a base model, or one without a chat template.

    If the header has not been read, only the catalog entry is checked.
    """
    if report.entry is not None and report.entry.kind == "base":
        return True
    return report.metadata is not None and "tokenizer.chat_template" not in report.metadata


def stored_format(model: Model, kv_type: str) -> str:
    """Return the format of a model's caches in files: another one cannot be restored."""
    from engine.nn.cache.state import cache_format

    kernels = model.kernels
    return f"{kernels.name} {kernels.isa or ''} {cache_format(model, kv_type)} {CACHE_VERSION}"


def settings_for(entry: Entry | None, options: RunOptions) -> Settings:
    """Return sampling settings. User options override the catalog, which overrides the defaults."""
    from engine.sampling import Settings

    advice = entry.sampling if entry else None
    if entry and options.think is False:
        advice = entry.sampling_no_think or advice
    advised = asdict(advice) if advice else {}
    chosen = {name: value for name, value in advised.items() if value is not None}
    chosen |= options.sampling
    return Settings(
        max_tokens=options.max_tokens, seed=options.seed, stop=tuple(options.stop or ()), **chosen
    )
