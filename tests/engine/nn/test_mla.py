"""Latent attention: both weight layouts, the cache contents, and the indexer's choice."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.errors import GGUFError
from engine.gguf.reader import open_model
from engine.kernels.base import Rows
from engine.kernels.select import select
from engine.kernels.sizes import resident_bytes
from engine.nn.cache.cache import new_layer_cache
from engine.nn.cache.spec import kv_bytes, kv_read_bytes
from engine.nn.config import read_config, used_tensors
from engine.nn.mla import Indexer, LatentAttention, latent_rope, latent_scale
from engine.nn.weights import Weights
from support import giants
from support.gguf_writer import Tensor, gguf_bytes
from support.headers import kv_values
from support.models import HERE
from support.rewrite import all_tensors, rewrite

HEADS, RANK, STAYS, TURNS, VALUES = 4, 64, 32, 16, 32  # the same in every fixture used here
PROMPT = list(range(3, 43))


def floats(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(tensor.blob(), np.float32).reshape(tensor.shape)


def q8_0(matrix: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return Q8_0 blocks and their dequantised values."""
    groups = matrix.reshape(-1, 32)
    scales = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype(np.float16)
    numbers = np.round(groups / scales.astype(np.float32)).astype(np.int8)
    blocks = np.concatenate([scales.view(np.uint8), numbers.view(np.uint8)], axis=1)
    return blocks.tobytes(), (numbers * scales.astype(np.float32)).reshape(matrix.shape)


def both_layouts(name: str, kind: str, folder: Path) -> tuple[Path, Path]:
    """Write the same weights with and without `attn_kv_b` (files from before April 2025)."""
    source = HERE / name / "model.gguf"
    tensors = {tensor.name: tensor for tensor in all_tensors(source)}
    old, new = dict(tensors), dict(tensors)
    for layer in range(open_model(source).metadata["deepseek2.block_count"]):
        at = f"blk.{layer}.attn_"
        k, v = floats(tensors[at + "k_b.weight"]), floats(tensors[at + "v_b.weight"])
        joined = np.concatenate([k.swapaxes(1, 2), v], axis=1).reshape(-1, RANK)
        blob, exact = {
            "F32": lambda m: (m.tobytes(), m),
            "BF16": lambda m: (
                (m.view(np.uint32) >> 16).astype(np.uint16).tobytes(),
                (m.view(np.uint32) >> 16 << 16).view(np.float32),
            ),
            "Q8_0": q8_0,
        }[kind](np.ascontiguousarray(joined))
        parts = exact.reshape(HEADS, STAYS + VALUES, RANK)
        k, v = parts[:, :STAYS].swapaxes(1, 2), parts[:, STAYS:]
        new[at + "k_b.weight"] = Tensor(at + "k_b.weight", k.shape, "F32", k.tobytes())
        new[at + "v_b.weight"] = Tensor(at + "v_b.weight", v.shape, "F32", v.tobytes())
        del old[at + "k_b.weight"], old[at + "v_b.weight"]
        old[at + "kv_b.weight"] = Tensor(at + "kv_b.weight", joined.shape, kind, blob)
    keys = {k: v for k, v in open_model(source).metadata.items() if not k.endswith("_mla")}
    keys |= {
        "deepseek2.attention.key_length": STAYS + TURNS,
        "deepseek2.attention.value_length": VALUES,
        "deepseek2.attention.head_count_kv": HEADS,
    }
    (folder / "old.gguf").write_bytes(gguf_bytes(keys, list(old.values())))
    return folder / "old.gguf", rewrite(source, folder / "new.gguf", list(new.values()))


def logits(path: Path, kernels: str) -> np.ndarray:
    return np.array(engine.load(path, kernels=kernels).logits(PROMPT))


@pytest.mark.float32
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", ["deepseek2-lite", "deepseek2-v3"])
def test_the_old_layout_gives_the_same_logits(name: str, kind: str, tmp_path: Path, kernels: str):
    old, new = both_layouts(name, kind, tmp_path)
    expected = logits(new, kernels)
    # Native kernels round the activations if a weight is quantised; the new layout here is F32.
    limit = 5e-2 if kind == "Q8_0" and kernels == "native" else 1e-3
    difference = np.abs(logits(old, kernels) - expected)
    assert np.median(difference.max(axis=-1)) < limit * expected.std()
    if kind == "F32":
        assert difference.max() < 1e-5 * expected.std()


def test_both_layouts_keep_the_same_for_a_token(tmp_path: Path):
    configs = [
        read_config(open_model(path).metadata)
        for path in both_layouts("deepseek2-v3", "F32", tmp_path)
    ]
    assert kv_values(configs[0]) == kv_values(configs[1]) == 3 * (RANK + TURNS)
    assert configs[0].attention_scale == configs[1].attention_scale == (STAYS + TURNS) ** -0.5


