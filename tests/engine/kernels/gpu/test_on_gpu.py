"""On a machine that has them: Apple's compiler, and the self-test on the GPU itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from engine.device import backend
from engine.kernels.gpu import self_test
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.texts import OPERATIONS, TYPES, KernelText
from engine.kernels.gpu.verdicts import GOOD
from support.emulator.text import whole_text

pytestmark = pytest.mark.process
on_gpu = pytest.mark.skipif(backend() == "cpu", reason="needs a GPU")
with_xcrun = pytest.mark.skipif(shutil.which("xcrun") is None, reason="needs Apple's compiler")


@on_gpu
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_self_test(operation: str, name: str):
    assert self_test.verdict(operation, name, Gpu(backend() == "cuda")) == GOOD


@with_xcrun
@pytest.mark.parametrize("name", TYPES)
def test_apples_compiler_accepts_the_texts(name: str, tmp_path: Path):
    texts: list[str] = []

    def keep(kernel: KernelText, inputs, template, grid, threadgroup, shape, dtype) -> mx.array:
        texts.append(whole_text(kernel, inputs, template, dtype))
        return mx.zeros(shape, dtype)

    for operation in OPERATIONS:
        self_test.verdict(operation, name, Gpu(cuda=False, launch=keep))
    for i, text in enumerate(texts):
        file = tmp_path / f"{i}.metal"
        file.write_text(f"#include <metal_stdlib>\nusing namespace metal;\n{text}\n")
        command = ["xcrun", "-sdk", "macosx", "metal", "-std=metal3.1", "-c", str(file)]
        done = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
