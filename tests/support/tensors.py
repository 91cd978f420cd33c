"""Random tensors of every block type, and how far a result is from what it should be."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from engine.gguf.dequant import dequantize
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME

# Where the float16 scales of a block lie: random bytes there would be NaN.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)} | {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0):
    """Random blocks of a type, and the float32 matrix they stand for."""
    rng, kind = np.random.default_rng(seed), TYPE_BY_NAME[name]
    count = math.prod(shape) // kind.weights
    blocks = rng.integers(0, 256, (count, kind.size_bytes), dtype=np.uint8)
    small = rng.normal(0, 0.05, (count, 2))
    if name in ("F32", "F16"):
        blocks = small[:, :1].astype({"F32": np.float32, "F16": np.float16}[name]).view(np.uint8)
    elif name == "BF16":
        blocks = small[:, :1].astype(np.float32).view(np.uint8)[:, 2:]
    elif name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 130, count)
    elif name == "NVFP4":
        blocks[:, :4] = rng.integers(16, 80, (count, 4))
    elif name == "IQ1_M":  # the high nibbles of four words
        d = small[:, 0].astype(np.float16).view(np.uint16)
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (d >> 4 * i & 15) << 4
    else:
        for i, at in enumerate(HALVES.get(name, (0,))):
            blocks[:, at : at + 2] = small[:, i : i + 1].astype(np.float16).view(np.uint8)
    blocks = np.ascontiguousarray(blocks)
    info = TensorInfo("w", shape, kind, 0, blocks.nbytes)
    return blocks.reshape(-1), info, dequantize(blocks, kind).reshape(shape)


# Zero, subnormal, largest, infinite and NaN scales, of both signs, by the form of a scale.
EXTREME_HALVES = (0, 0x8000, 1, 0x8001, 0x3FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00)
EXTREMES = {
    "F32": (0, 1, 0x80000001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000),
    "BF16": (0, 1, 0x8001, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0),
    "MXFP4": (0, 1, 2, 253, 254, 255),
    "NVFP4": (0, 1, 7, 8, 0x7E, 0x7F, 0x80, 0x81, 0xFE, 0xFF),
}


def extreme_tensor(name: str, shape: tuple[int, ...], scale: int, everywhere: bool):
    """Random blocks with an extreme scale in the first of each row, or all; float64 weights."""
    flat, info, _ = random_tensor(name, shape)
    kind = info.type
    blocks = flat.reshape(-1, shape[-1] // kind.weights, kind.size_bytes)
    chosen = blocks if everywhere else blocks[:, :1]
    halves = np.array(scale, "<u4" if name == "F32" else "<u2")
    if name == "MXFP4":
        chosen[..., 0] = scale
    elif name == "NVFP4":
        chosen[..., :4] = scale
    elif name == "IQ1_M":
        for i in range(4):
            chosen[..., 49 + 2 * i] = chosen[..., 49 + 2 * i] & 15 | (scale >> 4 * i & 15) << 4
    else:
        for at in HALVES.get(name, (0,)):
            chosen[..., at : at + halves.itemsize] = np.frombuffer(halves.tobytes(), np.uint8)
    if name != "MXFP4" or scale < 128:
        return flat, info, dequantize(blocks, kind).reshape(shape).astype(np.float64)
    smaller = blocks.copy()  # 12 * 2^127 is no float32
    smaller[..., 0] -= 64
    return flat, info, dequantize(smaller, kind).reshape(shape).astype(np.float64) * 2.0**64


def product_error(y: mx.array, expected: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    """Root mean square error, as a share of the size that products of such numbers have.

    Not of their own size: a product may cancel, and what was rounded is then large beside it.
    """
    squares = [np.square(values, dtype=np.float64).mean() for values in (x, w)]
    difference = np.array(y, dtype=np.float64) - expected
    return float(np.sqrt(np.square(difference).mean() / (squares[0] * squares[1] * x.shape[-1])))


def gathered(x: np.ndarray, ids: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Products with the chosen experts: x (T, 1 or k, in), ids (T, k), w (E, out, in)."""
    wide = np.broadcast_to(x, (*ids.shape, x.shape[-1]))
    out = np.empty((*ids.shape, w.shape[1]))
    for expert in np.unique(ids):
        out[ids == expert] = wide[ids == expert] @ w[expert].T
    return out


def loss(got: mx.array, reference: np.ndarray) -> float:
    """Relative root mean square difference."""
    difference = np.array(got.astype(mx.float32), dtype=np.float64) - reference
    return float(np.sqrt((difference**2).mean() / (reference.astype(np.float64) ** 2).mean()))
