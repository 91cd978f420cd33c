"""Recurrent layers, which replace attention and cache a fixed-size state.

Each layer applies a short causal convolution and, except for `ShortConvolution`, a recurrence
(`engine.nn.scan`). States and the recurrence are float32.

Axes: T tokens, D width, C convolution channels, H heads in G groups of R, K taps, N key width per
head, P value width per head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import mlx.core as mx

from engine.nn.attention import qkv
from engine.nn.cache.cache import LayerCache, StateCache
from engine.nn.config import ModelConfig, RecurrentConfig
from engine.nn.weights import Linear, Weights

LENGTH_EPS = (
    1e-6  # hard-coded in the reference implementations of Kimi delta attention, not in files
)
State = tuple[mx.array, ...]  # the convolution's last K-1 inputs (K-1, C), then the matrix, if any
# inputs (T, ...), previous state -> output (T, ...), new state
Advance = Callable[[Sequence[mx.array], State], tuple[mx.array, State]]


class Mamba2:
    """A Mamba-2 layer (arXiv 2405.21060). Its output is gated, then normalised per head group."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.recurrent is not None
        self.config = shape = config.recurrent
        self.kernels = weights.kernels
        self.channels = shape.inner + 2 * shape.groups * shape.state
        heads, name = shape.heads, f"blk.{layer}.ssm_"
        self.input = weights.linear(name + "in", shape.inner + self.channels + heads, config.width)
        self.taps = _taps(weights, name + "conv1d.weight", self.channels, shape.kernel)
        self.bias = weights.optional_vector(name + "conv1d.bias", self.channels)
        self.dt_bias = weights.array(name + "dt.bias", heads)
        self.rate = weights.array(name + "a", heads, 1).reshape(heads)  # negative
        self.skip = weights.array(name + "d", heads, 1).reshape(shape.groups, -1, 1)
        self.norm = weights.array(name + "norm.weight", shape.groups, shape.inner // shape.groups)
        self.eps = config.norm_eps
        self.output = weights.linear(name + "out", config.width, shape.inner)
        matrix = (shape.groups, heads // shape.groups, shape.state, shape.inner // heads)
        self.state_shapes = ((shape.kernel - 1, self.channels), matrix)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        shape = self.config
        projected = self.input(x).astype(mx.float32)
        z, xbc, dt = _split(projected, shape.inner, self.channels, shape.heads)
        dt = mx.logaddexp(dt + self.dt_bias, 0)  # softplus
        y = run_cached(cache, offset, [xbc, dt], self.state_shapes, self._advance)
        y, z = (rows.reshape(len(x), *self.norm.shape) for rows in (y, z))
        y = self.kernels.gated_norm(y, z, self.norm, self.eps, gate_first=True)
        return self.output(y.reshape(len(x), -1).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Process xbc (T, C) and dt (T, H). Return y (T, G, R, P) and the new state."""
        shape, (xbc, dt), (tail, matrix) = self.config, parts, state
        xbc, tail = self.kernels.convolve(xbc, tail, self.taps, self.bias, activate=True)
        keys = shape.groups * shape.state
        v, b, c = _split(xbc, shape.inner, keys, keys)
        grouped = (len(dt), shape.groups, -1)
        v = v.reshape(*grouped, shape.inner // shape.heads)
        b, c = (keys.reshape(len(dt), shape.groups, 1, shape.state) for keys in (b, c))
        decay = (dt * self.rate).reshape(grouped)
        u = v * dt.reshape(grouped)[..., None]
        y, matrix = self.kernels.scan(c, b, u, decay, matrix)
        return y + v * self.skip, (tail, matrix)


class GatedDeltaNet:
    """A gated delta net (arXiv 2412.06464). Its output is normalised per head, then gated.

    tiled: if True, value head j uses key head j % G; otherwise it uses key head j // R.
    sigmoid_gate: if True, the gate's sigmoid takes the place of its silu.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer: int,
        tiled: bool,
        sigmoid_gate: bool = False,
    ) -> None:
        assert config.recurrent is not None
        self.config = shape = config.recurrent
        self.kernels = weights.kernels
        self.keys = shape.groups * shape.state
        channels, name = 2 * self.keys + shape.inner, f"blk.{layer}."
        self.project = DeltaProjections(shape, weights, name, config.width)
        self.taps = _taps(weights, name + "ssm_conv1d.weight", channels, shape.kernel)
        self.dt_bias = weights.array(name + "ssm_dt.bias", shape.heads)
        self.rate = weights.array(name + "ssm_a", shape.heads)  # negative
        self.value_dim = shape.inner // shape.heads
        self.norm = weights.array(name + "ssm_norm.weight", self.value_dim)[None]
        self.eps, self.sigmoid_gate = config.norm_eps, sigmoid_gate
        self.output = weights.linear(name + "ssm_out", config.width, shape.inner)
        shared = shape.heads // shape.groups
        self.heads = (shared, shape.groups) if tiled else (shape.groups, shared)
        self.key_heads = (1, shape.groups) if tiled else (shape.groups, 1)
        matrix = (*self.heads, shape.state, self.value_dim)
        self.state_shapes = ((shape.kernel - 1, channels), matrix)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        qkv, z, beta, alpha = (part.astype(mx.float32) for part in self.project(x))
        beta = mx.sigmoid(beta)
        decay = self.rate * mx.logaddexp(alpha + self.dt_bias, 0)  # softplus
        y = run_cached(cache, offset, [qkv, beta, decay], self.state_shapes, self._advance)
        y, z = (rows.reshape(len(x), -1, self.value_dim) for rows in (y, z))
        if self.sigmoid_gate:
            y = mx.fast.rms_norm(y, self.norm[0], self.eps) * mx.sigmoid(z)
        else:
            y = self.kernels.gated_norm(y, z, self.norm, self.eps, gate_first=False)
        return self.output(y.reshape(len(x), -1).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Process qkv (T, C), beta and decay (T, H). Return y (T, *heads, P) and the new state."""
        (qkv, beta, decay), (tail, matrix) = parts, state
        count, width = len(qkv), self.config.state
        qkv, tail = self.kernels.convolve(qkv, tail, self.taps, None, activate=True)
        q, k, v = _split(qkv, self.keys, self.keys, self.config.inner)
        q, k = (part.reshape(count, *self.key_heads, width) for part in (q, k))
        v = v.reshape(count, *self.heads, self.value_dim)
        beta, decay = (part.reshape(count, *self.heads) for part in (beta, decay))
        y, matrix = self.kernels.scan(q, k, v, decay, matrix, beta, self.eps)
        return y, (tail, matrix)


class KimiDeltaAttention:
    """Kimi delta attention (arXiv 2510.26692): a delta net in which each channel of a key decays.

    q, k and v are convolved separately. Without a bound, log decays are rate * softplus(x), with
    negative rates; with one, they are bound * sigmoid(rate * x). The output is normalised per head,
    then multiplied by the sigmoid of a gate.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.recurrent is not None
        self.config = shape = config.recurrent
        self.kernels = weights.kernels
        name, inner, width = f"blk.{layer}.", shape.inner, config.width
        self.q, self.k, v = qkv(weights, name + "attn_", (inner,) * 3, width)
        assert v is not None  # it is not optional
        self.v = v
        convolutions = (f"{name}ssm_conv1d_{part}.weight" for part in "qkv")
        taps = [_taps(weights, convolution, inner, shape.kernel) for convolution in convolutions]
        self.taps = mx.concatenate(taps, axis=-1)
        self.decay = LowRank(weights, name + "ssm_f", inner, width)
        self.dt_bias = weights.array(name + "ssm_dt.bias", inner)
        self.rate = weights.array(name + "ssm_a", shape.heads)
        self.beta = weights.linear(name + "ssm_beta", shape.heads, width)
        self.gate = LowRank(weights, name + "ssm_g", inner, width)
        self.norm = weights.array(name + "ssm_norm.weight", shape.state)[None]
        self.eps = config.norm_eps
        self.output = weights.linear(name + "attn_output", width, inner)
        matrix = (shape.heads, 1, shape.state, shape.state)
        self.state_shapes = ((shape.kernel - 1, 3 * inner), matrix)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        heads = (len(x), self.config.heads, self.config.state)
        mixed = mx.concatenate([self.q(x), self.k(x), self.v(x)], axis=-1).astype(mx.float32)
        decay = self._log_decay((self.decay(x).astype(mx.float32) + self.dt_bias).reshape(heads))
        beta = mx.sigmoid(self.beta(x).astype(mx.float32))
        y = run_cached(cache, offset, [mixed, decay, beta], self.state_shapes, self._advance)
        y = mx.fast.rms_norm(y.reshape(heads), self.norm[0], self.eps)
        y = y * mx.sigmoid(self.gate(x).astype(mx.float32).reshape(heads))
        return self.output(y.reshape(len(x), -1).astype(x.dtype))

    def _log_decay(self, x: mx.array) -> mx.array:
        rate, bound = self.rate[:, None], self.config.decay_bound
        if bound:
            return bound * mx.sigmoid(rate * x)
        return rate * mx.logaddexp(x, 0)  # softplus

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Process qkv (T, C), decay (T, H, N) and beta (T, H).

        Return y (T, H, 1, N) and the new state.
        """
        (mixed, decay, beta), (tail, matrix) = parts, state
        mixed, tail = self.kernels.convolve(mixed, tail, self.taps, None, activate=True)
        heads = (len(mixed), self.config.heads, 1, self.config.state)
        q, k, v = (part.reshape(heads) for part in mx.split(mixed, 3, axis=-1))
        decay, beta = decay[:, :, None], beta[..., None]
        y, matrix = self.kernels.scan(q, k, v, decay, matrix, beta, LENGTH_EPS)
        return y, (tail, matrix)


class ShortConvolution:
    """A causal convolution over a few tokens, with gated input and output."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        assert config.recurrent is not None
        self.config = config.recurrent
        self.kernels = weights.kernels
        self.width, name = config.width, f"blk.{layer}.shortconv."
        self.input = weights.linear(name + "in_proj", 3 * self.width, self.width)
        self.taps = _taps(weights, name + "conv.weight", self.width, self.config.kernel)
        self.output = weights.linear(name + "out_proj", self.width, self.width)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        projected = self.input(x).astype(mx.float32)
        before, after, values = _split(projected, self.width, self.width, self.width)
        shapes = ((self.config.kernel - 1, self.width),)
        y = run_cached(cache, offset, [before * values], shapes, self._advance)
        return self.output((after * y).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        y, tail = self.kernels.convolve(parts[0], state[0], self.taps, None, activate=False)
        return y, (tail,)


def run_cached(
    cache: LayerCache | None,
    offset: int,
    parts: Sequence[mx.array],
    state_shapes: Sequence[tuple[int, ...]],
    advance: Advance,
) -> mx.array:
    """Process tokens from the cached state and save snapshots where `StateCache.stops` requires.

    parts: inputs (T, ...) for `advance`; their first token is at position `offset`.
    """
    empty = tuple(mx.zeros(shape) for shape in state_shapes)
    if cache is None:
        return advance(parts, empty)[0]
    assert isinstance(cache, StateCache)
    state = cache.state(offset) or empty
    outputs, start = [], 0
    for end in cache.stops(offset, len(parts[0])):
        y, state = advance([part[start : end - offset] for part in parts], state)
        cache.save(end, state)
        outputs.append(y)
        start = end - offset
    y = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)
    # Evaluate the state together with the output: an unevaluated state keeps every input alive.
    held: list[mx.array] = mx.depends([y], list(state))
    return held[0]


class LowRank:
    """The projection `name_b`(`name_a`(x)), or only `name_a`(x) if `name_b` is missing.

    x: (T, D). Returns (T, rows).
    """

    def __init__(self, weights: Weights, name: str, rows: int, columns: int) -> None:
        whole = name + "_b.weight" not in weights
        rank = rows if whole else weights.shape(name + "_a.weight")[0]
        self.a = weights.linear(name + "_a", rank, columns)
        self.b = None if whole else weights.linear(name + "_b", rows, rank)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.a(x)
        return y if self.b is None else self.b(y)


class DeltaProjections:
    """Projections from x (T, D) to qkv (T, C), z (T, H*P), beta (T, H) and alpha (T, H).

    Some files store qkv and z, or beta and alpha, as one projection with one section per key head.
    In that case `self.z` or `self.alpha` is None, and `self.qkv` or `self.beta` is the combined
    projection.
    """

    def __init__(self, shape: RecurrentConfig, weights: Weights, name: str, width: int) -> None:
        self.config = shape
        self.shared = shape.heads // shape.groups  # value heads per key head
        keys, heads = shape.groups * shape.state, shape.heads
        self.z: Linear | None = None
        self.alpha: Linear | None = None
        if name + "ssm_in.weight" in weights:
            self.qkv = weights.linear(name + "ssm_in", 2 * keys + 2 * shape.inner, width)
        else:
            self.qkv = weights.linear(name + "attn_qkv", 2 * keys + shape.inner, width)
            self.z = weights.linear(name + "attn_gate", shape.inner, width)
        if name + "ssm_ba.weight" in weights:
            self.beta = weights.linear(name + "ssm_ba", 2 * heads, width)
        else:
            self.beta = weights.linear(name + "ssm_beta", heads, width)
            self.alpha = weights.linear(name + "ssm_alpha", heads, width)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        qkv, beta = self.qkv(x), self.beta(x)
        if self.z is None:
            values = self.shared * self.config.inner // self.config.heads
            q, k, v, z = self._sections(qkv, self.config.state, self.config.state, values, values)
            qkv = mx.concatenate([q, k, v], axis=-1)
        else:
            z = self.z(x)
        if self.alpha is None:
            beta, alpha = self._sections(beta, self.shared, self.shared)
        else:
            alpha = self.alpha(x)
        return qkv, z, beta, alpha

    def _sections(self, y: mx.array, *sizes: int) -> list[mx.array]:
        """Split each key head's section into parts of these sizes: one (T, G * size) per size."""
        parts = _split(y.reshape(len(y), self.config.groups, -1), *sizes)
        return [part.reshape(len(y), -1) for part in parts]


def _taps(weights: Weights, name: str, channels: int, kernel: int) -> mx.array:
    return mx.contiguous(weights.array(name, channels, kernel).T)  # (K, C)


def _split(x: mx.array, *sizes: int) -> list[mx.array]:
    return list(mx.split(x, list(itertools.accumulate(sizes[:-1])), axis=-1))