def test_old_weights_are_judged_by_what_splitting_them_keeps(tmp_path: Path):
    old, _ = both_layouts("deepseek2-v3", "Q8_0", tmp_path)
    info = open_model(old).tensors["blk.0.attn_kv_b.weight"]
    weights = HEADS * (STAYS + VALUES) * RANK
    assert info.size_bytes == weights * 34 // 32
    assert resident_bytes(info, "cpu", "native") == 2 * weights


def test_a_tensor_called_like_no_block_is_no_block():
    config = read_config(DEEPSEEK_V3)
    info = open_model(HERE / "deepseek2-v3" / "model.gguf").tensors["output_norm.weight"]
    names = ["blk", "blk.", "blk.x.a", "blk.60.a", "blk.61.a"]
    kept = used_tensors(config, {name: replace(info, name=name) for name in names})
    assert [one.name for one in kept] == names[:-1]


DEEPSEEK_V3 = giants.DEEPSEEK_V3 | {"tokenizer.ggml.tokens": ["a", "b"]}
# DeepSeek-V3.2: the same sizes, plus the indexer.
DEEPSEEK_V32 = {k.replace("deepseek2.", "deepseek32."): v for k, v in DEEPSEEK_V3.items()} | {
    "general.architecture": "deepseek32",
    "deepseek32.attention.indexer.head_count": 64,
    "deepseek32.attention.indexer.key_length": 128,
    "deepseek32.attention.indexer.top_k": 2048,
}


def test_deepseek_v3_keeps_576_values_a_token_and_layer():
    config = read_config(DEEPSEEK_V3)
    assert kv_bytes(config.cache_specs, 4096, "f16") == 61 * 4096 * 576 * 2
    assert kv_bytes(config.cache_specs, 4096, "f32") == 61 * 4096 * 576 * 4
    assert kv_bytes(config.cache_specs, 4096, "q8") == 61 * 4096 * (576 + 18 * 2)
    assert kv_read_bytes(config.cache_specs, 4096, "f16") == 61 * 4096 * 576 * 2


def test_an_indexer_keeps_a_key_and_spares_reading_the_rest():
    config = read_config(DEEPSEEK_V32)
    assert kv_bytes(config.cache_specs, 4096, "f16") == 61 * 4096 * (576 + 128) * 2
    assert kv_read_bytes(config.cache_specs, 1024, "f16") == 61 * 1024 * (576 + 128) * 2
    assert kv_read_bytes(config.cache_specs, 4096, "f16") == 61 * (2048 * 576 + 4096 * 128) * 2


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8"])
@pytest.mark.parametrize("name", ["deepseek2-v3", "glm-dsa"])
def test_a_cache_takes_the_bytes_that_are_foretold(name: str, kv_type: str):
    config = read_config(open_model(HERE / name / "model.gguf").metadata)
    held = 0
    for layer in range(config.layers):
        cache = new_layer_cache(config.cache_spec(layer), 512, kv_type)
        cache.extend(0, [mx.zeros((h, 1, 300, d)) for h, d in config.cache_spec(layer).buffers])
        for buffer in cache.buffers:
            held += sum(array.nbytes for array in buffer.arrays)
    assert held == kv_bytes(config.cache_specs, 300, kv_type)


def test_yarn_raises_the_scale_by_its_magnitude_squared():
    config = read_config(DEEPSEEK_V3)
    magnitude = 0.1 * math.log(40) + 1
    assert latent_scale(config) == pytest.approx(magnitude**2 / math.sqrt(192))
    assert latent_rope(config.rope, True).magnitude == pytest.approx(1.0)
    lite = replace(config.rope, log_multiplier=0.707)
    raised = 0.1 * 0.707 * math.log(40) + 1
    assert latent_scale(replace(config, rope=lite)) == pytest.approx(raised**2 / math.sqrt(192))
    assert latent_rope(lite, True).magnitude == pytest.approx(1.0)


def test_without_a_multiplier_yarn_magnifies_cos_and_sin():
    rope = replace(read_config(DEEPSEEK_V3).rope, log_multiplier=0.0)
    config = replace(read_config(DEEPSEEK_V3), rope=rope)
    assert latent_scale(config) == 192**-0.5
    assert latent_rope(rope, True).magnitude == pytest.approx(0.1 * math.log(40) + 1)


def test_glm_flash_routes_by_sigmoid_where_its_file_says_nothing():
    words = [str(i) for i in range(154_880)]
    silent = {k: v for k, v in DEEPSEEK_V3.items() if not k.endswith("expert_gating_func")}
    flash = read_config(silent | {"tokenizer.ggml.tokens": words})
    other = read_config(silent)
    assert flash.experts is not None and other.experts is not None
    assert (flash.experts.gating, other.experts.gating) == (2, 1)


