"""The same weights laid out in another way give the same logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.errors import GGUFError
from engine.gguf import open_model
from support.gguf_writer import Tensor, split_bytes, write_parts
from support.models import HERE
from support.rewrite import all_tensors, rewrite

PROMPT = list(range(3, 23))


def logits(path: Path, kernels: str) -> np.ndarray:
    return np.array(engine.load(path, kernels=kernels).logits(PROMPT))


def unstacked(tensor: Tensor) -> list[Tensor]:
    """One tensor for each expert, as files from before April 2024 have them."""
    if "_exps." not in tensor.name:
        return [tensor]
    count, *shape = tensor.shape
    blob = tensor.blob()
    size = len(blob) // count
    prefix = tensor.name.removesuffix("_exps.weight")
    return [
        Tensor(f"{prefix}.{e}.weight", tuple(shape), tensor.type, blob[e * size : (e + 1) * size])
        for e in range(count)
    ]


@pytest.mark.parametrize("name", ["mixtral", "mixtral-Q5_K_M", "mixtral-Q8_0"])
def test_one_tensor_per_expert_is_stacked_on_load(name: str, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    tensors = [one for tensor in all_tensors(source) for one in unstacked(tensor)]
    assert not any("_exps" in tensor.name for tensor in tensors)
    legacy = rewrite(source, tmp_path / "legacy.gguf", tensors)
    assert np.array_equal(logits(legacy, kernels), logits(source, kernels))


def test_a_missing_expert_is_named(tmp_path: Path):
    source = HERE / "mixtral" / "model.gguf"
    tensors = [one for tensor in all_tensors(source) for one in unstacked(tensor)]
    kept = [tensor for tensor in tensors if tensor.name != "blk.1.ffn_up.5.weight"]
    with pytest.raises(GGUFError, match=r"'blk\.1\.ffn_up\.5\.weight' is missing"):
        engine.load(rewrite(source, tmp_path / "cut.gguf", kept))


@pytest.mark.parametrize(("name", "parts"), [("qwen3moe", 3), ("deepseek2-v3", 13)])
def test_a_split_file_is_the_whole_model(name: str, parts: int, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    tensors = all_tensors(source)
    # As some real sets: the first part holds metadata and no tensor.
    ends = [round(len(tensors) * i / (parts - 1)) for i in range(parts)]
    groups = [tensors[start:end] for start, end in itertools.pairwise(ends)]
    blobs = split_bytes(open_model(source).metadata, [[], *groups])
    assert len(blobs) == parts
    first = write_parts(tmp_path, "tiny", blobs)[0]
    assert np.array_equal(logits(first, kernels), logits(source, kernels))


def test_a_model_with_its_own_head_may_also_tie_it(tmp_path: Path, kernels: str):
    source = HERE / "llama" / "model.gguf"  # tied
    tensors = all_tensors(source)
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    head = Tensor("output.weight", embedding.shape, embedding.type, embedding.data)
    untied = rewrite(source, tmp_path / "untied.gguf", [*tensors, head])
    assert np.array_equal(logits(untied, kernels), logits(source, kernels))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_q.weight", (64, 64), r"'blk\.0\.attn_q\.weight' has shape \(64, 64\)"),
        ("output_norm.weight", (32,), r"'output_norm\.weight' has shape \(32,\), expected \(64,\)"),
        ("blk.1.ffn_down_exps.weight", (8, 64), "blk.1.ffn_down_exps.weight"),
    ],
)
def test_tensors_that_contradict_the_metadata_are_named(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
):
    source = HERE / "qwen3moe" / "model.gguf"
    tensors = [
        Tensor(name, shape, "F32") if tensor.name == name else tensor
        for tensor in all_tensors(source)
    ]
    with pytest.raises(GGUFError, match=message):
        engine.load(rewrite(source, tmp_path / "wrong.gguf", tensors))
