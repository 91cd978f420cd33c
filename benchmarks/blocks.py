"""Random blocks of GGUF's tensor types: weights around 0 with a given spread."""

from __future__ import annotations

import math

import numpy as np

TILE_BYTES = 32 << 20
BLOCKS = {  # id, weights, bytes
    "F32": (0, 1, 4),
    "Q5_0": (6, 32, 22),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "MXFP4": (39, 32, 17),
}


def _f32(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make normally distributed weights: (n, 1)."""
    weights = rng.standard_normal((TILE_BYTES // 16, 1), np.float32) * np.float32(std)
    return weights.astype("<f4")


def _q4_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q4_K blocks around 0: (n, 144)."""
    return _scaled_twice(rng, std, 144, 4)


def _q5_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q5_K blocks around 0: (n, 176)."""
    return _scaled_twice(rng, std, 176, 5)


def _scaled_twice(rng: np.random.Generator, std: float, size_bytes: int, bits: int) -> np.ndarray:
    """Make blocks whose sub-blocks have a scale and a minimum, both with the same number.

    The block's scale for minima is half the largest weight times that for scales, so that
    w = d * sc * (q - half), half = (2^bits - 1) / 2.
    """
    blocks = _random_bytes(rng, size_bytes)
    spread = math.sqrt(_mean_square(0, 63) * (4**bits - 1) / 12)
    scales = _scales(rng, len(blocks), std / spread)
    blocks[:, 0:2] = scales.astype("<f2").view(np.uint8)
    blocks[:, 2:4] = ((2**bits - 1) / 2 * scales).astype("<f2").view(np.uint8)
    blocks[:, 8:12] = blocks[:, 4:8]  # scales in 4..8, minima in 8..12, four low bits of both in
    blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17  # 12..16
    return blocks


def _q6_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q6_K blocks around 0: (n, 210). w = d * sc * (q - 32), sc signed."""
    blocks = _random_bytes(rng, 210)
    spread = math.sqrt(_mean_square(-128, 127) * _mean_square(-32, 31))
    blocks[:, 208:210] = _scales(rng, len(blocks), std / spread).astype("<f2").view(np.uint8)
    return blocks


def _q5_0(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q5_0 blocks around 0: (n, 22). w = d * (q - 16), d of either sign."""
    blocks = _random_bytes(rng, 22)
    scales = _scales(rng, len(blocks), std / math.sqrt(_mean_square(-16, 15)))
    scales *= rng.choice((-1, 1), scales.shape)
    blocks[:, 0:2] = scales.astype("<f2").view(np.uint8)
    return blocks


def _q8_0(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q8_0 blocks around 0: (n, 34). w = d * q, q within -127..127."""
    blocks = _random_bytes(rng, 34)
    np.maximum(blocks[:, 2:].view(np.int8), -127, out=blocks[:, 2:].view(np.int8))
    scales = _scales(rng, len(blocks), std / math.sqrt(_mean_square(-127, 127)))
    blocks[:, 0:2] = scales.astype("<f2").view(np.uint8)
    return blocks


def _mxfp4(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make MXFP4 blocks around 0: (n, 17). w = 2^(e - 127) * value, e one of two neighbours."""
    blocks = _random_bytes(rng, 17)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    wanted = std / math.sqrt(np.mean(values**2))
    low = math.floor(math.log2(wanted))
    share = ((wanted / 2**low) ** 2 - 1) / 3  # of the higher, so that the mean square is right
    blocks[:, 0] = 127 + low + (rng.random(len(blocks)) < share)
    return blocks


MAKERS = {
    "F32": _f32,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}


def _random_bytes(rng: np.random.Generator, size_bytes: int) -> np.ndarray:
    count = TILE_BYTES // size_bytes
    return np.frombuffer(bytearray(rng.bytes(count * size_bytes)), np.uint8).reshape(count, -1)


def _scales(rng: np.random.Generator, count: int, around: float) -> np.ndarray:
    return around * rng.uniform(0.75, 1.25, (count, 1))


def _mean_square(low: int, high: int) -> float:
    return float(np.mean(np.arange(low, high + 1) ** 2.0))
