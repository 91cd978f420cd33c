"""Layers and head of a decoder as one task each: no operation of MLX, and no Python, in between.

A decoder with a layer of a form that the C++ core has not keeps all of them as they are; its
weights then multiply one at a time.

Axes: T tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.architectures.registry import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN
from engine.gguf.reader import TensorInfo
from engine.kernels.base import QTensor
from engine.kernels.fusion import fuses
from engine.kernels.native import NativeKernels, NativeTensor
from engine.nn.attention import Attention
from engine.nn.cache import REWIND
from engine.nn.cache_spec import STEP, WINDOW_SLACK
from engine.nn.config import ModelConfig
from engine.nn.decoder import Block, Blocks, Decoder, Head, OnProgress
from engine.nn.mla import LatentAttention
from engine.nn.mlp import Activation, FeedForward, clamped_swiglu, swiglu
from engine.nn.moe import Experts, SharedExperts
from engine.nn.norm import RMSNorm
from engine.nn.recurrent import GatedDeltaNet, Mamba2
from engine.nn.rope import Rope

if TYPE_CHECKING:
    from engine.kernels.native import _native
    from engine.nn.router_stats import RouterStats

CACHE_TYPES = {"f16": 0, "f32": 1, "q8": 2}  # as in core/attention.h
RECURRENT = (Mamba2, GatedDeltaNet)
ACTIVATIONS: dict[Activation, int] = {swiglu: 0, clamped_swiglu: 1}  # as in core/types.h
GATINGS = {SOFTMAX: 0, SIGMOID: 1, SOFTMAX_OF_CHOSEN: 2}  # as in core/block.h
# Reading so many bytes, counted once for each token, takes a moment, in which it can be stopped.
PATIENT_BYTES = 64 * 10**9
POLL_S = 0.01


def fuse(decoder: Decoder, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Replace the layers and the head of a decoder by single tasks, where its kernels allow it."""
    kernels, layers, head = decoder.kernels, decoder.layers, decoder.head
    if not isinstance(kernels, NativeKernels):
        return
    assert isinstance(layers, Blocks) and isinstance(head, Head)
    if fuses(config, tensors):
        decoder.layers = FusedLayers(layers.blocks, kernels.native)
    if type(head.norm) is RMSNorm:
        decoder.head = FusedHead(head, kernels.native)


