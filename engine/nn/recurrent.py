"""Layers that remember a state of one size instead of every token: they mix as attention does.

Each projects its input, runs a short causal convolution over it and, but for `ShortConvolution`, a
recurrence (`engine.nn.scan`). What they keep between steps, and the recurrence, is float32.

Axes: T tokens, D width, C channels of the convolution, H heads in G groups of R, K taps, N key
width of the state, P its value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from engine.nn.cache import LayerCache, StateCache
from engine.nn.config import ModelConfig, RecurrentConfig
from engine.nn.weights import Linear, Weights

State = tuple[mx.array, ...]
Advance = Callable[[Sequence[mx.array], State], tuple[mx.array, State]]


class Mamba2:
    """A selective state space (arXiv 2405.21060), gated before a norm over each group of heads."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.config = shape = _recurrent(config)
        self.kernels = weights.kernels
        self.channels = shape.inner + 2 * shape.groups * shape.state
        heads, name = shape.heads, f"blk.{layer}.ssm_"
        self.input = weights.linear(name + "in", shape.inner + self.channels + heads, config.width)
        self.taps = _taps(weights, name + "conv1d.weight", self.channels, shape.kernel)
        self.bias = weights.optional_vector(name + "conv1d.bias", self.channels)
        self.dt_bias = weights.vector(name + "dt.bias", heads)
        self.rate = weights.array(name + "a", heads, 1).reshape(heads)  # negative
        self.skip = weights.array(name + "d", heads, 1).reshape(shape.groups, -1, 1)
        self.norm = weights.array(name + "norm.weight", shape.groups, shape.inner // shape.groups)
        self.eps = config.norm_eps
        self.output = weights.linear(name + "out", config.width, shape.inner)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D)."""
        shape = self.config
        projected = self.input(x).astype(mx.float32)
        z, xbc, dt = _split(projected, shape.inner, self.channels, shape.heads)
        dt = mx.logaddexp(dt + self.dt_bias, 0)  # softplus
        y = remember(cache, offset, [xbc, dt], self._empty(), self._advance)
        y, z = (rows.reshape(len(x), *self.norm.shape) for rows in (y, z))
        y = self.kernels.gated_norm(y, z, self.norm, self.eps, gate_first=True)
        return self.output(y.reshape(len(x), -1).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Go through xbc (T, C) and dt (T, H): (T, G, R, P), and the state behind them."""
        shape, (xbc, dt), (tail, memory) = self.config, parts, state
        xbc, tail = self.kernels.convolve(xbc, tail, self.taps, self.bias, activate=True)
        keys = shape.groups * shape.state
        v, b, c = _split(xbc, shape.inner, keys, keys)
        grouped = (len(dt), shape.groups, -1)
        v = v.reshape(*grouped, shape.inner // shape.heads)
        b, c = (keys.reshape(len(dt), shape.groups, 1, shape.state) for keys in (b, c))
        decay = (dt * self.rate).reshape(grouped)
        u = v * dt.reshape(grouped)[..., None]
        y, memory = self.kernels.scan(c, b, u, decay, memory)
        return y + v * self.skip, (tail, memory)

    def _empty(self) -> State:
        shape = self.config
        heads = (shape.groups, shape.heads // shape.groups)
        memory = (*heads, shape.state, shape.inner // shape.heads)
        return mx.zeros((shape.kernel - 1, self.channels)), mx.zeros(memory)


class GatedDeltaNet:
    """The gated delta rule (arXiv 2412.06464), its output normalised by head and gated.

    tiled: value head j goes with key head j % G, else with j // R.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, tiled: bool) -> None:
        self.config = shape = _recurrent(config)
        self.kernels = weights.kernels
        self.keys = shape.groups * shape.state
        channels, name = 2 * self.keys + shape.inner, f"blk.{layer}."
        self.project = DeltaProjections(shape, weights, name, config.width)
        self.taps = _taps(weights, name + "ssm_conv1d.weight", channels, shape.kernel)
        self.dt_bias = weights.vector(name + "ssm_dt.bias", shape.heads)
        self.rate = weights.vector(name + "ssm_a", shape.heads)  # negative
        self.value_dim = shape.inner // shape.heads
        self.norm = weights.vector(name + "ssm_norm.weight", self.value_dim)[None]
        self.eps = config.norm_eps
        self.output = weights.linear(name + "ssm_out", config.width, shape.inner)
        shared = shape.heads // shape.groups
        self.heads = (shared, shape.groups) if tiled else (shape.groups, shared)
        self.key_heads = (1, shape.groups) if tiled else (shape.groups, 1)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D)."""
        qkv, z, beta, alpha = (part.astype(mx.float32) for part in self.project(x))
        beta = mx.sigmoid(beta)
        decay = self.rate * mx.logaddexp(alpha + self.dt_bias, 0)  # softplus
        y = remember(cache, offset, [qkv, beta, decay], self._empty(), self._advance)
        y, z = (rows.reshape(len(x), -1, self.value_dim) for rows in (y, z))
        y = self.kernels.gated_norm(y, z, self.norm, self.eps, gate_first=False)
        return self.output(y.reshape(len(x), -1).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        """Go through qkv (T, C), beta and decay (T, H): (T, heads, P), and the state behind."""
        (qkv, beta, decay), (tail, memory) = parts, state
        count, width = len(qkv), self.config.state
        qkv, tail = self.kernels.convolve(qkv, tail, self.taps, None, activate=True)
        q, k, v = _split(qkv, self.keys, self.keys, self.config.inner)
        q, k = (part.reshape(count, *self.key_heads, width) for part in (q, k))
        v = v.reshape(count, *self.heads, self.value_dim)
        beta, decay = (part.reshape(count, *self.heads) for part in (beta, decay))
        y, memory = self.kernels.scan(q, k, v, decay, memory, beta, self.eps)
        return y, (tail, memory)

    def _empty(self) -> State:
        shape = self.config
        tail = mx.zeros((shape.kernel - 1, 2 * self.keys + shape.inner))
        return tail, mx.zeros((*self.heads, shape.state, self.value_dim))


class ShortConvolution:
    """A convolution over the last few tokens, gated before and after."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.config = _recurrent(config)
        self.kernels = weights.kernels
        self.width, name = config.width, f"blk.{layer}.shortconv."
        self.input = weights.linear(name + "in_proj", 3 * self.width, self.width)
        self.taps = _taps(weights, name + "conv.weight", self.width, self.config.kernel)
        self.output = weights.linear(name + "out_proj", self.width, self.width)

    def __call__(self, x: mx.array, cache: LayerCache | None, offset: int) -> mx.array:
        """x (T, D) -> (T, D)."""
        projected = self.input(x).astype(mx.float32)
        before, behind, values = _split(projected, self.width, self.width, self.width)
        empty = (mx.zeros((self.config.kernel - 1, self.width)),)
        y = remember(cache, offset, [before * values], empty, self._advance)
        return self.output((behind * y).astype(x.dtype))

    def _advance(self, parts: Sequence[mx.array], state: State) -> tuple[mx.array, State]:
        y, tail = self.kernels.convolve(parts[0], state[0], self.taps, None, activate=False)
        return y, (tail,)


def remember(
    cache: LayerCache | None,
    offset: int,
    parts: Sequence[mx.array],
    empty: State,
    advance: Advance,
) -> mx.array:
    """Go through tokens from the state that the cache holds, and leave there what it wants to keep.

    parts: of the tokens, the first of them at position `offset`; their first axis is T.
    advance: gives the output (T, ...) for a stretch of `parts`, and the state behind it.
    """
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
    # The state is worked out with the output: until then it would hold on to all it is made of.
    held: list[mx.array] = mx.depends([y], list(state))
    return held[0]


class DeltaProjections:
    """What makes qkv (T, C), z (T, H*P), and beta and alpha (T, H) of x (T, D).

    Both pairs come as one projection in some files, in a section for each key head: z or alpha is
    then None, and qkv or beta is both.
    """

    def __init__(self, shape: RecurrentConfig, weights: Weights, name: str, width: int) -> None:
        self.config = shape
        self.shared = shape.heads // shape.groups  # value heads of a key head
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
        """x (T, D) -> qkv (T, C), z (T, H*P), beta and alpha (T, H)."""
        qkv, z = self._qkv(x)
        return qkv, z, *self._beta(x)

    def _qkv(self, x: mx.array) -> tuple[mx.array, mx.array]:
        if self.z is not None:
            return self.qkv(x), self.z(x)
        values = self.shared * self.config.inner // self.config.heads
        sections = self.qkv(x).reshape(len(x), self.config.groups, -1)
        parts = _split(sections, self.config.state, self.config.state, values, values)
        q, k, v, z = (part.reshape(len(x), -1) for part in parts)
        return mx.concatenate([q, k, v], axis=-1), z

    def _beta(self, x: mx.array) -> tuple[mx.array, mx.array]:
        if self.alpha is not None:
            return self.beta(x), self.alpha(x)
        sections = self.beta(x).reshape(len(x), self.config.groups, -1)
        beta, alpha = (p.reshape(len(x), -1) for p in _split(sections, self.shared, self.shared))
        return beta, alpha


def _recurrent(config: ModelConfig) -> RecurrentConfig:
    assert config.recurrent is not None
    return config.recurrent


def _taps(weights: Weights, name: str, channels: int, kernel: int) -> mx.array:
    """Load the weights of a convolution as (K, C), as they multiply."""
    return mx.contiguous(weights.array(name, channels, kernel).T)


def _split(x: mx.array, *sizes: int) -> list[mx.array]:
    """Cut the last axis into parts of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return list(mx.split(x, ends, axis=-1))
