"""Convert GGUF blocks to MLX's quantised matrices. Uses MLX operations, so it also runs on a GPU.

Every type is converted to integers q with w = scale * q + bias for each group, of 32 weights or as
many as share a scale:

    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K   the same integers; exact with float32 scales
    Q1_0 Q2_0 TQ1_0 TQ2_0                the same, in 1 or 2 bits; exact
    IQ1_S                                2 bits: three levels, and the bias moves them; exact
    IQ3_S                                4 bits: odd numbers -15..15; exact
    Q3_K                                 8 bits: sub-scale * number is in -124..128; also exact
    IQ4_NL IQ4_XS IQ2_XXS IQ3_XXS        8 bits: the codebook holds integers; also exact
    Q2_K Q6_K IQ1_M IQ2_XS IQ2_S         8 bits, rounded: a group has two scales but MLX allows one
    MXFP4 NVFP4                          MLX's own modes; the same bytes in a different order

Axes: R rows, B blocks per row, G groups per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.gguf.dequant import IQ4_VALUES
from engine.gguf.grids import grid
from engine.kernels.sizes import RESIDENT_BITS, scale_group

GROUP = 32


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix in MLX's affine format: q (R, words) uint32, scales and biases (R, G)."""

    q: mx.array
    scales: mx.array
    biases: mx.array | None
    bits: int
    group: int  # weights per scale

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array | None]:
        return self.q, self.scales, self.biases

    def at(self, index: slice | mx.array) -> Affine:
        """Return the rows selected by `index`."""
        biases = None if self.biases is None else self.biases[index]
        return Affine(self.q[index], self.scales[index], biases, self.bits, self.group)

    @staticmethod
    def join(parts: list[Affine], leading: tuple[int, ...]) -> Affine:
        """Concatenate the rows of several matrices. leading: (out,) or (E, out) for the result."""

        def join(arrays: list[mx.array]) -> mx.array:
            return mx.concatenate(arrays).reshape(*leading, -1)

        biases = [part.biases for part in parts if part.biases is not None]
        q, scales = join([part.q for part in parts]), join([part.scales for part in parts])
        bias = join(biases) if biases else None
        return Affine(q, scales, bias, parts[0].bits, parts[0].group)


def repack(raw: mx.array, type_name: str, scale_dtype: mx.Dtype) -> Affine:
    """Convert blocks of an affine type. raw: (R, B, block bytes) uint8."""
    q, scales, biases = UNPACK[type_name](raw)  # (R, ...) uint8 and a float32 for each group
    rows, bits, group = raw.shape[0], RESIDENT_BITS[type_name], scale_group(type_name)
    return Affine(
        _pack(q.reshape(rows, -1, GROUP), bits),
        scales.reshape(rows, -1).astype(scale_dtype),
        biases.reshape(rows, -1).astype(scale_dtype),
        bits,
        group,
    )


def repack_mxfp4(raw: mx.array) -> Affine:
    """Convert MXFP4 blocks, each an exponent byte and 32 four-bit numbers. Always exact."""
    exponents = mx.contiguous(raw[..., 0])  # a view would keep all of `raw` in memory
    return Affine(_pack(_nibbles(raw[..., 1:]), 4), exponents, None, 4, GROUP)


def repack_nvfp4(raw: mx.array) -> Affine:
    """Convert NVFP4 blocks, each 4 scale bytes and 64 four-bit numbers. Exact.

    GGML reads 127, the pattern of NaN, as 0. It ignores the sign bit and reads 255 as 480, which is
    NaN to MLX on a CPU.
    """
    scales = mx.contiguous(raw[..., :4]).reshape(raw.shape[0], -1)
    scales = mx.where(scales == 127, mx.array(0, mx.uint8), scales & 127)
    q = _nibbles(raw[..., 4:].reshape(*raw.shape[:2], 4, 8))
    return Affine(_pack(q, 4), scales, None, 4, scale_group("NVFP4"))


