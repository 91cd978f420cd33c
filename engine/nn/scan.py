"""The recurrences of state-space and delta-rule layers.

Both keep one matrix S per head and update it for each token:

    S = exp(log_decay) S + k u^T,    y = S^T q

where u is v (Mamba-2, arXiv 2405.21060), or v minus the state's prediction for k (gated delta
rule, arXiv 2412.06464): u = beta (v - (exp(log_decay) S)^T k). In Kimi delta attention
(arXiv 2510.26692), each row of S, that is, each channel of the key, has its own decay.

A prompt is processed in chunks: matrix products handle all tokens in a chunk at once, and only the
states between chunks are computed sequentially. Everything is float32.

Axes: T tokens, A and B heads, N key width, P value width, c chunks, Q tokens per chunk, C channels,
K taps. There are two head axes, so that a key shared by several heads has size 1 along one of them.
"""

from __future__ import annotations

import mlx.core as mx

from engine.limits import SCAN_CHUNK

CPU_CHUNK = 16


def scan(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    state: mx.array,
    beta: mx.array | None = None,
    eps: float = 0.0,
    chunk: int = SCAN_CHUNK,
) -> tuple[mx.array, mx.array]:
    """Run the recurrence over all tokens. If `beta` is given, use the gated delta rule.

    The gated delta rule normalises q and k to length 1, with `eps` added to the squared length, and
    divides q by sqrt(N).
    q, k: (T, A or 1, B or 1, N). v: (T, A, B, P). log_decay: at most 0; (T, A, B), or
    (T, A, B, N) for the delta rule with a decay per channel, without shared keys. beta: (T, A, B).
    state: (A, B, N, P), before the first token.
    Returns y (T, A, B, P) and the state after the last token.
    """
    if beta is not None:
        width = q.shape[-1]
        q = mx.fast.rms_norm(q, None, eps / width) / width
        k = mx.fast.rms_norm(k, None, eps / width) * width**-0.5
    if v.shape[0] == 1:
        one = None if beta is None else beta[0]
        decay = mx.exp(log_decay[0]).reshape(*v.shape[1:3], -1)
        y, state = _step(q[0], k[0], v[0], decay, state, one)
        return y[None], state
    if log_decay.ndim == 4:
        assert beta is not None
        return _scan_channels(q, k, v, log_decay, state, beta, chunk)
    return _scan_chunks(q, k, v, log_decay, state, beta, chunk)


def convolve(
    x: mx.array, tail: mx.array, taps: mx.array, bias: mx.array | None, activate: bool
) -> tuple[mx.array, mx.array]:
    """Convolve each channel over the last K tokens.

    x: (T, C). tail: (K-1, C), the previous tokens. taps: (K, C), newest token last. bias: (C,).
    activate: apply SiLU to the output. Returns (T, C) and the new tail.
    """
    count, width = x.shape[0], taps.shape[0]
    x = mx.concatenate([tail, x])
    if count == 1:
        y = (x * taps).sum(axis=0, keepdims=True)
    else:
        y = x[:count] * taps[0]
        for i in range(1, width):
            y = y + x[i : i + count] * taps[i]
    if bias is not None:
        y = y + bias
    if activate:
        y = y * mx.sigmoid(y)
    return y, mx.contiguous(x[count:])  # a view would keep all of x alive


def gated_norm(
    y: mx.array, gate: mx.array, weight: mx.array, eps: float, gate_first: bool
) -> mx.array:
    """Normalise the rows of y and multiply by silu(gate).

    gate_first: multiply before the norm instead of after it.
    y, gate: (T, M, n). weight: (M or 1, n). Returns (T, M, n).
    """
    gate = gate * mx.sigmoid(gate)
    if gate_first:
        return mx.fast.rms_norm(y * gate, None, eps) * weight
    return mx.fast.rms_norm(y, None, eps) * weight * gate