def test_blocks_that_only_draft_are_left_out(tmp_path: Path, kernels: str):
    source = HERE / "deepseek2-v3" / "model.gguf"
    tensors = all_tensors(source)
    draft = [
        Tensor(str(t.name).replace("blk.2.", "blk.3."), t.shape, t.type, t.data)
        for t in tensors
        if str(t.name).startswith("blk.2.")
    ]
    draft.append(Tensor("blk.3.nextn.eh_proj.weight", (64, 128)))
    keys = {"deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1}
    path = rewrite(source, tmp_path / "mtp.gguf", [*tensors, *draft], keys)
    assert np.array_equal(logits(path, kernels), logits(source, kernels))


def parts_of(name: str, kernels: str, changes: dict | None = None):
    """Return a fixture's config and weights."""
    file = open_model(HERE / name / "model.gguf")
    config = read_config(file.metadata | (changes or {}))
    return config, Weights(file, select(kernels))


@pytest.mark.float32
def test_queries_grow_with_the_chunk_they_are_in(kernels: str):
    """Mistral Large 3: tokens 24..31 are in the fourth chunk of 8, so all share one factor."""
    temperature = {
        "deepseek2.attention.temperature_scale": 0.1,
        "deepseek2.attention.temperature_length": 8,
    }
    warm, weights = parts_of("deepseek2-v3", kernels, temperature)
    factor = 1 + 0.1 * math.log(1 + 3)
    plain = {"deepseek2.attention.scale": factor * (STAYS + TURNS) ** -0.5}
    scaled, _ = parts_of("deepseek2-v3", kernels, plain)
    rope = latent_rope(warm.rope, interleaved=True)
    x = mx.random.normal((32, 64), key=mx.random.key(1))
    mixed = []
    for config in (warm, scaled):
        layer = LatentAttention(config, weights, 1, rope)
        cache = new_layer_cache(config.cache_spec(1), 32, "f32")
        layer(x[:24], cache, 0)
        mixed.append(np.array(layer(x[24:], cache, 24)))
    assert np.allclose(*mixed, atol=1e-5)
    first = np.array(LatentAttention(warm, weights, 1, rope)(x[:8], None, 0))
    cold, _ = parts_of("deepseek2-v3", kernels)
    assert np.allclose(first, LatentAttention(cold, weights, 1, rope)(x[:8], None, 0), atol=1e-6)


@pytest.mark.float32
def test_a_layer_without_an_indexer_follows_the_choice_before_it(kernels: str):
    """It attends only to the reused tokens, even if the file contains an indexer for it."""
    types = {"glm-dsa.attention.indexer.types": np.array([True, False, True])}
    config, weights = parts_of("glm-dsa", kernels, types)
    assert [len(spec.buffers) for spec in config.cache_specs[:3]] == [2, 1, 2]
    rope = latent_rope(config.rope, interleaved=True)
    indexer = Indexer(config, weights, 0, rope)
    follower = LatentAttention(config, weights, 1, rope, indexer)
    alone = LatentAttention(config, weights, 1, rope)
    x = mx.random.normal((20, 64), key=mx.random.key(2))
    rng = np.random.default_rng(3)
    ids = np.stack([rng.choice(p + 1, indexer.top, replace=False) for p in range(indexer.top, 20)])
    indexer.chosen = mx.array(ids)
    mixed = np.array(follower(x, None, 0))
    assert np.allclose(mixed[: indexer.top], alone(x[: indexer.top], None, 0), atol=1e-6)
    for i, position in enumerate(range(indexer.top, 20)):
        keep = np.isin(np.arange(20), ids[i])
        expected = attention_by_numpy(alone, x, position, keep)
        assert np.allclose(mixed[position], expected, atol=1e-5), position


def attention_by_numpy(layer: LatentAttention, x: mx.array, position: int, keep: np.ndarray):
    """Return the output for one token that attends to `keep`: expanded, not absorbed."""
    assert layer.q_a is not None and layer.q_norm is not None
    eye = mx.broadcast_to(mx.eye(STAYS)[:, None], (STAYS, HEADS, STAYS))
    k_b = np.array(layer.k_b.stack_matmul(eye)).transpose(1, 2, 0)  # (H, R, nope)
    eye = mx.broadcast_to(mx.eye(RANK)[:, None], (RANK, HEADS, RANK))
    v_b = np.array(layer.v_b.stack_matmul(eye)).transpose(1, 2, 0)  # (H, value, R)
    q = layer.q(layer.q_norm(layer.q_a(x))).reshape(-1, HEADS, STAYS + TURNS)
    kv = layer.kv_a(x)
    latents = np.array(layer.kv_norm(kv[:, :RANK]))
    turned = np.array(layer.rope(kv[None, None, :, RANK:], 0))[0, 0]
    q_turned = np.array(layer.rope(q[..., STAYS:].swapaxes(0, 1)[None], 0))[0, :, position]
    keys = np.einsum("hrn,lr->hln", k_b, latents)
    scores = np.einsum("hn,hln->hl", np.array(q[position, :, :STAYS]), keys)
    scores = (scores + q_turned @ turned.T) * layer.scale
    weights = np.where(keep, np.exp(scores - scores.max()), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    values = np.einsum("hvr,lr->hlv", v_b, latents)
    mixed = np.einsum("hl,hlv->hv", weights, values).reshape(1, -1)
    return np.array(layer.output(mx.array(mixed.astype(np.float32))))[0]


def test_glm_5_2_has_an_indexer_in_every_fourth_layer():
    keys = {k.replace("deepseek32.", "glm-dsa."): v for k, v in DEEPSEEK_V32.items()}
    keys |= {"general.architecture": "glm-dsa"}
    short = read_config(keys | {"glm-dsa.context_length": 202_752})
    long = read_config(keys | {"glm-dsa.context_length": 1_048_576})
    assert short.latent is not None and short.latent.indexer is not None
    assert long.latent is not None and long.latent.indexer is not None
    assert all(short.latent.indexer.own)
    own = [layer for layer, own in enumerate(long.latent.indexer.own) if own]
    assert own[:6] == [0, 1, 2, 6, 10, 14]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.kv_lora_rank", 0, "attention.kv_lora_rank must be between 1 and 65,536, got 0"),
        ("rope.dimension_count", 192, "rope.dimension_count must be less"),
        ("attention.indexer.key_length", 32, "attention.indexer.key_length must be at least"),
        ("attention.indexer.top_k", 0, "attention.indexer.top_k must be between 1 and .*, got 0"),
        ("attention.indexer.types", np.zeros(61, bool), "types must be true for the first layer"),
        ("attention.indexer.types", np.ones(3, bool), "must be an array of 61 booleans"),
    ],
)
def test_sizes_that_make_no_sense_name_their_key(key: str, value: object, message: str):
    with pytest.raises(GGUFError, match=message):
        read_config(DEEPSEEK_V32 | {f"deepseek32.{key}": value})