def _half(raw: mx.array, at: int) -> mx.array:
    """Read the float16 value at byte `at` of each block: (R, B) float32."""
    return mx.contiguous(raw[..., at : at + 2]).view(mx.float16).astype(mx.float32).squeeze(-1)


def _fields(x: mx.array, bits: int) -> mx.array:
    """Split bytes into fields, lowest bits first: (..., n) uint8 -> (..., 8 / bits, n)."""
    shifts = mx.arange(0, 8, bits, dtype=mx.uint8)[:, None]
    return (x[..., None, :] >> shifts) & ((1 << bits) - 1)


def _nibbles(qs: mx.array) -> mx.array:
    """Return the low nibbles of all bytes, then the high nibbles: (..., n) -> (..., 2n)."""
    return _fields(qs, 4).reshape(*qs.shape[:-1], -1)


def _fields_of_each(x: mx.array, bits: int) -> mx.array:
    """Return the fields byte by byte, lowest bits first: (..., n) -> (..., 8 n / bits)."""
    return _fields(x, bits).swapaxes(-1, -2).reshape(*x.shape[:-1], -1)


def _pack(q: mx.array, bits: int) -> mx.array:
    """Pack (R, ..., n) uint8 values, n a multiple of 8, into a bit stream: (R, words) uint32."""
    if bits in (1, 2, 4):
        count = 8 // bits
        shifts = mx.arange(0, 8, bits, dtype=mx.uint8)
        q = (q.reshape(*q.shape[:-1], -1, count) << shifts).sum(axis=-1).astype(mx.uint8)
    elif bits == 5:  # eight values in five bytes
        v = [q[..., i::8] for i in range(8)]
        packed = [
            v[0] | v[1] << 5,
            v[1] >> 3 | v[2] << 2 | v[3] << 7,
            v[3] >> 1 | v[4] << 4,
            v[4] >> 4 | v[5] << 1 | v[6] << 6,
            v[6] >> 2 | v[7] << 3,
        ]
        q = mx.stack(packed, axis=-1)
    return mx.contiguous(q.reshape(q.shape[0], -1)).view(mx.uint32)


Unpacked = tuple[mx.array, mx.array, mx.array]  # numbers, scales, biases


def _centred(q: mx.array, scales: mx.array, zero: int) -> Unpacked:
    return q, scales, -zero * scales  # scale * (q - zero)


def _five_bits(raw: mx.array, at: int) -> mx.array:
    """Return Q5_0 or Q5_1 numbers. 32 high bits start at byte `at`; the low nibbles follow."""
    return _nibbles(raw[..., at + 4 :]) | _fields_of_each(raw[..., at : at + 4], 1) << 4


def _k_scales(raw: mx.array) -> tuple[mx.array, mx.array]:
    """Return the eight sub-block scales and biases for Q4_K or Q5_K: (R, B, 8) float32 each."""
    low, mid, high = (raw[..., at : at + 4] for at in (4, 8, 12))
    scales = mx.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=-1)
    minimums = mx.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=-1)
    return _half(raw, 0)[..., None] * scales, -_half(raw, 2)[..., None] * minimums


def _q4_k(raw: mx.array) -> Unpacked:
    return _fields(raw[..., 16:].reshape(*raw.shape[:2], 4, GROUP), 4), *_k_scales(raw)


def _q5_k(raw: mx.array) -> Unpacked:
    low = _fields(raw[..., 48:].reshape(*raw.shape[:2], 4, GROUP), 4)
    q = low.reshape(*raw.shape[:2], 8, GROUP) | _fields(raw[..., 16:48], 1) << 4
    return q, *_k_scales(raw)


def _two_bits(qs: mx.array) -> mx.array:
    """Return the two-bit numbers, 0..3, for Q2_K or Q3_K: (R, B, 64) -> (R, B, 8, 32)."""
    return _fields(qs.reshape(*qs.shape[:2], 2, GROUP), 2).reshape(*qs.shape[:2], 8, GROUP)


