"""What starting costs: the modules that an answer to ids must not wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.device import backend
from engine.kernels.select import selected

pytestmark = pytest.mark.process

MODEL = Path(__file__).parents[1] / "fixtures" / "qwen3moe" / "model.gguf"


@pytest.mark.skipif(
    selected("auto", backend()) != "native", reason="the stock kernels repack with NumPy"
)
def test_an_answer_to_ids_imports_nothing_that_only_text_needs():
    code = (
        "import sys, engine\n"
        f"model = engine.load({str(MODEL)!r})\n"
        "settings = engine.Settings(temperature=0, max_tokens=2, ignore_end=True)\n"
        "assert len(list(model.generate([1, 2, 3], settings, model.new_cache(8)))) == 2\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "psutil", "jinja2", "tokenizers", "importlib.metadata", "huggingface_hub"}
    assert not heavy & set(done.stdout.split())
