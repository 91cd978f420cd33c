"""Import the programs of benchmarks/, which is no package, and use what they make."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME
from engine.nn.config import ModelConfig, read_model_config
from support.program import ROOT


def program(name: str) -> ModuleType:
    """Import benchmarks/NAME.py."""
    folder = str(ROOT / "benchmarks")  # where the programs find each other
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def header(shape: Any) -> tuple[ModelConfig, dict[str, TensorInfo]]:
    """A synthetic model's configuration and tensors, without their data."""
    tensors, at = {}, 0
    for tensor in program("synthesize").plan(shape):
        kind = TYPE_BY_NAME[tensor.type]
        info = TensorInfo(tensor.name, tensor.shape, kind, at, tensor.size_bytes)
        tensors[tensor.name] = info
        at += -(-tensor.size_bytes // 32) * 32
    prefix, layers = shape.architecture, range(shape.layers)
    metadata = {
        "general.architecture": prefix,
        "tokenizer.ggml.tokens": [""] * shape.vocab,
        f"{prefix}.block_count": shape.layers,
    }
    for key, value in shape.keys.items():
        metadata[f"{prefix}.{key}"] = [value(i) for i in layers] if callable(value) else value
    return read_model_config(metadata, tensors), tensors
