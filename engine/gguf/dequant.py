"""Dequantise blocks with NumPy, using one function per format.

This is the reference implementation for the kernels: exact but slow. A block contains a few scales
and packed weights. `n` is the number of blocks. Weights are packed low bits first: in a group of
bytes, the low nibbles of all bytes come before their high nibbles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.gguf.grids import grid
from engine.gguf.types import BlockType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# The 4-bit codebooks. IQ4_NL and IQ4_XS share the first, MXFP4 and NVFP4 the second, which is
# doubled to hold integers.
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


def _nvfp4(b: Bytes) -> Floats:
    # Layout: 4 scales (4-bit exponent, 3-bit mantissa), weights (4 x 8 bytes).
    exponent, mantissa = (b[:, :4] >> 3 & 15).astype(np.int32), (b[:, :4] & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)  # halved: the codebook is doubled
    scales = np.where(exponent > 0, normal, np.ldexp(mantissa, -10))
    scales = np.where(b[:, :4] == 127, 0, scales).astype(np.float32)
    return _scaled(scales, MXFP4_VALUES[_unpack(b[:, 4:], 4, 8)])


def _tq1_0(b: Bytes) -> Floats:
    # Layout: five weights to a byte (32 bytes, then 16), four weights to a byte (4), d. A byte is
    # the fraction 0.abcde in base 3, times 256.
    def digits(packed: Bytes, count: int) -> Bytes:
        powers = np.array([3**i for i in range(count)], np.uint8)[:, None]
        shifted = packed[:, None, :] * powers  # drop the digits before the wanted one
        return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)

    parts = (digits(b[:, :32], 5), digits(b[:, 32:48], 5), digits(b[:, 48:52], 4))
    return _f16(b, 52) * (np.concatenate(parts, axis=1).astype(np.float32) - 1)


def _signed(points: NDArray[np.int8], signs: Bytes) -> NDArray[np.int8]:
    """Negate the weights whose bit is set. points (n, k, w); signs (n, k * w / 8)."""
    negative = np.unpackbits(signs, axis=1, bitorder="little").reshape(points.shape)
    return np.where(negative, -points, points)


def _sevens(words: NDArray[np.uint32]) -> Bytes:
    """Return the signs in the low 28 bits of (n, k) words, as (n, 4 k) bytes.

    Each 7 bits are the signs of 8 weights. The eighth makes the number of negative weights even.
    """
    seven = (words[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127).astype(np.uint8)
    return _with_parity(seven.reshape(len(words), -1))


def _with_parity(seven: Bytes) -> Bytes:
    return (seven | np.bitwise_count(seven) << 7).astype(np.uint8)


def _halves(b: Bytes, steps: NDArray[np.integer]) -> Floats:
    """Return d * (step + 1/2) for each step: (n, k)."""
    return _f16(b, 0) * (np.float32(0.5) + steps.astype(np.float32))


def _iq2_xxs(b: Bytes) -> Floats:
    # Layout: d, then for each 32 weights 4 indices (4 bytes) and a word of signs and a scale.
    pairs = np.ascontiguousarray(b[:, 2:]).view("<u4").reshape(len(b), 8, 2)
    indices = np.ascontiguousarray(pairs[:, :, 0]).view(np.uint8)
    scales = _halves(b, pairs[:, :, 1] >> 28) * np.float32(0.25)
    return _scaled(scales, _signed(grid("IQ2_XXS")[indices], _sevens(pairs[:, :, 1])))


def _iq2_xs(b: Bytes) -> Floats:
    # Layout: d, 32 words with an index (9 bits) and signs (7), scales (8 bytes, a nibble each).
    words = np.ascontiguousarray(b[:, 2:66]).view("<u2")
    signs = _with_parity((words >> 9).astype(np.uint8))
    return _scaled(
        _halves(b, _unpack(b[:, 66:], 4, 1)) * np.float32(0.25),
        _signed(grid("IQ2_XS")[words & 511], signs),
    )


def _iq2_s(b: Bytes) -> Floats:
    # Layout: d, low bytes of 32 indices, signs (32 bytes), high bits of the indices (8), scales.
    indices = b[:, 2:34] | _unpack(b[:, 66:74], 2, 1).astype(np.uint16) << 8
    return _scaled(
        _halves(b, _unpack(b[:, 74:], 4, 1)) * np.float32(0.25),
        _signed(grid("IQ2_S")[indices], b[:, 34:66]),
    )


def _iq3_xxs(b: Bytes) -> Floats:
    # Layout: d, 64 indices, then a word of signs and a scale for each 32 weights.
    words = np.ascontiguousarray(b[:, 66:]).view("<u4")
    scales = _halves(b, words >> 28) * np.float32(0.5)
    return _scaled(scales, _signed(grid("IQ3_XXS")[b[:, 2:66]], _sevens(words)))


def _iq3_s(b: Bytes) -> Floats:
    # Layout: d, low bytes of 64 indices, their ninth bits (8 bytes), signs (32), 8 scales (4).
    indices = b[:, 2:66] | _unpack(b[:, 66:74], 1, 1).astype(np.uint16) << 8
    scales = _f16(b, 0) * (1 + 2 * _unpack(b[:, 106:], 4, 1).astype(np.float32))
    return _scaled(scales, _signed(grid("IQ3_S")[indices], b[:, 74:106]))


def _iq1(indices: NDArray[np.integer], negative: NDArray[np.bool_], scales: Floats) -> Floats:
    """Return grid weights moved by 1/8. indices (n, 32), negative (n, 32), scales (n, k)."""
    moved = (
        grid("IQ1")[indices] + np.where(negative, np.float32(-0.125), np.float32(0.125))[..., None]
    )
    return _scaled(scales, moved)


def _iq1_s(b: Bytes) -> Floats:
    # Layout: d, low bytes of 32 indices, then for each 32 weights a word: the high three bits of
    # its indices, a scale (3 bits), and the direction of the move.
    words = np.ascontiguousarray(b[:, 34:]).view("<u2")
    high = words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    indices = b[:, 2:34] | high.reshape(len(b), -1) << 8
    scales = _f16(b, 0) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    return _iq1(indices, (words >> 15 != 0).repeat(4, axis=1), scales)


def _iq1_m(b: Bytes) -> Floats:
    # Layout: low bytes of 32 indices, a nibble for each (high three bits, direction of the move),
    # four words of four 3-bit scales. Their high nibbles make d.
    nibbles, words = _unpack(b[:, 32:48], 4, 1), np.ascontiguousarray(b[:, 48:]).view("<u2")
    indices = b[:, :32] | (nibbles & 7).astype(np.uint16) << 8
    d = np.bitwise_or.reduce((words >> 12) << np.arange(0, 16, 4, dtype=np.uint16), axis=1)
    steps = words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    scales = d.astype("<u2").view("<f2").astype(np.float32)[:, None] * (
        2 * steps.reshape(len(b), -1) + 1
    ).astype(np.float32)
    return _iq1(indices, nibbles & 8 != 0, scales)


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
    "NVFP4": _nvfp4,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "TQ1_0": _tq1_0,
    # Layout: weights (64 bytes), d.
    "TQ2_0": lambda b: _f16(b, 64) * (_unpack(b[:, :64], 2, 32).astype(np.float32) - 1),
    "Q1_0": lambda b: _f16(b, 0) * (2 * _unpack(b[:, 2:], 1, 1).astype(np.float32) - 1),
    "Q2_0": lambda b: _f16(b, 0) * (_unpack(b[:, 2:], 2, 1).astype(np.float32) - 1),
}