def _q3_k(raw: mx.array) -> Unpacked:
    low = _nibbles(raw[..., 96:104])  # (R, B, 16)
    high = _fields(raw[..., 104:108], 2).reshape(*low.shape)
    sub = (low | high << 4).astype(mx.int16) - 32
    bit = _fields(raw[..., :32], 1).astype(mx.int16)  # (R, B, 8, 32)
    q = _two_bits(raw[..., 32:96]).astype(mx.int16) + 4 * bit - 4
    q = q.reshape(*sub.shape, 16) * sub[..., None]  # -124..128
    d = mx.repeat(_half(raw, 108)[..., None], 8, axis=-1)
    return _centred((q + 124).astype(mx.uint8), d, 124)


def _q2_k(raw: mx.array) -> Unpacked:
    q = _two_bits(raw[..., 16:80]).reshape(*raw.shape[:2], 16, 16)
    scales = _half(raw, 80)[..., None] * (raw[..., :16] & 15)
    minimums = _half(raw, 82)[..., None] * (raw[..., :16] >> 4)
    return _reencode(scales[..., None] * q - minimums[..., None])


def _q6_k(raw: mx.array) -> Unpacked:
    low = _fields(raw[..., :128].reshape(*raw.shape[:2], 2, 64), 4)
    high = _fields(raw[..., 128:192].reshape(*raw.shape[:2], 2, GROUP), 2)  # (R, B, 2, 4, 32)
    q = (low.reshape(*high.shape) | high << 4).astype(mx.int8) - 32
    sub = mx.contiguous(raw[..., 192:208]).view(mx.int8).astype(mx.float32)
    return _reencoded(q, _half(raw, 208)[..., None] * sub)


def _reencoded(q: mx.array, scales: mx.array) -> Unpacked:
    """Round int8 numbers with a scale for each 16 to 8 bits, in groups of 32.

    q: (R, B, ...) of 256; scales: (R, B, 16).
    """
    rows, q = q.shape[0], q.reshape(*scales.shape, 16)
    ends = mx.stack([scales * q.min(axis=-1), scales * q.max(axis=-1)], axis=-1)
    ends = ends.reshape(rows, -1, 4)  # of two scales
    low = ends.min(axis=-1)
    steps = (ends.max(axis=-1) - low) / 255
    inverse = mx.where(steps > 0, 1 / steps, 0)
    factors = scales.reshape(rows, -1, 2) * inverse[..., None]
    moved = q.reshape(rows, -1, 2, 16) * factors[..., None] + (0.5 - low * inverse)[..., None, None]
    return moved.astype(mx.uint8), steps, low


def _reencode(w: mx.array) -> Unpacked:
    """Round float32 weights to 8 bits, in groups of 32.

    w: (R, ...), where each row holds a multiple of 32 values.
    """
    w = w.reshape(w.shape[0], -1, GROUP)
    low, high = w.min(axis=-1), w.max(axis=-1)
    scales = (high - low) / 255
    inverse = mx.where(scales > 0, 1 / scales, 0)
    q = mx.round((w - low[..., None]) * inverse[..., None]).astype(mx.uint8)
    return q, scales, low


def _codebook(nibbles: mx.array) -> mx.array:
    raised = [int(value) + 128 for value in IQ4_VALUES]  # 1..241
    return mx.array(raised, dtype=mx.uint8)[nibbles]


def _iq4_xs(raw: mx.array) -> Unpacked:
    low = _fields_of_each(raw[..., 4:8], 4)  # (R, B, 8)
    sub = (low | _fields_of_each(raw[..., 2:4], 2) << 4).astype(mx.float32) - 32
    q = _nibbles(raw[..., 8:].reshape(*raw.shape[:2], 8, 16))
    return _centred(_codebook(q), _half(raw, 0)[..., None] * sub, 128)


def _ternary(q: mx.array, d: mx.array) -> Unpacked:
    """Return TQ1_0 or TQ2_0 numbers, 0..2, (R, B, 256), with a scale for each 128."""
    return _centred(q, mx.repeat(d[..., None], 2, axis=-1), 1)