def test_a_sparse_model_without_its_indexer_is_refused(tmp_path: Path):
    source = HERE / "glm-dsa" / "model.gguf"
    keys = {k: v for k, v in open_model(source).metadata.items() if "indexer" not in k}
    path = tmp_path / "dense.gguf"
    path.write_bytes(gguf_bytes(keys, all_tensors(source)))
    with pytest.raises(GGUFError, match=r"glm-dsa\.attention\.indexer\.top_k is missing"):
        engine.load(path)


@pytest.mark.float32
@pytest.mark.parametrize("kind", ["f32", "f16", "q8"])
@pytest.mark.parametrize(
    ("tokens", "heads", "dims", "value_dim", "length"),
    [
        (1, 4, 80, 64, 50),
        (3, 4, 80, 64, 50),
        (64, 4, 80, 64, 64),
        (1, 16, 576, 512, 300),
        (7, 16, 576, 512, 300),
        (2, 130, 96, 64, 70),  # more heads than the native kernels process at a time
        (1, 130, 96, 72, 3),
        (1, 1, 20, 12, 1),
    ],
)
def test_attention_over_rows_is_the_reference(
    tokens: int, heads: int, dims: int, value_dim: int, length: int, kind: str, kernels: str
):
    rng = np.random.default_rng(0)
    q = (rng.normal(size=(tokens, heads, dims)) / math.sqrt(dims)).astype(np.float32)
    rows = stored(rng.normal(size=(length, dims)).astype(np.float32), kind)
    keys = np.array(rows.floats(), dtype=np.float64)
    scores = np.einsum("thd,ld->htl", q, keys)
    seen = np.arange(length) <= np.arange(length - tokens, length)[:, None]
    weights = np.exp(np.where(seen, scores - scores.max(), -math.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("htl,ld->thd", weights, keys[:, :value_dim])
    mixed = select(kernels).latent_attention(mx.array(q), rows, value_dim)
    assert mixed.shape == (tokens, heads, value_dim)
    assert np.abs(np.array(mixed) - expected).max() < 5e-6


def stored(values: np.ndarray, kind: str) -> Rows:
    """Return rows (L, d) as a cache with this type stores them."""
    config = read_config(DEEPSEEK_V3)
    spec = replace(config.cache_spec(0), buffers=((1, values.shape[1]),))
    cache = new_layer_cache(spec, len(values), kind)
    cache.extend(0, [mx.array(values)[None, None]])
    return cache.buffers[0].rows(len(values))
