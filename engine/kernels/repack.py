"""GGUF blocks rewritten as MLX's quantised matrices, in MLX operations so that a GPU can do it.

Every type becomes whole numbers q with, per group of 32, w = scale * q + bias:

    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K   their own numbers; exact with float32 scales
    Q3_K                                 8 bits: sub-scale * number fits -124..128; exact likewise
    IQ4_NL IQ4_XS                        8 bits: the codebook holds whole numbers; exact likewise
    Q2_K Q6_K                            8 bits, rounded: a group holds two scales where MLX has one
    MXFP4                                MLX's own mode; the same bytes in another order

R rows, B blocks per row, G groups of 32 per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from engine.gguf.dequant import IQ4_VALUES
from engine.kernels.sizes import GROUP, RESIDENT_BITS


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix in MLX's form: q (R, words) uint32, scales and biases (R, G)."""

    q: mx.array
    scales: mx.array
    biases: mx.array | None
    bits: int

    def at(self, index: slice | mx.array) -> Affine:
        """Take some of the rows."""
        biases = None if self.biases is None else self.biases[index]
        return Affine(self.q[index], self.scales[index], biases, self.bits)

    @staticmethod
    def join(parts: list[Affine], leading: tuple[int, ...]) -> Affine:
        """Stack runs of rows and give them their leading axes: (out,) or (E, out)."""

        def stack(arrays: list[mx.array]) -> mx.array:
            whole = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays)
            return whole.reshape(*leading, -1)

        biases = [part.biases for part in parts if part.biases is not None]
        return Affine(
            stack([part.q for part in parts]),
            stack([part.scales for part in parts]),
            stack(biases) if biases else None,
            parts[0].bits,
        )


def repack(raw: mx.array, type_name: str, scale_dtype: mx.Dtype) -> Affine:
    """Rewrite blocks. raw: (R, B, block bytes) uint8."""
    q, scales, biases = UNPACK[type_name](raw)  # (R, ..., 32) uint8 and (R, ...) float32
    rows, bits = raw.shape[0], RESIDENT_BITS[type_name]
    return Affine(
        _pack(q.reshape(rows, -1, GROUP), bits),
        scales.reshape(rows, -1).astype(scale_dtype),
        biases.reshape(rows, -1).astype(scale_dtype),
        bits,
    )


def repack_mxfp4(raw: mx.array) -> Affine:
    """Rewrite MXFP4 blocks: an exponent byte and 16 bytes of number pairs. Always exact."""
    q = _nibbles(raw[..., 1:])
    return Affine(_pack(q, 4), mx.contiguous(raw[..., 0]), None, 4)  # a view would keep all of raw


def _half(raw: mx.array, at: int) -> mx.array:
    """Read the float16 at byte `at` of every block: (R, B) float32."""
    return mx.contiguous(raw[..., at : at + 2]).view(mx.float16).astype(mx.float32).squeeze(-1)


def _nibbles(qs: mx.array) -> mx.array:
    """Low halves of all bytes, then high halves: (..., n) -> (..., 2n)."""
    return mx.concatenate([qs & 15, qs >> 4], axis=-1)


def _high_bits(qh: mx.array) -> mx.array:
    """One bit per value out of 4 bytes: (..., 4) -> (..., 32) uint8."""
    shifts = mx.arange(8, dtype=mx.uint8)
    return ((qh[..., None] >> shifts) & 1).reshape(*qh.shape[:-1], GROUP)


def _pack(q: mx.array, bits: int) -> mx.array:
    """Pack (R, G, 32) uint8 values into a little-endian stream: (R, words) uint32."""
    if bits == 4:
        packed = q[..., 0::2] | (q[..., 1::2] << 4)
    elif bits == 5:  # eight values in five bytes
        v = [q[..., i::8] for i in range(8)]
        packed = mx.stack(
            [
                v[0] | v[1] << 5,
                v[1] >> 3 | v[2] << 2 | v[3] << 7,
                v[3] >> 1 | v[4] << 4,
                v[4] >> 4 | v[5] << 1 | v[6] << 6,
                v[6] >> 2 | v[7] << 3,
            ],
            axis=-1,
        )
    else:
        packed = q
    return mx.contiguous(packed.reshape(q.shape[0], -1)).view(mx.uint32)


Unpacked = tuple[mx.array, mx.array, mx.array]


def _q4_0(raw: mx.array) -> Unpacked:
    d = _half(raw, 0)
    return _nibbles(raw[..., 2:]), d, -8 * d


def _q4_1(raw: mx.array) -> Unpacked:
    return _nibbles(raw[..., 4:]), _half(raw, 0), _half(raw, 2)


def _q5_0(raw: mx.array) -> Unpacked:
    d = _half(raw, 0)
    return _nibbles(raw[..., 6:]) | _high_bits(raw[..., 2:6]) << 4, d, -16 * d


def _q5_1(raw: mx.array) -> Unpacked:
    q = _nibbles(raw[..., 8:]) | _high_bits(raw[..., 4:8]) << 4
    return q, _half(raw, 0), _half(raw, 2)


def _q8_0(raw: mx.array) -> Unpacked:
    d = _half(raw, 0)
    return raw[..., 2:] ^ 128, d, -128 * d  # -128..127 -> 0..255


