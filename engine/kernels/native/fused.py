"""Run a decoder's layers, and its head, each as a single C++ task.

MLX and Python do no work in between. `engine.kernels.fusion` determines which models support
this. Axes: T tokens, D width, L layers, n width of a layer's embedding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.gguf.reader import TensorInfo
from engine.kernels.fusion import fuses
from engine.kernels.native import NativeKernels
from engine.kernels.native.convert import LayerConverter, native_norm, native_weight
from engine.nn.cache.cache import REWIND
from engine.nn.cache.spec import STEP, WINDOW_SLACK
from engine.nn.config import ModelConfig
from engine.nn.decoder import (
    AnyBlock,
    Block,
    Blocks,
    Decoder,
    LMHead,
    OnProgress,
    ParallelBlock,
    SingleBlock,
)
from engine.nn.mlp import LayerEnd
from engine.nn.moe import DenseAndExperts
from engine.nn.norm import AnyNorm

if TYPE_CHECKING:
    from engine.kernels.base import ExpertStore
    from engine.kernels.native import _native
    from engine.nn.router_stats import RouterStats

# A step takes long enough to need cancellation if (tokens x bytes of weights) reaches this.
CANCELLABLE_BYTES = 64 * 10**9
POLL_S = 0.01


def fuse(
    decoder: Decoder,
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    store: ExpertStore | None = None,
) -> None:
    """Replace a decoder's layers and head with single tasks, if its kernels support this.

    store: has the experts, if they stay in the file.
    """
    kernels, layers, head = decoder.kernels, decoder.layers, decoder.head
    if not isinstance(kernels, NativeKernels):
        return
    assert isinstance(layers, Blocks) and isinstance(head, LMHead)
    if fuses(config, tensors):
        decoder.layers = FusedLayers(layers, kernels.native, store)
    if isinstance(head.norm, AnyNorm):  # several streams end otherwise
        decoder.head = FusedHead(head, head.norm, kernels.native)


class FusedLayers:
    """A decoder's layers as one task. Their caches are stored in the extension."""

    def __init__(
        self, layers: Blocks, native: ModuleType, store: ExpertStore | None = None
    ) -> None:
        self.native, self.store = native, store
        self.windowed = any(spec.window for spec in layers.cache_specs)
        self.borrows = any(spec.borrowed for spec in layers.cache_specs)
        # A borrowed cache that moves must not move again before its borrower has read it.
        self.long_chunks = store is not None and not (self.windowed and self.borrows)
        self.stack: _native.Stack = native.Stack()
        builder = StackBuilder(self.stack, native, store is not None)
        caches: dict[int, int] = {}  # the number of each block's cache among those of attention
        for layer, (block, spec) in enumerate(zip(layers.blocks, layers.cache_specs, strict=True)):
            source = layers.sources[layer]
            if spec.buffers and source == layer:
                caches[layer] = len(caches)
            builder.add(layer, block, caches[source] if source != layer else -1)
        self.width = builder.width
        self.bytes = self.stack.bytes
        self.stats: RouterStats | None = None

    def new_caches(self, context: int, kv_type: str) -> _native.Caches:
        cache_type = self.native.CacheType[kv_type]
        return self.stack.new_caches(context, cache_type, REWIND, WINDOW_SLACK + STEP)

    def rewindable_length(self, caches: _native.Caches, length: int) -> int:
        return caches.rewindable_length(length)

    def evaluate(
        self, result: mx.array, caches: _native.Caches, tokens: range, on_progress: OnProgress
    ) -> None:
        if self.store is None and len(tokens) * self.bytes < CANCELLABLE_BYTES:
            mx.eval(result)
            return
        mx.async_eval(result)
        with ExitStack() as unless_done:
            unless_done.callback(self._cancel, result, caches, tokens.start)
            on_progress(0.0)
            while not self.native.ready(result):
                time.sleep(POLL_S)
                on_progress(self.stack.done)
            mx.eval(result)  # re-raises the task's exception
            unless_done.pop_all()

    def _cancel(self, result: mx.array, caches: _native.Caches, offset: int) -> None:
        self.stack.cancel(True)
        if self.store is not None:
            self.store.stop()
        try:
            mx.eval(result)
        finally:
            self.stack.cancel(False)
            if self.store is not None:
                self.store.resume()
            caches.undo(offset)

    def record_routes(self, stats: RouterStats) -> None:
        self.stats = stats

    def __call__(
        self,
        x: mx.array,
        caches: _native.Caches | None,
        offset: int,
        embedded: mx.array | None = None,
    ) -> mx.array:
        _require_rows(x, self.width)
        rows = None if embedded is None else embedded.reshape(x.shape[0], -1)
        if caches is None and self.borrows:
            caches = self.new_caches(x.shape[0], "f32")
        end = offset + x.shape[0]
        if offset < 0 or (caches is not None and end > caches.capacity):
            raise ValueError(f"tokens {offset:,} to {end:,} are outside the cache")
        # A window has room for this many new tokens at a time.
        cut = caches is not None and self.windowed and not self.long_chunks
        step = WINDOW_SLACK if cut else x.shape[0]
        starts = range(0, max(x.shape[0], 1), max(step, 1))

        def part(start: int) -> tuple[mx.array, _native.Caches | None, int, mx.array | None]:
            of = slice(start, start + step)
            return x[of], caches, offset + start, None if rows is None else rows[of]

        if self.stats is None:
            return _joined([self.stack.run(*part(start)) for start in starts], 0)
        runs = [self.stack.run_with_routes(*part(start)) for start in starts]
        self.stats.record(_joined([ids for _, ids in runs], 1))
        return _joined([y for y, _ in runs], 0)