def _tq1_0(raw: mx.array) -> Unpacked:
    def digits(packed: mx.array, count: int) -> mx.array:
        powers = mx.array([3**i for i in range(count)], dtype=mx.uint8)[:, None]
        shifted = (packed[..., None, :] * powers).astype(mx.uint16)  # modulo 256
        return (shifted * 3 >> 8).astype(mx.uint8).reshape(*packed.shape[:2], -1)

    parts = [digits(raw[..., :32], 5), digits(raw[..., 32:48], 5), digits(raw[..., 48:52], 4)]
    return _ternary(mx.concatenate(parts, axis=-1), _half(raw, 52))


def _points(name: str, indices: mx.array) -> mx.array:
    """Return the points of a grid, of 8 or 4 weights each: (R, B, k) -> (R, B, 256) int8."""
    points = grid(name)
    words = points.view(f"u{points.shape[1]}").ravel()  # one number for each is faster to look up
    return mx.array(words)[indices].view(mx.int8)


# For each byte of signs, 8 bytes: 255 where the bit is set, which is -1.
_NEGATIVE = 255 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")


def _signed(points: mx.array, signs: mx.array) -> mx.array:
    """Negate the weights whose bit is set: points (R, B, 256) int8, signs (R, B, 32) uint8."""
    negative = mx.array(_NEGATIVE.view("u8").ravel())[signs].view(mx.int8)
    return (points ^ negative) - negative


def _word(raw: mx.array, at: int) -> mx.array:
    """Read the words at byte `at` of each of several runs: (..., n) uint8 -> (...) uint32."""
    return mx.contiguous(raw[..., at : at + 4]).view(mx.uint32).squeeze(-1)


def _sevens(words: mx.array) -> mx.array:
    """Return the signs in the low 28 bits of words (R, B, 8), as (R, B, 32) bytes."""
    seven = (words[..., None] >> mx.arange(0, 28, 7, dtype=mx.uint32)) & 127
    return _with_parity(seven.astype(mx.uint8).reshape(*words.shape[:2], -1))


def _with_parity(seven: mx.array) -> mx.array:
    """Add the eighth sign, which makes the number of negative weights even."""
    folded = seven ^ (seven >> 4)
    folded = folded ^ (folded >> 2)
    return seven | ((folded ^ (folded >> 1)) & 1) << 7


def _steps(raw: mx.array, steps: mx.array, factor: float) -> mx.array:
    """Return the scales factor * d * (step + 1/2): (R, B, k) float32."""
    return _half(raw, 0)[..., None] * (steps.astype(mx.float32) + 0.5) * factor


def _whole(q: mx.array, scales: mx.array) -> Unpacked:
    """Return int8 numbers with a scale for each 32, in 8 bits."""
    return _centred(q.view(mx.uint8) ^ 128, scales, 128)


def _iq2_xxs(raw: mx.array) -> Unpacked:
    runs = raw[..., 2:].reshape(*raw.shape[:2], 8, 8)
    words = _word(runs, 4)
    points = _points("IQ2_XXS", runs[..., :4].reshape(*raw.shape[:2], 32))
    return _whole(_signed(points, _sevens(words)), _steps(raw, words >> 28, 0.25))


def _iq2_xs(raw: mx.array) -> Unpacked:
    words = mx.contiguous(raw[..., 2:66]).view(mx.uint16)
    q = _signed(_points("IQ2_XS", words & 511), _with_parity((words >> 9).astype(mx.uint8)))
    return _reencoded(q, _steps(raw, _fields_of_each(raw[..., 66:], 4), 0.25))


def _iq2_s(raw: mx.array) -> Unpacked:
    high = _fields_of_each(raw[..., 66:74], 2).astype(mx.uint16)
    q = _signed(_points("IQ2_S", raw[..., 2:34] | high << 8), raw[..., 34:66])
    return _reencoded(q, _steps(raw, _fields_of_each(raw[..., 74:], 4), 0.25))


