"""The same weights stored in a different layout produce the same logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.errors import GGUFError
from engine.gguf.reader import numbers, open_model
from engine.nn.config import read_config, used_tensors
from support.gguf_writer import Tensor, split_bytes, write_parts
from support.models import HERE
from support.rewrite import all_tensors, rewrite

PROMPT = list(range(3, 23))


def logits(path: Path, kernels: str) -> np.ndarray:
    return np.array(engine.load(path, kernels=kernels).logits(PROMPT))


def unstacked(tensor: Tensor) -> list[Tensor]:
    """Return one tensor per expert, as in files from before April 2024."""
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
    # As in some published sets, the first part contains metadata but no tensors.
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


def joined(tensors: list[Tensor], parts: tuple[str, ...], whole: str, axis: int) -> list[Tensor]:
    """Join the tensors whose names contain one of `parts` into `whole`, along the row axis."""
    kept = [t for t in tensors if not any(part in t.name for part in parts)]
    for first in (t for t in tensors if parts[0] in t.name):
        pieces = [
            next(t for t in tensors if t.name == first.name.replace(parts[0], part))
            for part in parts
        ]
        leading = first.shape[:axis]
        raw = [np.frombuffer(t.blob(), np.uint8).reshape(*leading, -1) for t in pieces]
        shape = list(first.shape)
        shape[axis] = sum(t.shape[axis] for t in pieces)
        blob = np.concatenate(raw, axis=axis).tobytes()
        kept.append(Tensor(first.name.replace(parts[0], whole), tuple(shape), first.type, blob))
    return kept


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen3moe-Q5_0", "gpt-oss-yarn-exact", "gemma3", "mimo2", "step35"]
)
def test_q_k_and_v_may_be_one_tensor(name: str, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    tensors = all_tensors(source)
    for kind in ("weight", "bias"):
        parts = tuple(f"attn_{part}.{kind}" for part in "qkv")
        tensors = joined(tensors, parts, f"attn_qkv.{kind}", axis=0)
    fused = rewrite(source, tmp_path / "fused.gguf", tensors)
    assert np.allclose(logits(fused, kernels), logits(source, kernels), atol=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["gemma4", "mistral4"])
def test_gate_and_up_may_be_two_tensors(name: str, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    split = []
    for tensor in all_tensors(source):
        if "ffn_gate_up_exps" not in tensor.name:
            split.append(tensor)
            continue
        count, rows, width = tensor.shape
        halves = np.frombuffer(tensor.blob(), np.float32).reshape(count, 2, rows // 2, width)
        for half, part in enumerate(("gate", "up")):
            name = tensor.name.replace("gate_up", part)
            blob = halves[:, half].tobytes()
            split.append(Tensor(name, (count, rows // 2, width), tensor.type, blob))
    two = rewrite(source, tmp_path / "two.gguf", split)
    assert np.allclose(logits(two, kernels), logits(source, kernels), atol=1e-4)


@pytest.mark.float32
@pytest.mark.parametrize(
    "name",
    [
        *("mixtral", "qwen3moe-Q5_0", "gpt-oss-yarn-exact", "qwen2moe"),
        *("cohere2moe", "kimi-linear", "mimo2", "step35"),
    ],
)
def test_gate_and_up_may_be_one_tensor(name: str, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    tensors = all_tensors(source)
    for kind in ("weight", "bias"):
        parts = (f"ffn_gate_exps.{kind}", f"ffn_up_exps.{kind}")
        tensors = joined(tensors, parts, f"ffn_gate_up_exps.{kind}", axis=1)
    assert not any("ffn_up_exps" in t.name for t in tensors)
    merged = rewrite(source, tmp_path / "merged.gguf", tensors)
    assert np.allclose(logits(merged, kernels), logits(source, kernels), atol=1e-4)


def test_keys_of_layers_that_borrow_them_are_left_out(tmp_path: Path, kernels: str):
    source = HERE / "gemma4-e4b" / "model.gguf"  # the last two of seven layers borrow keys
    tensors = all_tensors(source)
    unused = [
        Tensor(t.name.replace(f"blk.{lender}.", f"blk.{borrower}."), t.shape, t.type, t.data)
        for lender, borrower in ((3, 5), (4, 6))
        for t in tensors
        if t.name.startswith((f"blk.{lender}.attn_k", f"blk.{lender}.attn_v"))
    ]
    assert len(unused) == 6
    longer = rewrite(source, tmp_path / "longer.gguf", [*tensors, *unused])
    assert np.array_equal(logits(longer, kernels), logits(source, kernels))
    assert judged_weights(longer) == judged_weights(source)


@pytest.mark.parametrize(
    "name",
    [
        *("glm4moe", "bailingmoe3", "cohere2moe", "exaone-moe", "hy_v3", "mimo2"),
        *("nemotron_h_moe", "step35"),
    ],
)
def test_a_block_that_only_drafts_is_left_out(name: str, tmp_path: Path, kernels: str):
    source = HERE / name / "model.gguf"
    tensors, metadata = all_tensors(source), open_model(source).metadata
    prefix = f"{metadata['general.architecture']}."
    depth = metadata[prefix + "block_count"]
    draft = [
        Tensor(t.name.replace(f"blk.{depth - 1}.", f"blk.{depth}."), t.shape, t.type, t.data)
        for t in tensors
        if t.name.startswith(f"blk.{depth - 1}.")
    ]
    draft.append(Tensor(f"blk.{depth}.nextn.eh_proj.weight", (64, 128), "F32"))
    arrays = {key: numbers(value) for key, value in metadata.items() if key.startswith(prefix)}
    changes = {
        key: np.append(array, array[depth - 1])  # one value per block, drafting ones included
        for key, array in arrays.items()
        if array is not None and len(array) == depth
    }
    changes |= {prefix + "block_count": depth + 1, prefix + "nextn_predict_layers": 1}
    longer = rewrite(source, tmp_path / "longer.gguf", [*tensors, *draft], changes)
    assert np.array_equal(logits(longer, kernels), logits(source, kernels))
    assert engine.load(longer).config.layers == depth
    sizes = [judged_weights(path) for path in (longer, source)]
    assert sizes[0] == sizes[1]


def test_dimensions_of_one_may_be_left_out(tmp_path: Path, kernels: str):
    source = HERE / "kimi-linear" / "model.gguf"  # quantising drops some of them
    tensors = [
        Tensor(t.name, tuple(size for size in t.shape if size > 1), t.type, t.data)
        if "ssm_conv1d" in t.name or t.name.endswith("ssm_a")
        else t
        for t in all_tensors(source)
    ]
    flat = rewrite(source, tmp_path / "flat.gguf", tensors)
    assert np.array_equal(logits(flat, kernels), logits(source, kernels))


def judged_weights(path: Path) -> int:
    file = open_model(path)
    config = read_config(file.metadata)
    return sum(info.size_bytes for info in used_tensors(config, file.tensors))


def test_the_context_chooses_between_long_and_short_rotary_factors(kernels: str):
    source = HERE / "phimoe-long" / "model.gguf"  # its original context is 16 tokens
    model = engine.load(source, kernels=kernels)
    tokens = PROMPT[:10]

    def after(context: int) -> np.ndarray:
        return np.array(model.step(tokens, model.new_cache(context=context, kv_type="f32")))

    assert np.array_equal(after(16), after(12))
    assert np.array_equal(after(17), after(100))
    assert np.abs(after(16) - after(17)).max() > 0.1
    alone = np.array(model.logits(tokens))[-1]
    assert np.allclose(alone, after(16), atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "source"), [("mistral3", "granite"), ("ernie4_5", "granite")]
)
def test_stored_models_without_a_published_reference_hold_the_weights_they_say(
    architecture: str, source: str
):
    ours, theirs = (open_model(HERE / name / "model.gguf") for name in (architecture, source))
    assert ours.tensors.keys() == theirs.tensors.keys()
    tensors = [all_tensors(HERE / name / "model.gguf") for name in (architecture, source)]
    assert all(a.data == b.data for a, b in zip(*tensors, strict=True))
