"""Dequantise blocks with NumPy, using one function per format.

This is the reference implementation for the kernels: exact but slow. A block contains a few scales
and packed weights. `n` is the number of blocks. Weights are packed low bits first: in a group of
bytes, the low nibbles of all bytes come before their high nibbles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.gguf.types import BlockType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# The 4-bit codebooks. IQ4_NL and IQ4_XS share the first; MXFP4's is doubled to hold integers.
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def dequantize(blocks: Bytes, type: BlockType) -> Floats:
    """Unpack blocks: (..., k * type.size_bytes) uint8 -> (..., k * type.weights) float32."""
    assert blocks.dtype == np.uint8 and blocks.shape[-1] % type.size_bytes == 0
    flat = np.ascontiguousarray(blocks).reshape(-1, type.size_bytes)
    with np.errstate(all="ignore"):  # infinite or NaN scales are allowed
        weights = _DEQUANTIZERS[type.name](flat)
    return weights.reshape(*blocks.shape[:-1], -1)


def _f16(blocks: Bytes, start: int) -> Floats:
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)  # (n, 1)


def _unpack(packed: Bytes, bits: int, group: int) -> Bytes:
    """Unpack `bits`-bit fields from groups of `group` bytes, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(len(packed), -1, 1, group) >> shifts  # (n, groups, 8 / bits, group)
    return (fields & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _scaled(scales: Floats, weights: NDArray[np.generic]) -> Floats:
    """Multiply weights (n, w) by scales (n, s). Each scale covers w / s consecutive weights."""
    n, count = scales.shape
    grouped = weights.astype(np.float32).reshape(n, count, -1)
    return (scales[:, :, None] * grouped).reshape(n, -1)


def _q5(packed: Bytes) -> NDArray[np.integer]:
    # Layout: fifth bits (4 bytes), low four bits (16).
    return _unpack(packed[:, 4:], 4, 16) | _unpack(packed[:, :4], 1, 1) << 4


def _q2_k(b: Bytes) -> Floats:
    # Layout: scales and minima (16 bytes, a nibble each), weights (64), d, dmin.
    weights = _unpack(b[:, 16:80], 2, 32)
    minima = _f16(b, 82) * (b[:, :16] >> 4)
    return _scaled(_f16(b, 80) * (b[:, :16] & 15), weights) - minima.repeat(16, axis=1)


def _q3_k(b: Bytes) -> Floats:
    # Layout: third bits (32 bytes), low two bits (64), scales (12), d.
    weights = _unpack(b[:, 32:96], 2, 32) | _unpack(b[:, :32], 1, 32) << 2
    scales = _unpack(b[:, 96:104], 4, 8) | _unpack(b[:, 104:108], 2, 4) << 4  # (n, 16)
    return _scaled(_f16(b, 108) * (scales.astype(np.float32) - 32), weights.astype(np.int8) - 4)


def _k_scaled(b: Bytes, weights: NDArray[np.generic]) -> Floats:
    """Apply the 8 scales and 8 minima of a Q4_K or Q5_K block: 6 bits each, packed in 12 bytes."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales: Bytes = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=1)
    minima: Bytes = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=1)
    return _scaled(_f16(b, 0) * scales, weights) - (_f16(b, 2) * minima).repeat(32, axis=1)


def _q5_k(b: Bytes) -> Floats:
    # Layout: d, dmin, scales and minima (12 bytes), fifth bits (32), low four bits (128).
    return _k_scaled(b, _unpack(b[:, 48:], 4, 32) | _unpack(b[:, 16:48], 1, 32) << 4)


def _q6_k(b: Bytes) -> Floats:
    # Layout: low four bits (128 bytes), high two bits (64), signed scales (16), d.
    weights = _unpack(b[:, :128], 4, 64) | _unpack(b[:, 128:192], 2, 32) << 4
    scales = _f16(b, 208) * b[:, 192:208].view(np.int8)
    return _scaled(scales, weights.astype(np.int8) - 32)


def _iq4_xs(b: Bytes) -> Floats:
    # Layout: d, high two bits of 8 scales (2 bytes), their low four bits (4), weights (128).
    scales = _unpack(b[:, 4:8], 4, 1) | _unpack(b[:, 2:4], 2, 1) << 4  # (n, 8)
    weights = IQ4_VALUES[_unpack(b[:, 8:], 4, 16)]
    return _scaled(_f16(b, 0) * (scales.astype(np.float32) - 32), weights)


def _mxfp4(b: Bytes) -> Floats:
    # Layout: a power-of-two scale (1 byte), weights (16). Halve the scale: the codebook is doubled.
    scale = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128).astype(np.float32)
    return scale * MXFP4_VALUES[_unpack(b[:, 1:], 4, 16)]


_DEQUANTIZERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": lambda b: b.view("<f4").astype(np.float32),
    "F16": lambda b: _f16(b, 0),
    "BF16": lambda b: (b.view("<u2").astype(np.uint32) << 16).view(np.float32),
    "Q4_0": lambda b: _f16(b, 0) * (_unpack(b[:, 2:], 4, 16).astype(np.float32) - 8),
    "Q4_1": lambda b: _f16(b, 0) * _unpack(b[:, 4:], 4, 16) + _f16(b, 2),
    "Q5_0": lambda b: _f16(b, 0) * (_q5(b[:, 2:]).astype(np.float32) - 16),
    "Q5_1": lambda b: _f16(b, 0) * _q5(b[:, 4:]) + _f16(b, 2),
    "Q8_0": lambda b: _f16(b, 0) * b[:, 2:].view(np.int8),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    # Layout: d, dmin, scales and minima (12 bytes), weights (128).
    "Q4_K": lambda b: _k_scaled(b, _unpack(b[:, 16:], 4, 32)),
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": lambda b: _f16(b, 0) * IQ4_VALUES[_unpack(b[:, 2:], 4, 16)],
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