def _iq3_xxs(raw: mx.array) -> Unpacked:
    words = _word(raw[..., 66:].reshape(*raw.shape[:2], 8, 4), 0)
    q = _signed(_points("IQ3_XXS", raw[..., 2:66]), _sevens(words))
    return _whole(q, _steps(raw, words >> 28, 0.5))


def _iq3_s(raw: mx.array) -> Unpacked:
    high = _fields_of_each(raw[..., 66:74], 1).astype(mx.uint16)
    q = _signed(_points("IQ3_S", raw[..., 2:66] | high << 8), raw[..., 74:106])  # odd, -15..15
    scales = _half(raw, 0)[..., None] * (2 * _fields_of_each(raw[..., 106:], 4) + 1)
    return ((q + 15) >> 1).astype(mx.uint8), 2 * scales, -15 * scales


def _iq1_s(raw: mx.array) -> Unpacked:
    words = mx.contiguous(raw[..., 34:]).view(mx.uint16)
    high = (words[..., None] >> mx.arange(0, 12, 3, dtype=mx.uint16)) & 7
    indices = raw[..., 2:34] | high.reshape(*raw.shape[:2], -1) << 8
    scales = _half(raw, 0)[..., None] * (2 * ((words >> 12) & 7) + 1).astype(mx.float32)
    moved = mx.where(words >> 15, -1.125, -0.875)
    return (_points("IQ1", indices) + 1).astype(mx.uint8), scales, scales * moved


def _iq1_m(raw: mx.array) -> Unpacked:
    nibbles, words = _fields_of_each(raw[..., 32:48], 4), mx.contiguous(raw[..., 48:])
    words = words.view(mx.uint16)
    d = ((words >> 12) << mx.arange(0, 16, 4, dtype=mx.uint16)).sum(axis=-1).astype(mx.uint16)
    steps = (words[..., None] >> mx.arange(0, 12, 3, dtype=mx.uint16)) & 7
    scales = d.view(mx.float16).astype(mx.float32)[..., None] * (
        2 * steps.reshape(*raw.shape[:2], -1) + 1
    ).astype(mx.float32)
    points = _points("IQ1", raw[..., :32] | (nibbles & 7).astype(mx.uint16) << 8)
    moves = mx.where(nibbles & 8, mx.array(-1, mx.int8), mx.array(1, mx.int8))
    eighths = 8 * points.reshape(*raw.shape[:2], 32, 8) + moves[..., None]
    return _reencoded(eighths, scales / 8)


UNPACK: dict[str, Callable[[mx.array], Unpacked]] = {
    "Q4_0": lambda raw: _centred(_nibbles(raw[..., 2:]), _half(raw, 0), 8),
    "Q4_1": lambda raw: (_nibbles(raw[..., 4:]), _half(raw, 0), _half(raw, 2)),
    "Q5_0": lambda raw: _centred(_five_bits(raw, 2), _half(raw, 0), 16),
    "Q5_1": lambda raw: (_five_bits(raw, 4), _half(raw, 0), _half(raw, 2)),
    "Q8_0": lambda raw: _centred(raw[..., 2:] ^ 128, _half(raw, 0), 128),  # -128..127 -> 0..255
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": lambda raw: _centred(_codebook(_nibbles(raw[..., 2:])), _half(raw, 0), 128),
    "IQ4_XS": _iq4_xs,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "TQ1_0": _tq1_0,
    "TQ2_0": lambda raw: _ternary(
        _fields(raw[..., :64].reshape(*raw.shape[:2], 2, 32), 2), _half(raw, 64)
    ),
    "Q1_0": lambda raw: (_fields_of_each(raw[..., 2:], 1), 2 * _half(raw, 0), -_half(raw, 0)),
    "Q2_0": lambda raw: _centred(_fields_of_each(raw[..., 2:], 2), _half(raw, 0), 1),
}