def _step(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, state: mx.array, beta: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Process one token: like `scan`, but without the token axis. decay: (A, B, 1 or N)."""
    if beta is None:
        read, u = ((q * decay)[..., None, :] @ state).squeeze(-2), v
    else:
        both = mx.stack([q, k], axis=-2) * decay[..., None, :]
        both = both @ state  # (A, B, 2, P); reads the state only once
        read, u = both[..., 0, :], beta[..., None] * (v - both[..., 1, :])
    y = read + (q * k).sum(axis=-1, keepdims=True) * u
    return y, state * decay[..., None] + k[..., None] * u[..., None, :]


def _scan_chunks(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    state: mx.array,
    beta: mx.array | None,
    chunk: int,
) -> tuple[mx.array, mx.array]:
    count = v.shape[0]
    size = min(chunk, 1 << (count - 1).bit_length())
    q, k, v, log_decay = (_chunks(x, size) for x in (q, k, v, log_decay))
    k_transposed = k.swapaxes(-1, -2)
    decay = mx.exp(segment_sums(log_decay))  # (c, A, B, Q, Q): from one token to a later one
    from_start = mx.exp(mx.cumsum(log_decay, axis=-1))[..., None]  # (c, A, B, Q, 1)
    to_end = decay[..., -1, :, None]
    scores = (q @ k_transposed) * decay
    if beta is not None:  # u = v - w @ (state before the chunk), for all tokens at once
        beta = _chunks(beta, size)[..., None]
        known = mx.tril((k @ k_transposed) * decay * beta, -1)
        inverse = unit_lower_inverse(known)
        v, w = inverse @ (v * beta), inverse @ (k * (beta * from_start))
    chunks = []
    for i in range(v.shape[0]):
        u = v[i] if beta is None else v[i] - w[i] @ state
        chunks.append(scores[i] @ u + (q[i] @ state) * from_start[i])
        state = state * from_start[i, ..., -1:, :] + k_transposed[i] @ (u * to_end[i])
    y = mx.moveaxis(mx.stack(chunks), 3, 1)  # (c, Q, A, B, P)
    return y.reshape(-1, *y.shape[2:])[:count], state


def _scan_channels(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    state: mx.array,
    beta: mx.array,
    chunk: int,
) -> tuple[mx.array, mx.array]:
    """Process chunks as `_scan_chunks` does, with a decay per channel: log_decay (T, A, B, N)."""
    count = v.shape[0]
    size = min(chunk, 1 << (count - 1).bit_length())
    q, k, v, log_decay = (_chunks(x, size) for x in (q, k, v, log_decay))
    beta = _chunks(beta, size)[..., None]
    inverse = unit_lower_inverse(mx.tril(decayed_products(k, k, log_decay) * beta, -1))
    from_start = mx.exp(mx.cumsum(log_decay, axis=-2))  # (c, A, B, Q, N)
    scores, q = decayed_products(q, k, log_decay), q * from_start
    v, w = inverse @ (v * beta), inverse @ (k * (beta * from_start))
    k = (k * _to_end(log_decay)).swapaxes(-1, -2)
    chunks = []
    for i in range(v.shape[0]):
        u = v[i] - w[i] @ state
        chunks.append(scores[i] @ u + q[i] @ state)
        state = state * from_start[i, ..., -1, :, None] + k[i] @ u
    y = mx.moveaxis(mx.stack(chunks), 3, 1)  # (c, Q, A, B, P)
    return y.reshape(-1, *y.shape[2:])[:count], state


def decayed_products(a: mx.array, b: mx.array, log_decay: mx.array) -> mx.array:
    """Return the sum over channels of a[t] b[i] exp(log_decay[i + 1] + ... + log_decay[t]).

    All arguments: (..., Q, N), Q a power of two. Returns (..., Q, Q), zero where t < i.
    Halves meet at their border, so that no exponent is positive: with a common origin, the decays
    of some channels would overflow.
    """
    *lead, size, width = log_decay.shape
    if size == 1:
        return (a * b).sum(axis=-1, keepdims=True)
    half = size // 2
    a, b, decay = (x.reshape(*lead, 2, half, width) for x in (a, b, log_decay))
    inner = decayed_products(a, b, decay)
    later = a[..., 1, :, :] * mx.exp(mx.cumsum(decay[..., 1, :, :], axis=-2))
    earlier = b[..., 0, :, :] * _to_end(decay[..., 0, :, :])
    below = later @ earlier.swapaxes(-1, -2)
    top = mx.concatenate([inner[..., 0, :, :], mx.zeros_like(below)], axis=-1)
    return mx.concatenate([top, mx.concatenate([below, inner[..., 1, :, :]], axis=-1)], axis=-2)


def _to_end(log_decay: mx.array) -> mx.array:
    """Return the decay from after each token to the end of its chunk: (..., Q, N)."""
    return mx.exp(mx.cumsum(log_decay, axis=-2, reverse=True, inclusive=False))


def _chunks(x: mx.array, size: int) -> mx.array:
    """Split (T, A, B, ...) into chunks (c, A, B, Q, ...), padding the last chunk with zeros."""
    missing = -x.shape[0] % size
    if missing:
        x = mx.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return mx.moveaxis(x.reshape(-1, size, *x.shape[1:]), 1, 3)


def segment_sums(x: mx.array) -> mx.array:
    """Return the sum of x over tokens i+1..t if t >= i, else -inf: (..., Q) -> (..., Q, Q).

    Each (t, i) entry is summed separately, because differences of running sums lose precision when
    a small term follows a large one.
    """
    size = x.shape[-1]
    sums = mx.cumsum(mx.tril(mx.broadcast_to(x[..., None], (*x.shape, size)), -1), axis=-2)
    return mx.where(mx.tri(size, dtype=mx.bool_), sums, -mx.inf)


def unit_lower_inverse(lower: mx.array) -> mx.array:
    """Invert 1 + lower, where lower (..., Q, Q) is zero on and above the diagonal.

    Inverts diagonal blocks, doubling their size each time. A power series would produce very large
    terms.
    """
    *lead, size, _ = lower.shape
    inverse = mx.ones((*lead, size, 1, 1), dtype=lower.dtype)  # inverses of the diagonal blocks
    width = 1
    while width < size:
        pairs = size // (2 * width)
        blocks = lower.reshape(*lead, pairs, 2, width, pairs, 2, width)
        below = mx.diagonal(blocks[..., 1, :, :, 0, :], axis1=-4, axis2=-2)
        below = mx.moveaxis(below, -1, -3)  # (..., pairs, width, width)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = -(second @ (below @ first))
        top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
        inverse = mx.concatenate([top, mx.concatenate([below, second], axis=-1)], axis=-2)
        width *= 2
    return inverse.squeeze(-3)
