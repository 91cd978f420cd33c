"""Rewrites a model file for a test: the same metadata, other tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.gguf.reader import TensorInfo, open_model
from support.gguf_writer import Tensor, gguf_bytes


def read_blocks(path: Path, info: TensorInfo) -> bytes:
    """The bytes of one tensor of a single-file model."""
    with path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.size_bytes)


def all_tensors(path: Path) -> list[Tensor]:
    """Every tensor of a single-file model, as the writer takes it."""
    return [
        Tensor(info.name, info.shape, info.type.name, read_blocks(path, info))
        for info in open_model(path).tensors.values()
    ]


def rewrite(
    source: Path, target: Path, tensors: Sequence[Tensor], changes: Mapping[str, Any] | None = None
) -> Path:
    """Write `tensors` under the metadata of `source`, with `changes` to it."""
    target.write_bytes(gguf_bytes(open_model(source).metadata | dict(changes or {}), tensors))
    return target
