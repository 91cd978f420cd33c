"""What loading and a token cost: memory, and launches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import engine
from engine.kernels.gpu.blocks import BlockKernels
from engine.kernels.gpu.launch import Gpu
from support.gguf_writer import Tensor, gguf_bytes
from support.models import committed_models

LOAD = """
import sys
from pathlib import Path
from engine.gguf.reader import open_model
from engine.kernels.gpu.blocks import BlockKernels
from engine.kernels.gpu.launch import Gpu
from engine.nn.weights import Weights

file = open_model(Path(sys.argv[1]))
weights = Weights(file, BlockKernels("cpu", Gpu(cuda=False)))
held = [weights.matrix(name, *info.shape) for name, info in file.tensors.items()]
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_file_and_one_tensor(tmp_path: Path):
    path, count = tmp_path / "model.gguf", 24
    tensors = [Tensor(f"blk.{i}.w", (8, 1024, 4096), "Q4_K") for i in range(count)]
    path.write_bytes(gguf_bytes({"general.architecture": "llama"}, tensors))
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(path)], capture_output=True, text=True, check=True
    )
    peak_bytes = 1024 * int(done.stdout)
    assert peak_bytes <= 1.03 * path.stat().st_size + 300e6


# Launches of our kernels for a layer and a token: q, k, v and output; gate with up, and down.
LAUNCHES = {"qwen3moe-Q4_K_M": 6, "gpt-oss-mxfp4": 6}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_token_takes_few_launches(name: str, monkeypatch: pytest.MonkeyPatch):
    stored = next(model for model in committed_models() if model.name == name)
    launched: list[str] = []

    def count(kernel, inputs, template, grid, threadgroup, shape, dtype) -> mx.array:
        launched.append(kernel.name.split("_")[1])
        return mx.zeros(shape, dtype)

    kernels = BlockKernels("cpu", Gpu(False, count), mx.float16)
    monkeypatch.setattr("engine.model.select", lambda *_: kernels)
    model = engine.load(stored.model)
    cache = model.new_cache(context=64)
    model.step([1, 2, 3], cache)
    launched.clear()
    mx.eval(model.forward(mx.array([4]), cache))
    assert launched.count("gated") == launched.count("weighted") == model.config.layers
    assert "chosen" not in launched and "grouped" not in launched
    assert len(launched) <= LAUNCHES[name] * model.config.layers + 2  # embedding and head
