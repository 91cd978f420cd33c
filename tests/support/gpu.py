"""Weights for the tests of GPU kernels, which run in the emulator, and bounds for their errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from engine.gguf.dequant import dequantize
from engine.kernels.gpu.fuse import FusedExperts, fused_experts
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import BlockTensor, row_bytes
from engine.kernels.gpu.texts import TYPES
from engine.nn.mlp import Activation, swiglu
from engine.nn.moe import ExpertLinear
from support.emulator.run import run
from support.tensors import HALVES, extreme_tensor, random_tensor

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
# Of every type, some operations run in each run of the suite; of these, all do.
ALWAYS = ("Q4_K", "MXFP4")
# A share of the sum of |w| |x|: float32's sums, and the rounding of y.
BOUNDS = {mx.float32: 2e-6, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11 + 2e-6}
# The grouped product stages weights as half, and on CUDA x as TF32.
GROUPED_BOUNDS = {mx.float32: 2.0**-11, mx.bfloat16: 2.0**-8 + 2.0**-12}
# The bits of scales that random weights do not have: subnormal, zero, and the largest.
FINITE = {"MXFP4": (0, 1, 2, 250), "NVFP4": (0, 1, 7, 8, 0x7E, 0x7F)}
# The scale for which every weight of a type is a whole number; 1 for the others.
WHOLE = dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"), 8.0) | {"IQ3_XXS": 4.0}


def cases(also: Iterable[str] = ALWAYS) -> list[object]:
    """List all types, with both texts. Those that are not in `also`, and CUDA's, are nightly."""
    return [
        pytest.param(
            name, cuda, marks=() if name in also and (name in ALWAYS or not cuda) else NIGHT
        )
        for name in TYPES
        for cuda in (False, True)
    ]


NIGHT = pytest.mark.nightly


def emulated(cuda: bool, seed: int = 0, **shape: int) -> Gpu:
    """Return a GPU that is emulated, with every load and store checked."""
    return Gpu(cuda, partial(run, seed=seed), **shape)


def width(name: str, shares: int = 37) -> int:
    """Return the smallest width of a type that has so many shares of 32 weights, or more."""
    unit = max(32, random_tensor(name, (1, 256))[1].type.weights)
    return -(-32 * shares // unit) * unit


def weight(
    name: str,
    shape: tuple[int, ...],
    gpu: Gpu,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    whole: bool = False,
    scale: int | None = None,
) -> tuple[BlockTensor, np.ndarray]:
    """Return a random weight and its numbers in float64.

    whole: they are whole numbers. scale: the bits of all scales, see `extreme_tensor`.
    """
    flat, info, _ = random_tensor(name, shape, seed)
    if scale is not None:
        flat, info, _ = extreme_tensor(name, shape, scale, everywhere=True)
    if whole:
        _make_whole(flat.reshape(-1, info.type.size_bytes), name)
    blocks = mx.array(flat.reshape(*shape[:-1], row_bytes(info.type, shape[-1])))
    numbers = dequantize(flat, info.type).reshape(shape).astype(np.float64)
    return BlockTensor(blocks, shape, info.type, gpu, dtype), numbers


def _make_whole(blocks: np.ndarray, name: str) -> None:
    scale = np.array([WHOLE.get(name, 1.0)], np.float16)
    if name == "MXFP4":
        blocks[:, 0] = 128
    elif name == "NVFP4":
        blocks[:, :4] = 64 + 8 * (blocks[:, :4] % 3)
    elif name == "IQ1_M":
        nibbles = int(scale.view(np.uint16)[0])
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (nibbles >> 4 * i & 15) << 4
    else:
        for at in HALVES.get(name, (0,)):
            blocks[:, at : at + 2] = scale.view(np.uint8)


def vectors(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def numbers(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def off(y: mx.array, x: np.ndarray, w: np.ndarray) -> float:
    """The largest error of a product, as a share of the sum of |w| |x|."""
    return float((np.abs(numbers(y) - x @ w.T) / (np.abs(x) @ np.abs(w).T)).max())


def experts(
    gate: BlockTensor | None,
    up: BlockTensor,
    down: BlockTensor,
    biases: tuple[mx.array, mx.array, mx.array] | None = None,
    activation: Activation = swiglu,
    merged: bool = False,
) -> FusedExperts:
    """Return the experts of a layer. merged: `up` has the rows of the gate before its own."""
    parts = [None if w is None else ExpertLinear(w, b) for w, b in zip(
        (gate, up, down), biases or (None, None, None), strict=True)]  # fmt: skip
    layer = SimpleNamespace(
        gate=parts[0],
        up=parts[1],
        gate_up=parts[1] if merged else None,
        down=parts[2],
        activation=activation,
        config=SimpleNamespace(count=up.shape[0], weight_on_input=False),
    )
    found = fused_experts(layer)
    assert found is not None
    return found