def _k_scales(raw: mx.array) -> tuple[mx.array, mx.array]:
    """Scales and minimums of the eight sub-blocks of Q4_K and Q5_K: (R, B, 8) float32 each."""
    s = raw[..., 4:16]
    low, mid, high = s[..., 0:4], s[..., 4:8], s[..., 8:12]
    scales = mx.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=-1)
    minimums = mx.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=-1)
    return _half(raw, 0)[..., None] * scales, -_half(raw, 2)[..., None] * minimums


def _q4_k(raw: mx.array) -> Unpacked:
    scales, biases = _k_scales(raw)
    qs = raw[..., 16:].reshape(*raw.shape[:2], 4, GROUP)
    return mx.stack([qs & 15, qs >> 4], axis=-2), scales, biases


def _q5_k(raw: mx.array) -> Unpacked:
    scales, biases = _k_scales(raw)
    qs = raw[..., 48:].reshape(*raw.shape[:2], 4, GROUP)
    q = mx.stack([qs & 15, qs >> 4], axis=-2).reshape(*raw.shape[:2], 8, GROUP)
    shifts = mx.arange(8, dtype=mx.uint8)[:, None]
    return q | ((raw[..., None, 16:48] >> shifts) & 1) << 4, scales, biases


def _two_bits(qs: mx.array) -> mx.array:
    """Numbers of Q2_K and Q3_K: (R, B, 64) -> (R, B, 8, 32), 0..3."""
    qs = qs.reshape(*qs.shape[:2], 2, 1, GROUP)
    shifts = mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]
    return ((qs >> shifts) & 3).reshape(*qs.shape[:2], 8, GROUP)


def _q3_k(raw: mx.array) -> Unpacked:
    s = raw[..., 96:108]
    low = _nibbles(s[..., :8])  # (R, B, 16)
    shifts = mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]
    high = ((s[..., None, 8:] >> shifts) & 3).reshape(*low.shape)
    sub = (low | high << 4).astype(mx.int16) - 32
    bit = (raw[..., None, :32] >> mx.arange(8, dtype=mx.uint8)[:, None]) & 1  # (R, B, 8, 32)
    q = _two_bits(raw[..., 32:96]).astype(mx.int16) + 4 * bit.astype(mx.int16) - 4
    q = q.reshape(*sub.shape, 16) * sub[..., None]  # -124..128
    d = mx.repeat(_half(raw, 108)[..., None], 8, axis=-1)
    return (q + 124).astype(mx.uint8), d, -124 * d


def _q2_k(raw: mx.array) -> Unpacked:
    q = _two_bits(raw[..., 16:80]).reshape(*raw.shape[:2], 16, 16)
    scales = _half(raw, 80)[..., None] * (raw[..., :16] & 15)
    minimums = _half(raw, 82)[..., None] * (raw[..., :16] >> 4)
    return _reencode(scales[..., None] * q - minimums[..., None])


def _q6_k(raw: mx.array) -> Unpacked:
    ql = raw[..., :128].reshape(*raw.shape[:2], 2, 2, GROUP)
    qh = raw[..., None, 128:192].reshape(*raw.shape[:2], 2, 1, GROUP)
    low = mx.concatenate([ql & 15, ql >> 4], axis=-2)  # (R, B, 2, 4, 32)
    shifts = mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]
    q = (low | ((qh >> shifts) & 3) << 4).astype(mx.int8) - 32
    sub = mx.contiguous(raw[..., 192:208]).view(mx.int8).astype(mx.float32)
    scales = _half(raw, 208)[..., None] * sub  # (R, B, 16)
    return _reencode(scales[..., None] * q.reshape(*scales.shape, 16))


def _reencode(w: mx.array) -> Unpacked:
    """Round weights to 8 bits, a group of 32 at a time. w: float32, a multiple of 32 in all."""
    w = w.reshape(w.shape[0], -1, GROUP)
    low, high = w.min(axis=-1), w.max(axis=-1)
    scales = (high - low) / 255
    inverse = mx.where(scales > 0, 1 / scales, 0)
    q = mx.round((w - low[..., None]) * inverse[..., None]).astype(mx.uint8)
    return q, scales, low


def _codebook(nibbles: mx.array) -> mx.array:
    """Values of the IQ4 codebook, raised by 128 to 1..241."""
    raised = [int(value) + 128 for value in IQ4_VALUES]
    return mx.array(raised, dtype=mx.uint8)[nibbles]


def _iq4_nl(raw: mx.array) -> Unpacked:
    d = _half(raw, 0)
    return _codebook(_nibbles(raw[..., 2:])), d, -128 * d


def _iq4_xs(raw: mx.array) -> Unpacked:
    high = mx.contiguous(raw[..., 2:4]).view(mx.uint16)  # (R, B, 1): two bits a group
    shifts = mx.arange(0, 16, 2, dtype=mx.uint16)
    low = mx.stack([raw[..., 4:8] & 15, raw[..., 4:8] >> 4], axis=-1).reshape(*raw.shape[:2], 8)
    sub = (low | (((high >> shifts) & 3) << 4).astype(mx.uint8)).astype(mx.float32) - 32
    scales = _half(raw, 0)[..., None] * sub
    q = _nibbles(raw[..., 8:].reshape(*raw.shape[:2], 8, 16))
    return _codebook(q), scales, -128 * scales


UNPACK: dict[str, Callable[[mx.array], Unpacked]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
