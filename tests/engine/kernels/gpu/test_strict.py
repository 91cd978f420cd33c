"""The texts through clang's C++ for OpenCL, whose address spaces are nearly Metal's."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from engine.kernels.gpu import self_test
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.texts import OPERATIONS, TYPES, KernelText
from support.emulator.strict import refusal
from support.emulator.text import Template, whole_text
from support.gpu import NIGHT

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("clang-19") is None, reason="needs clang-19"),
]
MISTAKES = [  # operation, what is replaced, and by what
    ("rows", "const device uchar* block,", "const threadgroup uchar* block,"),
    ("rows", "const device uchar* block,", "const uchar* block,"),
    ("rows", "uint words[8];", "double more = 1; uint words[8];"),
    ("rows", "uint words[8];", "threadgroup float more[4]; uint words[dims[0]];"),
    ("grouped", "threadgroup half* into = weights", "device half* into = weights"),
    ("grouped", "mma_clear(thread Product& c)", "mma_clear(device Product& c)"),
    ("product", "float sums[R];", "auto more = new float[2]; float sums[R];"),
    ("product", "float sums[R];", "dims[0] = 1; float sums[R];"),
]


def texts(operation: str, name: str) -> list[tuple[str, Template]]:
    """The texts that the self-test of an operation launches."""
    found: list[tuple[str, Template]] = []

    def keep(kernel: KernelText, inputs, template, grid, threadgroup, shape, dtype) -> mx.array:
        found.append((whole_text(kernel, inputs, template, dtype), template))
        return mx.zeros(shape, dtype)

    self_test.verdict(operation, name, Gpu(cuda=False, launch=keep))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Q6_K" else NIGHT) for name in TYPES]
)
def test_the_texts_are_accepted(name: str, tmp_path: Path):
    for operation in OPERATIONS:
        text, template = texts(operation, name)[0]
        assert refusal(text, template, tmp_path / "kernel.cl") == "", operation


@pytest.mark.nightly
@pytest.mark.parametrize(("operation", "old", "new"), MISTAKES)
def test_mistakes_are_refused(operation: str, old: str, new: str, tmp_path: Path):
    text, template = texts(operation, "Q6_K")[0]
    assert old in text
    assert refusal(text.replace(old, new, 1), template, tmp_path / "kernel.cl") != ""
