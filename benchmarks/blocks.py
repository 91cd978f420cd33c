"""Random blocks of GGUF's tensor types: weights around 0 with a given spread."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Maker = Callable[[np.random.Generator, float], np.ndarray]  # of blocks with a spread

TILE_BYTES = 32 << 20
BLOCKS = {  # id, weights, bytes
    "F32": (0, 1, 4),
    "Q5_0": (6, 32, 22),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "MXFP4": (39, 32, 17),
}
# Types whose blocks are one half-precision scale and random bits: where the scale is, and the
# spread of random bits under a scale of 1 (measured; a test decodes them).
SCALED = {
    "Q3_K": (108, 43.29),
    "Q6_K": (208, 1367.0),
    "IQ2_XXS": (0, 53.29),
    "IQ2_XS": (0, 55.79),
    "IQ3_XXS": (0, 142.4),
    "IQ1_S": (0, 7.202),
    "IQ3_S": (0, 140.3),
    "IQ2_S": (0, 56.44),
    "IQ4_XS": (0, 1245.0),
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


def _q2_k(rng: np.random.Generator, std: float) -> np.ndarray:
    """Make Q2_K blocks around 0: (n, 84). w = d * sc * (q - 1.5): as in _scaled_twice."""
    blocks = _random_bytes(rng, 84)
    blocks[:, :16] = (blocks[:, :16] & 15) * 17
    scales = _scales(rng, len(blocks), std / math.sqrt(_mean_square(0, 15) * 1.25))
    blocks[:, 80:82] = scales.astype("<f2").view(np.uint8)
    blocks[:, 82:84] = (1.5 * scales).astype("<f2").view(np.uint8)
    return blocks


def _scaled(type: str) -> Maker:
    """Return what makes blocks of one of the types in SCALED."""
    at, spread = SCALED[type]

    def make(rng: np.random.Generator, std: float) -> np.ndarray:
        blocks = _random_bytes(rng, BLOCKS[type][2])
        scales = _scales(rng, len(blocks), std / spread)
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8)
        return blocks

    return make


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


MAKERS: dict[str, Maker] = {
    "F32": _f32,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q2_K": _q2_k,
    "MXFP4": _mxfp4,
    **{type: _scaled(type) for type in SCALED},
}


def _random_bytes(rng: np.random.Generator, size_bytes: int) -> np.ndarray:
    count = TILE_BYTES // size_bytes
    return np.frombuffer(bytearray(rng.bytes(count * size_bytes)), np.uint8).reshape(count, -1)


def _scales(rng: np.random.Generator, count: int, around: float) -> np.ndarray:
    return around * rng.uniform(0.75, 1.25, (count, 1))


def _mean_square(low: int, high: int) -> float:
    return float(np.mean(np.arange(low, high + 1) ** 2.0))
