"""A loaded model: the configuration, tokenizer, chat template and graph from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.architectures.registry import WIDE_ACTIVATIONS, builder
from engine.device import backend, set_wired_limit
from engine.errors import NumericError
from engine.fit.machine import this_machine
from engine.generate import OnPrefill, TokenStream
from engine.gguf.reader import ModelFile, open_model
from engine.kernels.base import ExpertStore
from engine.kernels.native.fused import fuse
from engine.kernels.select import select
from engine.limits import STREAM_CHUNK, enough_memory, prefill_chunk, without_collection
from engine.nn.cache.cache import READ, WHOLE, Cache
from engine.nn.cache.spec import KV_TYPES
from engine.nn.config import ModelConfig, read_model_config, used_tensors
from engine.nn.decoder import Decoder
from engine.nn.weights import Weights
from engine.sampling import Settings
from engine.text import chat_template, tokenizer

if TYPE_CHECKING:
    from engine.nn.router_stats import RouterStats
    from engine.text.chat_template import ChatTemplate
    from engine.text.constrained import Guide
    from engine.text.sandbox import Sandbox
    from engine.text.tokenizer import Tokenizer


class Model:
    """A loaded model. It processes one sequence at a time and is not thread-safe.

    template: None if the file has no chat template. kernels: if the slower kernels are in use,
    `kernels.fallback_reason` explains why. check_file: raises FileShrank or ReadFailed if the
    mapped weights are no longer those of the file. expert_store: the experts, if they stay in the
    file; None if they are in memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        decoder: Decoder,
        check_file: Callable[[], None] = lambda: None,
        expert_store: ExpertStore | None = None,
    ) -> None:
        self.check_file, self.expert_store = check_file, expert_store
        self.config, self.tokenizer, self.template = config, tokenizer, template
        self.kernels = decoder.kernels
        self._decoder = decoder

    def count_routes(self) -> RouterStats | None:
        """Start counting which experts are chosen. Returns None if the model has no experts.

        Counts only tokens processed with a cache. `reset` on the result sets all counts to zero.
        """
        config = self.config
        layers = tuple(layer for layer in range(config.layers) if config.routed(layer))
        if config.experts is None or not layers:
            return None
        if self._decoder.routes is None:
            from engine.nn.router_stats import RouterStats

            stats = RouterStats(layers, config.experts.count, config.experts.used)
            self._decoder.record_routes(stats)
        return self._decoder.routes

    @property
    def routes(self) -> RouterStats | None:
        """The counts that `count_routes` started, or None if it has not been called."""
        return self._decoder.routes

    def new_cache(self, context: int = 4096, kv_type: str = "f16") -> Cache:
        """Return an empty cache for one sequence.

        context: maximum length in tokens. kv_type: f16, q8 or f32.
        """
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, got {kv_type!r}")
        if context < 1:
            raise ValueError(f"context must be at least 1, got {context}")
        layers = self._decoder.layers
        caches = layers.new_caches(context, kv_type)
        block = self.kernels.block_tokens if self.config.experts else 0
        return Cache(
            caches, context, lambda length: layers.rewindable_length(caches, length), block
        )

    def logits(self, tokens: list[int]) -> mx.array:
        """Return the logits at every position, computed without a cache: (T, V) float32."""
        self._check(tokens)
        with self.kernels.reading():
            logits = self._decoder.logits(self._decoder.hidden(mx.array(tokens), None, 0))
        if self.expert_store is not None:  # a failed read shows only then
            mx.eval(logits)
            self.check_file()
        return logits

    def prompt_chunk(self, context: int) -> int:
        """Return how many tokens of a prompt are processed at a time. context: the cache's."""
        if self.expert_store is not None and self._decoder.layers.long_chunks:
            return STREAM_CHUNK
        return prefill_chunk(self.config, context, self.kernels.name)

    def step(self, tokens: list[int], cache: Cache) -> mx.array:
        """Append tokens to the cached sequence. Returns the next token's logits, (V,) float32.

        Raises ContextOverflow before computing anything, or NumericError if a logit is not finite.
        """
        self._check(tokens)
        cache.require(len(tokens))
        logits = self.prefill(tokens, cache, None)
        if not mx.isfinite(logits.sum()).item():
            raise NumericError(f"the logits after token {cache.length:,} are not finite")
        return logits

    def generate(
        self,
        tokens: list[int],
        settings: Settings,
        cache: Cache | None = None,
        on_prefill: OnPrefill | None = None,
        guide: Guide | None = None,
    ) -> TokenStream:
        """Return a stream that continues `tokens`, the whole sequence so far. Reuses cached tokens.

        on_prefill: receives (tokens processed, total tokens). guide: constrains the answer. The
        stream raises ContextOverflow and NumericError.
        """
        self._check(tokens)
        cache = self.new_cache() if cache is None else cache
        return TokenStream(self, tokens, settings, cache, on_prefill, guide)

    def prefill(
        self,
        tokens: list[int],
        cache: Cache,
        on_prefill: OnPrefill | None,
        check: Callable[[], None] = lambda: None,
    ) -> mx.array:
        """Append tokens of a prompt to the cache, in chunks that limit scratch memory.

        Chunks end at fixed positions, and a token's result does not depend on which other tokens
        are in its chunk, except in a whole block (`Cache.block`). Returns the next token's logits
        (V,). check: called between chunks and during long ones. If it raises an exception, the
        cache stays valid. Raises FileShrank and ReadFailed.
        """
        chunk = self.prompt_chunk(cache.context)

        if self.expert_store is not None:
            self.expert_store.check_stop = check

        def tell(start: int, count: int, share: float) -> None:
            if on_prefill is not None:
                on_prefill(start + int(share * count), len(tokens))
            check()

        first = cache.length
        for fed in _chunks(first, first + len(tokens), chunk):
            start = fed.start - first
            part = tokens[start : fed.stop - first]
            with enough_memory():
                with self.kernels.reading():
                    logits = self.forward(mx.array(part), cache)
                self._decoder.layers.evaluate(
                    logits, cache.layers, fed, partial(tell, start, len(part))
                )
            self.check_file()
            for block in _chunks(fed.start, fed.stop, cache.block or chunk):
                whole = len(block) == cache.block
                cache.extend(
                    part[block.start - fed.start :][: len(block)], WHOLE if whole else READ
                )
            if self.routes is not None:
                self.routes.commit_step()
            tell(start, len(part), 1.0)
        return logits

    def forward(self, tokens: mx.array, cache: Cache) -> mx.array:
        """Start one step over tokens (T,). Returns the next token's logits (V,), not yet evaluated.

        Does not append to `cache.tokens`.
        """
        hidden = self._decoder.hidden(tokens, cache, cache.length)
        return self._decoder.logits(hidden[-1:]).squeeze(0)

    def _check(self, tokens: list[int]) -> None:
        if not tokens:
            raise ValueError("tokens must not be empty")
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab:
            raise ValueError(f"token ids must be between 0 and {self.config.vocab - 1:,}")


