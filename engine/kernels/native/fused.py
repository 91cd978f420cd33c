"""Run a decoder's layers, and its head, each as a single C++ task.

MLX and Python do no work in between. `engine.kernels.fusion` determines which models support
this. Axes: T tokens, D width.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.architectures.registry import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN
from engine.gguf.reader import TensorInfo
from engine.kernels.base import QTensor
from engine.kernels.fusion import fuses
from engine.kernels.native import NativeKernels, NativeTensor
from engine.nn.attention import Attention
from engine.nn.cache.cache import REWIND
from engine.nn.cache.spec import STEP, WINDOW_SLACK
from engine.nn.config import ModelConfig
from engine.nn.decoder import Block, Blocks, Decoder, LMHead, OnProgress, SingleBlock
from engine.nn.mla import LatentAttention
from engine.nn.mlp import Activation, FeedForward, clamped_swiglu, squared_relu, swiglu
from engine.nn.moe import ExpertLinear, Experts, SharedExperts
from engine.nn.norm import AnyNorm, RMSNorm
from engine.nn.recurrent import LENGTH_EPS, GatedDeltaNet, KimiDeltaAttention, Mamba2
from engine.nn.rope import RoPE
from engine.nn.weights import Linear

if TYPE_CHECKING:
    from engine.kernels.native import _native
    from engine.nn.router_stats import RouterStats

ACTIVATIONS: dict[Activation, str] = {swiglu: "silu", clamped_swiglu: "clamped"}
GATINGS = {SOFTMAX: "softmax", SIGMOID: "sigmoid", SOFTMAX_OF_CHOSEN: "softmax_of_chosen"}
# A step takes long enough to need cancellation if (tokens x bytes of weights) reaches this.
CANCELLABLE_BYTES = 64 * 10**9
POLL_S = 0.01


def fuse(decoder: Decoder, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Replace a decoder's layers and head with single tasks, if its kernels support this."""
    kernels, layers, head = decoder.kernels, decoder.layers, decoder.head
    if not isinstance(kernels, NativeKernels):
        return
    assert isinstance(layers, Blocks) and isinstance(head, LMHead)
    if fuses(config, tensors):
        decoder.layers = FusedLayers(layers, kernels.native)
    if type(head.norm) is RMSNorm:
        decoder.head = FusedHead(head, kernels.native)


class FusedLayers:
    """A decoder's layers as one task. Their caches are stored in the extension."""

    def __init__(self, layers: Blocks, native: ModuleType) -> None:
        self.native = native
        self.windowed = any(spec.window for spec in layers.cache_specs)
        self.stack: _native.Stack = native.Stack()
        convert = LayerConverter(native).convert
        for block in layers.blocks:
            if isinstance(block, SingleBlock):
                part = block.mixer or block.feed_forward
                self.stack.add(convert(part, block.norm, 1.0))
                self.width = block.norm.weight.size
                continue
            assert isinstance(block, Block) and block.feed_forward_norm and not block.end
            assert block.post_mixer_norm is None and block.post_feed_forward_norm is None
            residual = block.residual_scale
            self.stack.add(convert(block.mixer, block.mixer_norm, residual))
            self.stack.add(convert(block.feed_forward, block.feed_forward_norm, residual))
            self.width = block.mixer_norm.weight.size
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
        if len(tokens) * self.bytes < CANCELLABLE_BYTES:
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
        try:
            mx.eval(result)
        finally:
            self.stack.cancel(False)
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
        assert embedded is None
        _require_rows(x, self.width)
        end = offset + x.shape[0]
        if offset < 0 or (caches is not None and end > caches.capacity):
            raise ValueError(f"tokens {offset:,} to {end:,} are outside the cache")
        # A window has room for this many new tokens at a time.
        step = WINDOW_SLACK if caches is not None and self.windowed else x.shape[0]
        starts = range(0, max(x.shape[0], 1), max(step, 1))
        if self.stats is None:
            return _joined([self.stack.run(x[i : i + step], caches, offset + i) for i in starts], 0)
        runs = [self.stack.run_with_routes(x[i : i + step], caches, offset + i) for i in starts]
        self.stats.record(_joined([ids for _, ids in runs], 1))
        return _joined([y for y, _ in runs], 0)


class FusedHead:
    """The final norm and the projection to the vocabulary, as one task."""

    def __init__(self, head: LMHead, native: ModuleType) -> None:
        self.width = head.norm.weight.size
        self.finish = head.finish
        self.head: _native.Head = native.Head(head.norm.weight, head.norm.eps, _weight(head.output))

    def __call__(self, x: mx.array) -> mx.array:
        _require_rows(x, self.width)
        return self.finish(self.head.run(x))


