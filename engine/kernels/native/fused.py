"""Layers and head of a decoder as one task each: no operation of MLX, and no Python, in between.

A decoder with a layer of a form that the C++ core has not keeps all of them as they are; its
weights then multiply one at a time.

Axes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.decoder import Block, Blocks, Head, Layers, Scorer
from engine.kernels import QTensor
from engine.kernels.native import NativeTensor
from engine.layers import AnyNorm, Attention, FeedForward, Norm, Rope, swiglu
from engine.moe import Experts

if TYPE_CHECKING:
    from engine.kernels.native import _native
    from engine.routes import Routes

CACHE_TYPES = {"f16": 0, "f32": 1, "q8": 2}  # as in core/attention.h


def fuse(layers: Blocks, head: Head, native: ModuleType) -> tuple[Layers, Scorer]:
    """Fuse what the core has the form of; give the rest back as it is."""
    fused: Layers = layers
    if all(_has_form(block) for block in layers.blocks):
        fused = FusedLayers(layers.blocks, native)
    if isinstance(head.output, NativeTensor) and type(head.norm) is Norm:
        return fused, FusedHead(head, native)
    return fused, head


class FusedLayers:
    """All blocks of a decoder as one task, over caches that live in the extension."""

    def __init__(self, blocks: Sequence[Block], native: ModuleType) -> None:
        self.native = native
        self.width = blocks[0].mixer_norm.weight.size
        self.shapes = [
            (mixer.kv_heads, mixer.key_dim, mixer.value_dim) for mixer in map(_attention, blocks)
        ]
        self.stack: _native.Stack = native.Stack()
        self.routes: Routes | None = None
        ropes: dict[Rope, _native.Rope] = {}  # layers share them, and what they work out
        for block in blocks:
            attention = _attention(block)
            rope = attention.rope
            assert isinstance(rope, Rope)
            if rope not in ropes:
                ropes[rope] = native.Rope(rope.periods, rope.interleaved, rope.magnitude)
            self._add_attention(block.mixer_norm, attention, ropes[rope])
            self._add_feed_forward(block.feed_forward_norm, block.feed_forward)

    def new_caches(self, context: int, kv_type: str) -> _native.Caches:
        """Make the caches of all layers, for `context` tokens."""
        caches: _native.Caches = self.native.Caches(self.shapes, context, CACHE_TYPES[kv_type])
        return caches

    def reach(self, caches: _native.Caches, length: int) -> int:
        """Say how many tokens, `length` at most, these caches can go back to: any number."""
        return length

    def watch(self, routes: Routes) -> None:
        """Tell `routes` from now on which experts are chosen, in all layers at once."""
        self.routes = routes

    def __call__(self, x: mx.array, caches: _native.Caches | None, offset: int) -> mx.array:
        """x (T, D) float32 -> (T, D)."""
        if x.ndim != 2 or x.shape[1] != self.width or x.dtype != mx.float32:
            raise ValueError(f"layers of width {self.width} are given {x.dtype} {x.shape}")
        end = offset + x.shape[0]
        if offset < 0 or (caches is not None and end > caches.capacity):
            raise ValueError(f"tokens {offset:,} to {end:,} are outside the cache")
        if self.routes is None:
            return self.stack.run(x, caches, offset)
        y, ids = self.stack.run_and_tell(x, caches, offset)
        self.routes.tell(ids)
        return y

    def _add_attention(self, norm: AnyNorm, attention: Attention, rope: _native.Rope) -> None:
        q, k, v, output = attention.q, attention.k, attention.v, attention.output
        self.stack.add_attention(
            norm=norm.weight,
            eps=norm.eps,
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
            rope=rope,
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            key_dim=attention.key_dim,
            value_dim=attention.value_dim,
            scale=attention.scale,
        )

    def _add_feed_forward(self, norm: AnyNorm, layer: object) -> None:
        if isinstance(layer, FeedForward):
            self.stack.add_dense(
                norm=norm.weight,
                eps=norm.eps,
                gate=_held(layer.gate.weight),
                up=_held(layer.up.weight),
                down=_held(layer.down.weight),
            )
            return
        assert isinstance(layer, Experts)
        self.stack.add_experts(
            norm=norm.weight,
            eps=norm.eps,
            router=_held(layer.router),
            gate=_held(layer.gate.weight),
            up=_held(layer.up.weight),
            down=_held(layer.down.weight),
            used=layer.config.used,
            renormalize=layer.config.renormalize,
            scale=layer.config.scale,
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


def _has_form(block: Block) -> bool:
    """Say whether the core computes just what this block does; a subclass may do more."""
    attention, layer = block.mixer, block.feed_forward
    if type(block) is not Block or not isinstance(attention, Attention):
        return False
    if type(attention) is not Attention or not attention.plain or type(attention.rope) is not Rope:
        return False
    norms = (block.mixer_norm, block.feed_forward_norm)
    if block.post_mixer_norm or block.post_feed_forward_norm or block.residual_scale != 1.0:
        return False
    linears = [attention.q, attention.k, attention.v, attention.output]
    weights = []
    if type(layer) is FeedForward:
        if layer.activation is not swiglu:
            return False
        if any(part.bias is not None for part in (layer.gate, layer.up, layer.down)):
            return False
        linears += [layer.gate, layer.up, layer.down]
    elif type(layer) is Experts and layer.plain:
        weights = [layer.router, layer.gate.weight, layer.up.weight, layer.down.weight]
    else:
        return False
    weights += [linear.weight for linear in linears]
    return all(type(n) is Norm for n in norms) and all(isinstance(w, NativeTensor) for w in weights)


def _attention(block: Block) -> Attention:
    assert isinstance(block.mixer, Attention)
    return block.mixer


def _held(weight: QTensor) -> _native.Weight:
    assert isinstance(weight, NativeTensor)
    return weight.weight