class FusedLayers:
    """All blocks of a decoder as one task, over caches that live in the extension."""

    def __init__(self, blocks: Sequence[Block], native: ModuleType) -> None:
        self.native = native
        self.width = blocks[0].mixer_norm.weight.size
        mixers = [block.mixer for block in blocks]
        self.states = [_state_shape(mixer) for mixer in mixers if isinstance(mixer, RECURRENT)]
        self.shapes = [_cache_shape(mixer) for mixer in mixers if not isinstance(mixer, RECURRENT)]
        self.stack: _native.Stack = native.Stack()
        self.stats: RouterStats | None = None
        self.ropes: dict[Rope, _native.Rope] = {}  # layers share them, and what they work out
        for block in blocks:
            if isinstance(block.mixer, LatentAttention):
                self._add_latent(block, block.mixer)
            elif isinstance(block.mixer, Mamba2):
                self._add_mamba2(block, block.mixer)
            elif isinstance(block.mixer, GatedDeltaNet):
                self._add_delta_net(block, block.mixer)
            else:
                assert isinstance(block.mixer, Attention)
                self._add_attention(block, block.mixer)
            if isinstance(block.feed_forward, FeedForward):
                self._add_dense(block, block.feed_forward)
            else:
                self._add_experts(block)
        self.bytes = self.stack.bytes

    def new_caches(self, context: int, kv_type: str) -> _native.Caches:
        """Make the caches of all layers, for `context` tokens."""
        shapes = [(*shape, _slots(shape[-1], context)) for shape in self.shapes]
        caches: _native.Caches = self.native.Caches(
            shapes, self.states, context, CACHE_TYPES[kv_type], REWIND
        )
        return caches

    def rewindable_length(self, caches: _native.Caches, length: int) -> int:
        """Return the most tokens, up to `length`, that these caches can be rewound to."""
        return caches.reach(length)

    def evaluate(
        self, result: mx.array, caches: _native.Caches, tokens: range, on_progress: OnProgress
    ) -> None:
        """Evaluate `result`; stop between layers if `on_progress` raises."""
        if len(tokens) * self.bytes < PATIENT_BYTES:
            mx.eval(result)
            return
        mx.async_eval(result)
        with ExitStack() as unless_done:
            unless_done.callback(self._give_up, result, caches, tokens.start)
            on_progress(0.0)
            while not self.native.ready(result):
                time.sleep(POLL_S)
                on_progress(self.stack.done)
            mx.eval(result)  # raises what went wrong on the way
            unless_done.pop_all()

    def _give_up(self, result: mx.array, caches: _native.Caches, offset: int) -> None:
        """End the task under way, and take the caches back to `offset`."""
        self.stack.give_up(True)
        try:
            mx.eval(result)
        finally:
            self.stack.give_up(False)
            caches.undo(offset)

    def record_routes(self, stats: RouterStats) -> None:
        """Record in `stats` which experts are chosen from now on, all layers at once."""
        self.stats = stats

    def __call__(self, x: mx.array, caches: _native.Caches | None, offset: int) -> mx.array:
        """x (T, D) float32 -> (T, D)."""
        if x.ndim != 2 or x.shape[1] != self.width or x.dtype != mx.float32:
            raise ValueError(f"layers of width {self.width} are given {x.dtype} {x.shape}")
        end = offset + x.shape[0]
        if offset < 0 or (caches is not None and end > caches.capacity):
            raise ValueError(f"tokens {offset:,} to {end:,} are outside the cache")
        step = x.shape[0]  # a window has room for so many new tokens at a time
        if caches is not None and any(shape[-1] for shape in self.shapes):
            step = WINDOW_SLACK
        starts = range(0, max(x.shape[0], 1), max(step, 1))
        if self.stats is None:
            return _joined([self.stack.run(x[i : i + step], caches, offset + i) for i in starts], 0)
        told = [self.stack.run_and_tell(x[i : i + step], caches, offset + i) for i in starts]
        self.stats.record(_joined([ids for _, ids in told], 1))
        return _joined([y for y, _ in told], 0)

    def _rope(self, rope: Rope) -> _native.Rope:
        if rope not in self.ropes:
            made = self.native.Rope(rope.periods, rope.interleaved, rope.magnitude)
            self.ropes[rope] = made
        return self.ropes[rope]

    def _add_attention(self, block: Block, attention: Attention) -> None:
        q, k, v, output = attention.q, attention.k, attention.v, attention.output
        norm, rope = attention.q_norm or attention.k_norm, attention.rope
        assert rope is None or isinstance(rope, Rope)
        self.stack.add_attention(
            norm=block.mixer_norm.weight,
            eps=block.mixer_norm.eps,
            q=_held(q.weight),
            k=_held(k.weight),
            v=_held(v.weight),
            output=_held(output.weight),
            q_bias=q.bias,
            k_bias=k.bias,
            v_bias=v.bias,
            output_bias=output.bias,
            q_norm=attention.q_norm.weight if attention.q_norm else None,
            k_norm=attention.k_norm.weight if attention.k_norm else None,
            gated=attention.gated,
            whole_norms=norm is not None and norm.weight.size != attention.key_dim,
            norms_last=attention.norm_after_rope,
            rope=None if rope is None else self._rope(rope),
            sinks=attention.sinks,
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            key_dim=attention.key_dim,
            value_dim=attention.value_dim,
            window=attention.window,
            scale=attention.scale,
            residual=block.residual_scale,
        )

    def _add_latent(self, block: Block, attention: LatentAttention) -> None:
        self.stack.add_latent(
            norm=block.mixer_norm.weight,
            eps=block.mixer_norm.eps,
            q_a=_held(attention.q_a.weight) if attention.q_a else None,
            q_norm=attention.q_norm.weight if attention.q_norm else None,
            q=_held(attention.q.weight),
            kv_a=_held(attention.kv_a.weight),
            kv_norm=attention.kv_norm.weight,
            latent_eps=attention.kv_norm.eps,
            k_b=_held(attention.k_b),
            v_b=_held(attention.v_b),
            output=_held(attention.output.weight),
            rope=self._rope(attention.rope),
            heads=attention.heads,
            scale=attention.scale,
            residual=block.residual_scale,
        )

    def _add_mamba2(self, block: Block, mixer: Mamba2) -> None:
        shape = mixer.config
        keys = shape.groups * shape.state
        self.stack.add_recurrent(
            norm=block.mixer_norm.weight,
            eps=block.mixer_norm.eps,
            inputs=[_held(mixer.input.weight)],  # the gate, what is convolved, a step for each head
            output=_held(mixer.output.weight),
            taps=mixer.taps,
            bias=mixer.bias,
            mixed_at=shape.inner,
            gate_at=0,
            step=(shape.inner + mixer.channels, shape.heads, 0),
            beta=None,
            step_bias=mixer.dt_bias,
            rate=mixer.rate,
            skip=mixer.skip.reshape(-1),
            q_at=shape.inner + keys,
            k_at=shape.inner,
            v_at=0,
            heads=(shape.groups, shape.heads // shape.groups),
            key_heads=(shape.groups, 1),
            width=shape.state,
            values=shape.inner // shape.heads,
            gated_norm=mixer.norm,
            gate_first=True,
            residual=block.residual_scale,
        )

    def _add_delta_net(self, block: Block, mixer: GatedDeltaNet) -> None:
        shape, project = mixer.config, mixer.project
        inputs = [project.qkv, project.z, project.beta, project.alpha]
        gate = 2 * mixer.keys + shape.inner
        betas = gate + shape.inner
        if project.alpha is None:  # for each key head its betas, then its alphas
            beta = (betas, project.shared, 2 * project.shared)
            step = (betas + project.shared, project.shared, 2 * project.shared)
        else:
            beta, step = (betas, shape.heads, 0), (betas + shape.heads, shape.heads, 0)
        self.stack.add_recurrent(
            norm=block.mixer_norm.weight,
            eps=block.mixer_norm.eps,
            inputs=[_held(part.weight) for part in inputs if part is not None],
            output=_held(mixer.output.weight),
            taps=mixer.taps,
            bias=None,
            mixed_at=0,
            gate_at=gate,
            step=step,
            beta=beta,
            step_bias=mixer.dt_bias,
            rate=mixer.rate,
            skip=None,
            q_at=0,
            k_at=mixer.keys,
            v_at=2 * mixer.keys,
            heads=mixer.heads,
            key_heads=mixer.key_heads,
            width=shape.state,
            values=mixer.value_dim,
            gated_norm=mixer.norm,
            gate_first=False,
            residual=block.residual_scale,
        )

    def _add_dense(self, block: Block, layer: FeedForward) -> None:
        self.stack.add_dense(
            norm=block.feed_forward_norm.weight,
            eps=block.feed_forward_norm.eps,
            gate=_held(layer.gate.weight),
            up=_held(layer.up.weight),
            down=_held(layer.down.weight),
            residual=block.residual_scale,
        )

    def _add_experts(self, block: Block) -> None:
        layer = block.feed_forward
        both = layer if isinstance(layer, SharedExperts) else None
        experts = both.routed if both else layer
        assert isinstance(experts, Experts)
        self.stack.add_experts(
            norm=block.feed_forward_norm.weight,
            eps=block.feed_forward_norm.eps,
            router=_held(experts.router),
            gate=_held(experts.gate.weight),
            up=_held(experts.up.weight),
            down=_held(experts.down.weight),
            router_bias=experts.router_bias,
            gate_bias=experts.gate.bias,
            up_bias=experts.up.bias,
            down_bias=experts.down.bias,
            activation=ACTIVATIONS[experts.activation],
            gating=GATINGS[experts.config.gating],
            selection_bias=experts.selection_bias,
            used=experts.config.used,
            groups=experts.config.groups,
            groups_used=experts.config.groups_used,
            renormalize=experts.config.renormalize,
            scale=experts.config.scale,
            shared_gate=_held(both.shared.gate.weight) if both else None,
            shared_up=_held(both.shared.up.weight) if both else None,
            shared_down=_held(both.shared.down.weight) if both else None,
            shared_score=both.gate if both else None,
            residual=block.residual_scale,
        )


class FusedHead:
    """The last norm and the projection to the vocabulary as one task."""

    def __init__(self, head: Head, native: ModuleType) -> None:
        assert isinstance(head.output, NativeTensor)
        self.width = head.norm.weight.size
        self.finish = head.finish
        self.head: _native.Head = native.Head(head.norm.weight, head.norm.eps, head.output.weight)

    def __call__(self, x: mx.array) -> mx.array:
        """x (T, D) float32 -> (T, V) float32."""
        if x.ndim != 2 or x.shape[1] != self.width or x.dtype != mx.float32:
            raise ValueError(f"a head of width {self.width} is given {x.dtype} {x.shape}")
        return self.finish(self.head.run(x))


def _cache_shape(mixer: object) -> tuple[int, int, int, int]:
    """Say what a layer keeps of a token: heads, widths of a key and a value; and of how many."""
    if isinstance(mixer, LatentAttention):
        return 1, mixer.rank + mixer.rope.dims, 0, 0
    assert isinstance(mixer, Attention)
    return mixer.kv_heads, mixer.key_dim, mixer.value_dim, mixer.window


def _state_shape(mixer: Mamba2 | GatedDeltaNet) -> tuple[int, int]:
    """Say how many values a layer keeps of the convolution, and of the recurrence."""
    tail = (mixer.taps.shape[0] - 1) * mixer.taps.shape[1]
    return tail, mixer.config.state_values - tail


def _slots(window: int, context: int) -> int:
    """Say for how many tokens a layer has room."""
    return min(context, window + WINDOW_SLACK + STEP) if window else context


def _joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def _held(weight: QTensor) -> _native.Weight:
    assert isinstance(weight, NativeTensor)
    return weight.weight