class LayerConverter:
    """Converts a decoder's layers to the C++ layers described in core/blocks/block.h."""

    def __init__(self, native: ModuleType) -> None:
        self.native = native
        self.ropes: dict[RoPE, _native.Rope] = {}  # layers with equal RoPE share one table
        self.converters: dict[type, Callable[[Any], Any]] = {
            Attention: self._attention,
            LatentAttention: self._latent,
            Mamba2: self._mamba2,
            GatedDeltaNet: self._delta_net,
            KimiDeltaAttention: self._kimi_delta,
            FeedForward: self._dense,
            Experts: self._experts,
            SharedExperts: self._shared_experts,
        }

    def convert(self, part: object, norm: AnyNorm, residual_scale: float) -> Any:
        """Convert a mixer or a feed-forward layer, including its norm and its residual scale."""
        layer = self.converters[type(part)](part)
        if isinstance(part, Attention):  # the output is linear in the values
            residual_scale *= part.value_scale
        layer.norm, layer.residual = _norm(norm), residual_scale
        return layer

    def _rope(self, rope: RoPE) -> _native.Rope:
        if rope not in self.ropes:
            self.ropes[rope] = self.native.Rope(rope.periods, rope.interleaved, rope.magnitude)
        return self.ropes[rope]

    def _attention(self, attention: Attention) -> _native.AttentionLayer:
        layer: _native.AttentionLayer = self.native.AttentionLayer()
        assert attention.v is not None
        layer.q, layer.k = _linear(attention.q), _linear(attention.k)
        layer.v, layer.output = _linear(attention.v), _linear(attention.output)
        layer.q_norm, layer.k_norm = _norm(attention.q_norm), _norm(attention.k_norm)
        norm = attention.q_norm or attention.k_norm
        layer.whole_norms = norm is not None and norm.weight.size != attention.key_dim
        layer.norms_last, layer.gated = attention.norm_after_rope, attention.gated
        if attention.rope is not None:
            assert isinstance(attention.rope, RoPE)
            layer.rope = self._rope(attention.rope)
        layer.sinks, layer.window, layer.scale = attention.sinks, attention.window, attention.scale
        layer.heads, layer.kv_heads = attention.heads, attention.kv_heads
        layer.key_dim, layer.value_dim = attention.key_dim, attention.value_dim
        return layer

    def _latent(self, attention: LatentAttention) -> _native.LatentLayer:
        layer: _native.LatentLayer = self.native.LatentLayer()
        if attention.q_a:
            layer.q_a = _weight(attention.q_a.weight)
        layer.q_norm, layer.q = _norm(attention.q_norm), _weight(attention.q.weight)
        layer.kv_a, layer.kv_norm = _weight(attention.kv_a.weight), _norm(attention.kv_norm)
        layer.k_b, layer.v_b = _weight(attention.k_b), _weight(attention.v_b)
        layer.output = _weight(attention.output.weight)
        if attention.rope is not None:
            layer.rope = self._rope(attention.rope)
        else:  # the same values stay where they are: their periods are infinite
            still = mx.full(attention.rotary // 2, math.inf)
            layer.rope = self.native.Rope(still, False, 1.0)
        if attention.gate is not None:
            layer.gate = _weight(attention.gate.weight)
        layer.heads, layer.scale = attention.heads, attention.scale
        return layer

    def _mamba2(self, mixer: Mamba2) -> _native.RecurrentLayer:
        shape = mixer.config
        layer = self._recurrent(mixer, (shape.groups, shape.heads // shape.groups))
        layer.inputs = [_weight(mixer.input.weight)]  # gate, convolved values, one step per head
        layer.bias, layer.skip = mixer.bias, mixer.skip.reshape(-1)
        layer.mixed_at, layer.gate_at = shape.inner, 0
        layer.step = self.native.HeadColumns(shape.inner + mixer.channels, shape.heads, 0)
        keys = shape.groups * shape.state
        layer.q_at, layer.k_at, layer.v_at = shape.inner + keys, shape.inner, 0
        layer.gate_first = True
        return layer

    def _delta_net(self, mixer: GatedDeltaNet) -> _native.RecurrentLayer:
        shape, project, columns = mixer.config, mixer.project, self.native.HeadColumns
        layer = self._recurrent(mixer, mixer.heads, mixer.key_heads)
        inputs = [project.qkv, project.z, project.beta, project.alpha]
        layer.inputs = [_weight(part.weight) for part in inputs if part is not None]
        gate = 2 * mixer.keys + shape.inner
        betas = gate + shape.inner
        # If the beta projection includes alpha, each key head has its betas, then its alphas.
        run, period = (shape.heads, 0) if project.alpha else (project.shared, 2 * project.shared)
        layer.beta, layer.step = columns(betas, run, period), columns(betas + run, run, period)
        layer.delta, layer.length_eps, layer.gate_at = True, mixer.eps, gate
        layer.q_at, layer.k_at, layer.v_at = 0, mixer.keys, 2 * mixer.keys
        return layer

    def _kimi_delta(self, mixer: KimiDeltaAttention) -> _native.RecurrentLayer:
        shape, columns = mixer.config, self.native.HeadColumns
        layer = self._recurrent(mixer, (shape.heads, 1))
        parts = [mixer.q, mixer.k, mixer.v, mixer.decay.a, mixer.gate.a, mixer.beta]
        weights = [_weight(part.weight) for part in parts]
        starts = [0, *itertools.accumulate(part.weight.shape[0] for part in parts)]
        layer.inputs = weights
        layer.q_at, layer.k_at, layer.v_at = starts[:3]
        layer.step, layer.gate_at = columns(starts[3], shape.inner, 0), starts[4]
        layer.beta = columns(starts[5], shape.heads, 0)
        for name, part in (("step_b", mixer.decay.b), ("gate_b", mixer.gate.b)):
            if part is not None:
                setattr(layer, name, _weight(part.weight))
        layer.delta = layer.by_channel = layer.sigmoid_gate = True
        layer.bound, layer.length_eps = shape.decay_bound, LENGTH_EPS
        return layer

    def _recurrent(
        self,
        mixer: Mamba2 | GatedDeltaNet | KimiDeltaAttention,
        heads: tuple[int, int],
        key_heads: tuple[int, int] | None = None,
    ) -> _native.RecurrentLayer:
        """Create a layer with the fields that both recurrences share.

        heads: the sizes of the two head axes, (A, B).
        key_heads: the same for the keys, (A or 1, B or 1).
        """
        shape, (key_a, key_b) = mixer.config, key_heads or (heads[0], 1)
        layer: _native.RecurrentLayer = self.native.RecurrentLayer()
        layer.output, layer.taps = _weight(mixer.output.weight), mixer.taps
        layer.kernel, layer.channels = mixer.taps.shape
        layer.step_bias, layer.rate = mixer.dt_bias, mixer.rate
        layer.a, layer.b = heads
        layer.key_heads = key_a * key_b
        layer.key_step_a, layer.key_step_b = key_b if key_a > 1 else 0, int(key_b > 1)
        layer.width, layer.values = shape.state, shape.inner // shape.heads
        layer.gated_norm, layer.norm_weights = (mixer.norm, mixer.eps), mixer.norm.shape[0]
        layer.norm_rows = shape.inner // mixer.norm.shape[1]
        return layer

    def _dense(self, part: FeedForward) -> _native.DenseLayer:
        assert part.activation in (swiglu, squared_relu)
        layer: _native.DenseLayer = self.native.DenseLayer()
        if part.gate is not None:
            layer.gate = _weight(part.gate.weight)
        layer.up, layer.down = _weight(part.up.weight), _weight(part.down.weight)
        return layer

    def _experts(self, experts: Experts) -> _native.ExpertLayer:
        layer: _native.ExpertLayer = self.native.ExpertLayer()
        layer.router = _weight(experts.router), experts.router_bias
        if experts.gate is not None:
            layer.gate = _linear(experts.gate)
            layer.activation = self.native.Activation[ACTIVATIONS[experts.activation]]
        layer.up, layer.down = _linear(experts.up), _linear(experts.down)
        if experts.latent_down is not None and experts.latent_up is not None:
            layer.latent_down = _weight(experts.latent_down.weight)
            layer.latent_up = _weight(experts.latent_up.weight)
        config = experts.config
        layer.gating = self.native.Gating[GATINGS[config.gating]]
        layer.experts, layer.used, layer.scale = config.count, config.used, config.scale
        layer.groups, layer.groups_used = config.groups, config.groups_used
        layer.renormalize, layer.selection_bias = config.renormalize, experts.selection_bias
        return layer

    def _shared_experts(self, part: SharedExperts) -> _native.ExpertLayer:
        assert part.shared.activation is part.routed.activation
        layer, shared = self._experts(part.routed), part.shared
        if shared.gate is not None:
            layer.shared_gate = _weight(shared.gate.weight)
        layer.shared_up, layer.shared_down = _weight(shared.up.weight), _weight(shared.down.weight)
        layer.shared_score = part.gate
        return layer


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def _require_rows(x: mx.array, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or x.dtype != mx.float32:
        raise ValueError(f"expected float32 (T, {width}), got {x.dtype} {x.shape}")


def _weight(weight: QTensor) -> _native.Weight:
    assert isinstance(weight, NativeTensor)
    return weight.weight


def _linear(linear: Linear | ExpertLinear) -> tuple[_native.Weight, mx.array | None]:
    return _weight(linear.weight), linear.bias


def _norm(norm: AnyNorm | None) -> tuple[mx.array, float] | None:
    assert norm is None or type(norm) is RMSNorm
    return (norm.weight, norm.eps) if norm else None