class StackBuilder:
    """Adds a decoder's blocks to a stack. stored: experts stay in the file."""

    def __init__(self, stack: _native.Stack, native: ModuleType, stored: bool) -> None:
        self.stack, self.native = stack, native
        self.convert = LayerConverter(native, stored).convert
        self.width = 0

    def add(self, layer: int, block: AnyBlock, lender: int) -> None:
        """Add a block. lender: the number of the cache that it reads; -1: its own."""
        place = self.native.Place
        if isinstance(block, SingleBlock):
            self.stack.add(self.convert(block.mixer or block.feed_forward, block.norm))
            self.width = block.norm.weight.size
            return
        if isinstance(block, ParallelBlock):
            self.stack.add(self.convert(block.mixer, block.norm), to=place.aside, lender=lender)
            self.stack.add(self.convert(block.feed_forward, block.norm), base=place.aside)
            self.width = block.norm.weight.size
            return
        assert isinstance(block, Block)
        residual, after = block.residual_scale, block.post_feed_forward_norm
        mixer = self.convert(block.mixer, block.mixer_norm, residual, block.post_mixer_norm)
        self.stack.add(mixer, lender=lender)
        self.width = block.mixer_norm.weight.size
        part = block.feed_forward
        if isinstance(part, DenseAndExperts):
            dense = self.convert(part.dense, part.norm, after=part.dense_norm)
            self.stack.add(dense, base=place.nothing, to=place.aside)
            experts = self.convert(part.routed, part.experts_norm, after=part.routed_norm)
            experts.router_norm = (part.router_scale, part.eps, None, False)
            self.stack.add(experts, base=place.aside, to=place.aside)
            end = self.native.EndLayer()
            end.norm, end.scale = native_norm(after), 1.0
            self.stack.add(end)
        else:
            self.stack.add(self.convert(part, block.feed_forward_norm, residual, after))
        if isinstance(block.end, LayerEnd):
            self._add_end(layer, block.end)

    def _add_end(self, layer: int, end: LayerEnd) -> None:
        if end.embedding is not None:
            made = self.native.DenseLayer()
            made.gate = native_weight(end.embedding.gate.weight)
            made.down = native_weight(end.embedding.projection.weight)
            made.activation, made.residual = self.native.Activation.gelu, 1.0
            made.post_norm = native_norm(end.embedding.norm)
            made.given_at = layer * end.embedding.gate.weight.shape[0]
            self.stack.add(made)
        if end.scale is not None:
            scaled = self.native.EndLayer()
            scaled.scale = end.scale.item()
            self.stack.add(scaled)


class FusedHead:
    """The final norm and the projection to the vocabulary, as one task."""

    def __init__(self, head: LMHead, norm: AnyNorm, native: ModuleType) -> None:
        self.width = norm.weight.size
        self.finish = head.finish
        self.head: _native.Head = native.Head(native_norm(norm), native_weight(head.output))

    def __call__(self, x: mx.array) -> mx.array:
        _require_rows(x, self.width)
        return self.finish(self.head.run(x))


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def _require_rows(x: mx.array, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or x.dtype != mx.float32:
        raise ValueError(f"expected float32 (T, {width}), got {x.dtype} {x.shape}")
