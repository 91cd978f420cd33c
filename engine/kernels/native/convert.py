"""Convert a decoder's layers to the C++ layers described in core/blocks/block.h."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.architectures.registry import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN, SPARSE_MIXER
from engine.kernels.base import QTensor
from engine.kernels.native import NativeTensor
from engine.nn.attention import Attention
from engine.nn.mla import Indexer, LatentAttention
from engine.nn.mlp import (
    Activation,
    ClampedSiLU,
    FeedForward,
    clamped_swiglu,
    geglu,
    softplus,
    squared_relu,
    swiglu,
)
from engine.nn.moe import ExpertLinear, Experts, SharedExperts
from engine.nn.norm import AnyNorm, LayerNorm
from engine.nn.recurrent import (
    LENGTH_EPS,
    DeltaProjections,
    GatedDeltaNet,
    KimiDeltaAttention,
    Mamba2,
    ShortConvolution,
)
from engine.nn.rope import LongRoPE, RoPE, Temperature
from engine.nn.weights import Linear

if TYPE_CHECKING:
    from engine.kernels.native import _native

Norm = tuple[mx.array, float, mx.array | None, bool]  # gain, eps, bias, whether it is a layer norm

ACTIVATIONS: dict[Activation, str] = {swiglu: "silu", clamped_swiglu: "clamped", geglu: "gelu"}
GATES: dict[Callable[[mx.array], mx.array], str] = {mx.sigmoid: "sigmoid", softplus: "softplus"}
GATINGS = {
    SOFTMAX: "softmax",
    SIGMOID: "sigmoid",
    SOFTMAX_OF_CHOSEN: "softmax_of_chosen",
    SPARSE_MIXER: "sparse_mixer",
}


class LayerConverter:
    """Converts layers for a stack. stored: experts stay in the file."""

    def __init__(self, native: ModuleType, stored: bool = False) -> None:
        self.native, self.stored = native, stored
        self.ropes: dict[RoPE, _native.Rope] = {}  # layers with equal RoPE share one table
        self.converters: dict[type, Callable[[Any], Any]] = {
            Attention: self._attention,
            LatentAttention: self._latent,
            Mamba2: self._mamba2,
            GatedDeltaNet: self._delta_net,
            KimiDeltaAttention: self._kimi_delta,
            ShortConvolution: self._convolution,
            FeedForward: self._dense,
            Experts: self._experts,
            SharedExperts: self._shared_experts,
        }

    def convert(
        self,
        part: object,
        norm: AnyNorm | None,
        residual_scale: float = 1.0,
        after: AnyNorm | None = None,
    ) -> Any:
        """Convert a mixer or a feed-forward layer, with its norm and the norm after it."""
        layer = self.converters[type(part)](part)
        if isinstance(part, Attention):  # the output is linear in the values
            residual_scale *= part.value_scale
        if isinstance(part, SharedExperts) and part.averaged:
            residual_scale /= 2
        layer.norm, layer.residual = native_norm(norm), residual_scale
        if after is not None:
            layer.post_norm = native_norm(after)
        return layer

    def _rope(self, rope: RoPE) -> _native.Rope:
        if rope not in self.ropes:
            self.ropes[rope] = self.native.Rope(rope.periods, rope.interleaved, rope.magnitude)
        return self.ropes[rope]

    def _temperature(self, temperature: Temperature) -> _native.Temperature:
        made: _native.Temperature = self.native.Temperature(
            temperature.scale, temperature.length, temperature.shift
        )
        return made

    def _attention(self, attention: Attention) -> _native.AttentionLayer:
        layer: _native.AttentionLayer = self.native.AttentionLayer()
        layer.q, layer.output = _linear(attention.q), _linear(attention.output)
        if not attention.borrows:
            layer.k = _linear(attention.k)
            if attention.v is not None:
                layer.v = _linear(attention.v)
        if attention.value_eps is not None:
            layer.v_norm = _plain_norm(attention.value_dim, attention.value_eps)
        layer.q_norm, layer.k_norm = native_norm(attention.q_norm), native_norm(attention.k_norm)
        norm = attention.q_norm or attention.k_norm
        layer.whole_norms = norm is not None and norm.weight.size != attention.key_dim
        layer.norms_last, layer.gated = attention.norm_after_rope, attention.gated
        if attention.l2_eps is not None:
            layer.q_norm = layer.k_norm = _plain_norm(attention.key_dim, attention.l2_eps)
            layer.norms_last = True
        if attention.gate is not None:
            layer.gate = native_weight(attention.gate.weight)
            layer.gate_kind = self.native.Gate[GATES[attention.gate_activation]]
        if isinstance(attention.rope, LongRoPE):
            layer.rope = self._rope(attention.rope.short)
            layer.long_rope = self._rope(attention.rope.long)
            layer.long_from = attention.rope.original_context
        elif attention.rope is not None:
            assert isinstance(attention.rope, RoPE)
            layer.rope = self._rope(attention.rope)
        if attention.temperature is not None:
            layer.temperature = self._temperature(attention.temperature)
        layer.sinks, layer.window, layer.scale = attention.sinks, attention.window, attention.scale
        layer.chunked, layer.score_cap = attention.chunked, attention.score_cap
        layer.heads, layer.kv_heads = attention.heads, attention.kv_heads
        layer.key_dim, layer.value_dim = attention.key_dim, attention.value_dim
        return layer

    def _latent(self, attention: LatentAttention) -> _native.LatentLayer:
        layer: _native.LatentLayer = self.native.LatentLayer()
        if attention.q_a:
            layer.q_a = native_weight(attention.q_a.weight)
        layer.q_norm, layer.q = native_norm(attention.q_norm), native_weight(attention.q.weight)
        layer.kv_a, layer.kv_norm = (
            native_weight(attention.kv_a.weight),
            native_norm(attention.kv_norm),
        )
        layer.k_b, layer.v_b = native_weight(attention.k_b), native_weight(attention.v_b)
        layer.output = native_weight(attention.output.weight)
        if attention.rope is not None:
            layer.rope = self._rope(attention.rope)
        else:  # the same values stay where they are: their periods are infinite
            still = mx.full(attention.rotary // 2, math.inf)
            layer.rope = self.native.Rope(still, False, 1.0)
        if attention.gate is not None:
            layer.gate = native_weight(attention.gate.weight)
        if attention.temperature is not None:
            layer.temperature = self._temperature(attention.temperature)
        layer.heads, layer.scale = attention.heads, attention.scale
        if attention.indexer is not None:
            self._index(layer, attention.indexer, attention.indexes)
        return layer

    def _index(self, layer: _native.LatentLayer, indexer: Indexer, own: bool) -> None:
        """Let a layer see what an indexer chooses. own: the layer has it; else an earlier one."""
        layer.index_top = indexer.top
        if not own:
            return
        layer.index_q, layer.index_k = (native_weight(p.weight) for p in (indexer.q, indexer.k))
        layer.index_weights, layer.index_heads = native_weight(indexer.proj.weight), indexer.heads
        layer.index_norm, layer.index_rope = native_norm(indexer.k_norm), self._rope(indexer.rope)

    def _mamba2(self, mixer: Mamba2) -> _native.RecurrentLayer:
        shape = mixer.config
        layer = self._recurrent(mixer, (shape.groups, shape.heads // shape.groups))
        layer.inputs = [
            native_weight(mixer.input.weight)
        ]  # gate, convolved values, one step per head
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
        beta, alpha = project.beta, project.alpha
        inputs = [native_weight(part.weight) for part in (beta, alpha) if part is not None]
        if project.z is not None:
            layer.inputs = [
                native_weight(project.qkv.weight),
                native_weight(project.z.weight),
                *inputs,
            ]
        else:
            layer.inputs = [*_sections(project), *inputs]
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
        weights = [native_weight(part.weight) for part in parts]
        starts = [0, *itertools.accumulate(part.weight.shape[0] for part in parts)]
        layer.inputs = weights
        layer.q_at, layer.k_at, layer.v_at = starts[:3]
        layer.step, layer.gate_at = columns(starts[3], shape.inner, 0), starts[4]
        layer.beta = columns(starts[5], shape.heads, 0)
        for name, part in (("step_b", mixer.decay.b), ("gate_b", mixer.gate.b)):
            if part is not None:
                setattr(layer, name, native_weight(part.weight))
        layer.delta = layer.by_channel = layer.sigmoid_gate = True
        layer.bound, layer.length_eps = shape.decay_bound, LENGTH_EPS
        return layer

    def _convolution(self, mixer: ShortConvolution) -> _native.ConvLayer:
        layer: _native.ConvLayer = self.native.ConvLayer()
        layer.input, layer.output = (
            native_weight(mixer.input.weight),
            native_weight(mixer.output.weight),
        )
        layer.taps, layer.kernel = mixer.taps, mixer.taps.shape[0]
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
        layer.output, layer.taps = native_weight(mixer.output.weight), mixer.taps
        layer.kernel, layer.channels = mixer.taps.shape
        layer.step_bias, layer.rate = mixer.dt_bias, mixer.rate
        layer.a, layer.b = heads
        layer.key_heads = key_a * key_b
        layer.key_step_a, layer.key_step_b = key_b if key_a > 1 else 0, int(key_b > 1)
        layer.width, layer.values = shape.state, shape.inner // shape.heads
        layer.gated_norm, layer.norm_weights = (mixer.norm, mixer.eps, None, False), len(mixer.norm)
        layer.norm_rows = shape.inner // mixer.norm.shape[1]
        return layer

    def _dense(self, part: FeedForward) -> _native.DenseLayer:
        layer: _native.DenseLayer = self.native.DenseLayer()
        if part.gate is not None:
            layer.gate = native_weight(part.gate.weight)
            layer.activation, layer.limit = self._activation(part.activation)
        layer.up, layer.down = native_weight(part.up.weight), native_weight(part.down.weight)
        return layer

    def _activation(self, activation: Activation) -> tuple[_native.Activation, float]:
        kinds = self.native.Activation
        if isinstance(activation, ClampedSiLU):
            return kinds.capped, activation.limit
        return kinds[ACTIVATIONS[activation]], 0.0

    def _experts(self, experts: Experts) -> _native.ExpertLayer:
        layer: _native.ExpertLayer = self.native.ExpertLayer()
        layer.router = native_weight(experts.router), experts.router_bias
        if experts.gate_up is not None:
            layer.gate_up = _linear(experts.gate_up)
        else:
            layer.up = _linear(experts.up)
        if experts.gate is not None:
            layer.gate = _linear(experts.gate)
        if experts.activation is not squared_relu:
            layer.activation, layer.limit = self._activation(experts.activation)
        layer.down = _linear(experts.down)
        if self.stored:
            layer.store = native_weight(experts.down.weight)
        if experts.latent_down is not None and experts.latent_up is not None:
            layer.latent_down = native_weight(experts.latent_down.weight)
            layer.latent_up = native_weight(experts.latent_up.weight)
        config = experts.config
        layer.gating = self.native.Gating[GATINGS[config.gating]]
        layer.experts, layer.used, layer.scale = config.count, config.used, config.scale
        layer.groups, layer.groups_used = config.groups, config.groups_used
        layer.renormalize, layer.selection_bias = config.renormalize, experts.selection_bias
        layer.weight_on_input = config.weight_on_input
        return layer

    def _shared_experts(self, part: SharedExperts) -> _native.ExpertLayer:
        layer, shared = self._experts(part.routed), part.shared
        if shared.gate is not None:
            layer.shared_gate = native_weight(shared.gate.weight)
            layer.shared_activation, layer.shared_limit = self._activation(shared.activation)
        layer.shared_up = native_weight(shared.up.weight)
        layer.shared_down = native_weight(shared.down.weight)
        layer.shared_score = part.gate
        return layer


def native_weight(weight: QTensor) -> _native.Weight:
    """Return the extension's form of a weight."""
    assert isinstance(weight, NativeTensor)
    return weight.weight


def native_norm(norm: AnyNorm | None) -> Norm | None:
    """Return the extension's form of a norm."""
    if norm is None:
        return None
    if isinstance(norm, LayerNorm):
        return norm.weight, norm.eps, norm.bias, True
    return norm.weight, norm.eps, None, False


def _plain_norm(width: int, eps: float) -> Norm:
    """Return an RMS norm without a gain."""
    return mx.ones(width), eps, None, False


def _linear(linear: Linear | ExpertLinear) -> tuple[_native.Weight, mx.array | None]:
    return native_weight(linear.weight), linear.bias


def _sections(project: DeltaProjections) -> list[_native.Weight]:
    """Return the rows of q, k, v and z, which a file stores by key head, one kind after another."""
    shape, weight = project.config, native_weight(project.qkv.weight)
    values = project.shared * shape.inner // shape.heads
    sizes = (shape.state, shape.state, values, values)
    starts = (0, *itertools.accumulate(sizes))
    return [
        weight.rows(group * starts[4] + starts[i], group * starts[4] + starts[i + 1])
        for i in range(4)
        for group in range(shape.groups)
    ]
