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


def loss(got: mx.array, reference: np.ndarray) -> float:
    """Relative root mean square difference."""
    difference = np.array(got.astype(mx.float32), dtype=np.float64) - reference
    return float(np.sqrt((difference**2).mean() / (reference.astype(np.float64) ** 2).mean()))
