"""The texts through NVIDIA's own compiler, which needs no card."""

from __future__ import annotations

import mlx.core as mx
import pytest

from engine.kernels.gpu import self_test
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.texts import OPERATIONS, TYPES, KernelText
from support.emulator.nvrtc import library, refusal
from support.emulator.text import whole_text
from support.gpu import NIGHT

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(library() is None, reason="needs nvidia-cuda-nvrtc and -runtime"),
]
ARCHITECTURES = ("sm_80", "sm_90a")


def texts(operation: str, name: str) -> list[str]:
    """The texts that the self-test of an operation launches on CUDA."""
    found: list[str] = []

    def keep(kernel: KernelText, inputs, template, grid, threadgroup, shape, dtype) -> mx.array:
        found.append(whole_text(kernel, inputs, template, dtype))
        return mx.zeros(shape, dtype)

    self_test.verdict(operation, name, Gpu(cuda=True, launch=keep))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Q6_K" else NIGHT) for name in TYPES]
)
def test_nvidia_compiles_the_texts(name: str):
    for operation in OPERATIONS:
        for text in texts(operation, name):
            for architecture in ARCHITECTURES:
                assert refusal(text, architecture) == "", (operation, architecture)


@pytest.mark.parametrize(
    ("operation", "old", "new"),
    [
        ("product", "float sums[R];", "float sums[n];"),
        ("product", "float sums[R];", "float3x3 sums;"),
        ("rows", "uint words[8];", "uint words[8"),
    ],
)
def test_nvidia_refuses_mistakes(operation: str, old: str, new: str):
    text = texts(operation, "Q6_K")[0]
    assert old in text
    assert refusal(text.replace(old, new, 1), "sm_80") != ""