def _chunks(start: int, end: int, size: int) -> Iterator[range]:
    """Cut positions start..end at the multiples of `size`."""
    while start < end:
        stop = min(start - start % size + size, end)
        yield range(start, stop)
        start = stop


@without_collection()
def load(
    path: str | Path | ModelFile,
    kernels: str = "auto",
    threads: int | None = None,
    sandbox: Sandbox | None = None,
    on_load: Callable[[int, int], None] | None = None,
    isa: str | None = None,
    gpu_verdicts: Path | None = None,
    expert_bytes: int | None = None,
) -> Model:
    """Load a model. path: a GGUF file, part 1 of a split file, or the result of `open_model`.

    kernels: auto, native, blocks or stock. threads: CPU threads for the native kernels. sandbox:
    runs the chat template. on_load: receives (bytes loaded, total bytes). isa: the native kernels'
    instruction set, such as avx2, for all models in this process. gpu_verdicts: a file that keeps
    which kernels work on this GPU; block types are tried at their first use. None means that all
    work. expert_bytes: the memory for the experts of a mixture, which stay in the file and are read
    when they are chosen; None loads them all.

    Raises GGUFError if the file is invalid, UnsupportedError if the engine cannot run it,
    BackendError if no backend is usable, FileShrank or ReadFailed if the file can no longer be
    read, ExpertsDoNotFit if the experts of one token need more than expert_bytes, or ValueError if
    there are no experts to leave in the file.
    """
    file = path if isinstance(path, ModelFile) else open_model(Path(path))
    config = read_model_config(file.metadata, file.tensors)
    read = {info.name: info for info in used_tensors(config, file.tensors)}
    file = replace(file, tensors=read)
    words = tokenizer.from_metadata(file.metadata)
    chat = chat_template.from_metadata(file.metadata, words, sandbox)
    build = builder(config.architecture)
    with enough_memory():
        wide = config.architecture in WIDE_ACTIVATIONS
        chosen = select(kernels, threads, isa, gpu_verdicts, wide)
        store = None
        if expert_bytes is not None:
            store = chosen.store(config, file.tensors, expert_bytes, file.parts)
        weights = Weights(file, chosen, on_load, store)
        decoder: Decoder = build(config, weights)
        fuse(decoder, config, file.tensors, store)
        if store is not None:
            from engine.nn.stored import run_from_store

            run_from_store(decoder)
        if weights.kernels.name == "blocks":
            from engine.kernels.gpu.fuse import fuse_experts

            fuse_experts(decoder)
        mx.clear_cache()  # frees repacking's buffers
    weights.check_files()
    weights.loaded()
    if backend() == "metal":
        active_bytes = mx.get_active_memory() + (expert_bytes or 0)  # which the store will fill
        set_wired_limit(active_bytes, this_machine().budget_bytes)
    if store is not None:

        def check() -> None:
            store.check()
            weights.check_files()

        return Model(config, words, chat, decoder, check, store)
    if not weights.kernels.in_place:  # the file is no longer in use
        return Model(config, words, chat, decoder)
    return Model(config, words, chat, decoder, weights.check_files)
