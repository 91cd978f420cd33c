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
from engine.layers import Attention, FeedForward, Norm, Rope
from engine.moe import Experts

if TYPE_CHECKING:
    from engine.kernels.native import _native

CACHE_TYPES = {"f16": 0, "f32": 1, "q8": 2}  # as in core/attention.h


def fuse(layers: Blocks, head: Head, native: ModuleType) -> tuple[Layers, Scorer]:
    """Fuse what the core has the form of; give the rest back as it is."""
    fused: Layers = layers
    if all(_has_form(block) for block in layers.blocks):
        fused = FusedLayers(layers.blocks, native)
    if isinstance(head.output, NativeTensor):
        return fused, FusedHead(head, native)
    return fused, head


class FusedLayers:
    """All blocks of a decoder as one task, over caches that live in the extension."""

    def __init__(self, blocks: Sequence[Block], native: ModuleType) -> None:
        self.native = native
        self.width = blocks[0].attention_norm.weight.size
        self.shapes = [
            (block.attention.kv_heads, block.attention.key_dim, block.attention.value_dim)
            for block in blocks
        ]
        self.stack: _native.Stack = native.Stack()
        ropes: dict[Rope, _native.Rope] = {}  # layers share them, and what they work out
        for block in blocks:
            rope = block.attention.rope
            if rope not in ropes:
                ropes[rope] = native.Rope(rope.periods, rope.interleaved, rope.magnitude)
            self._add_attention(block.attention_norm, block.attention, ropes[rope])
            self._add_feed_forward(block.feed_forward_norm, block.feed_forward)

    def new_caches(self, context: int, kv_type: str) -> _native.Caches:
        """Make the caches of all layers, for `context` tokens."""
        caches: _native.Caches = self.native.Caches(self.shapes, context, CACHE_TYPES[kv_type])
        return caches

    def __call__(self, x: mx.array, caches: _native.Caches | None, offset: int) -> mx.array:
        """x (T, D) float32 -> (T, D)."""
        if x.ndim != 2 or x.shape[1] != self.width or x.dtype != mx.float32:
            raise ValueError(f"layers of width {self.width} are given {x.dtype} {x.shape}")
        end = offset + x.shape[0]
        if offset < 0 or (caches is not None and end > caches.capacity):
            raise ValueError(f"tokens {offset:,} to {end:,} are outside the cache")
        return self.stack.run(x, caches, offset)

    def _add_attention(self, norm: Norm, attention: Attention, rope: _native.Rope) -> None:
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

    def _add_feed_forward(self, norm: Norm, layer: object) -> None:
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
            gate=_held(layer.gate),
            up=_held(layer.up),
            down=_held(layer.down),
            used=layer.config.used,
            renormalize=layer.renormalize,
            scale=layer.config.scale,
        )


class FusedHead:
    """The last norm and the projection to the vocabulary as one task."""

    def __init__(self, head: Head, native: ModuleType) -> None:
        assert isinstance(head.output, NativeTensor)
        self.width = head.norm.weight.size
        self.head: _native.Head = native.Head(head.norm.weight, head.norm.eps, head.output.weight)

    def __call__(self, x: mx.array) -> mx.array:
        """x (T, D) float32 -> (T, V) float32."""
        if x.ndim != 2 or x.shape[1] != self.width or x.dtype != mx.float32:
            raise ValueError(f"a head of width {self.width} is given {x.dtype} {x.shape}")
        return self.head.run(x)


def _has_form(block: Block) -> bool:
    """Say whether the core computes just what this block does; a subclass may do more."""
    if type(block) is not Block or type(block.attention) is not Attention:
        return False
    attention, layer = block.attention, block.feed_forward
    linears = [attention.q, attention.k, attention.v, attention.output]
    weights = []
    if type(layer) is FeedForward:
        if any(part.bias is not None for part in (layer.gate, layer.up, layer.down)):
            return False
        linears += [layer.gate, layer.up, layer.down]
    elif type(layer) is Experts:
        weights = [layer.router, layer.gate, layer.up, layer.down]
    else:
        return False
    weights += [linear.weight for linear in linears]
    return type(attention.rope) is Rope and all(isinstance(w, NativeTensor) for w in weights)


def _held(weight: QTensor) -> _native.Weight:
    assert isinstance(weight, NativeTensor)
    return weight.weight
