"""Models with several residual streams: what they cache, going back, and broken files."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.errors import GGUFError, UnsupportedError
from engine.gguf.reader import open_model
from engine.nn.cache.cache import parts_of
from engine.nn.cache.rewind import restore_point, save_point
from engine.nn.cache.spec import kv_bytes, kv_read_bytes, token_bytes
from engine.nn.config import NgramConfig, read_config
from engine.nn.streams.ngrams import ngram_rows
from engine.nn.weights import Weights
from support.models import HERE, Stored

NAMES = ("deepseek4", "qwen4exp")


@pytest.fixture(params=NAMES)
def stored(request: pytest.FixtureRequest) -> Stored:
    return Stored(HERE / request.param)


def fed(model: engine.Model, tokens: list[int], cache: object, chunk: int) -> np.ndarray:
    for start in range(0, len(tokens), chunk):
        logits = model.step(tokens[start : start + chunk], cache)
    return np.array(logits)


@pytest.mark.float32
@pytest.mark.parametrize("chunk", [1, 7, 64, 150])
def test_blocks_that_chunks_cut_change_nothing(stored: Stored, kernels: str, chunk: int):
    expected = stored.expected()
    tokens, reference = expected["tokens"].tolist(), expected["hf_logits"]
    model = engine.load(stored.model, kernels=kernels)
    logits = fed(model, tokens, model.new_cache(len(tokens), "f32"), chunk)
    assert np.abs(logits - reference[-1]).max() < 1e-3 * reference.std()


@pytest.mark.float32
@pytest.mark.parametrize("length", [1, 5, 8, 40, 127, 128, 129, 131, 150])
def test_going_back_into_a_block_changes_nothing(length: int, kernels: str):
    stored = Stored(HERE / "deepseek4")
    tokens = stored.expected()["tokens"].tolist()[:160]
    model = engine.load(stored.model, kernels=kernels)
    whole = fed(model, tokens, model.new_cache(160, "f32"), 160)
    cache = model.new_cache(160, "f32")
    fed(model, tokens, cache, 50)
    cache.trim(length)
    assert cache.length == length
    fed(model, tokens[:3], cache, 3) if length < 150 else None  # other tokens overwrite entries
    cache.trim(length)
    logits = fed(model, tokens[length:], cache, 9)
    assert np.abs(logits - whole).max() < 1e-3 * whole.std()


@pytest.mark.float32
def test_a_saved_point_goes_on_as_a_fresh_run_does(stored: Stored, kernels: str):
    tokens = stored.expected()["tokens"].tolist()[-48:]
    model = engine.load(stored.model, kernels=kernels)
    cache = model.new_cache(64, "f32")
    fed(model, tokens[:21], cache, 21)
    point = save_point(model, cache, 21)
    assert point is not None
    fed(model, tokens[21:40], cache, 5)
    restore_point(model, cache, point)
    assert cache.length == 21
    logits = fed(model, tokens[21:], cache, 4)
    whole = fed(model, tokens, model.new_cache(64, "f32"), 48)
    assert np.abs(logits - whole).max() < 1e-3 * whole.std()


@pytest.mark.parametrize("kv_type", ["f16", "q8", "f32"])
def test_the_cache_has_the_size_that_fit_counts(stored: Stored, kv_type: str):
    model = engine.load(stored.model, kernels="stock")
    cache = model.new_cache(300, kv_type)
    model.step(stored.expected()["tokens"].tolist(), cache)
    held = states = 0
    for part in parts_of(cache.layers):
        held += sum(a.nbytes for b in getattr(part, "buffers", ()) for a in b.arrays)
        states += sum(a.nbytes for s in list(getattr(part, "states", {}).values())[:1] for a in s)
    # Buffers grow by steps of 256 rows, of which so few tokens need one.
    assert held + 3 * states == kv_bytes(model.config.cache_specs, 256, kv_type)


def test_entries_are_rows_of_several_tokens():
    config = read_config(open_model(HERE / "deepseek4" / "model.gguf").metadata)
    last, given, entries = config.cache_specs[1].parts
    assert (last.window, given.window, entries.stride) == (16, 8, 4)
    assert (last.buffers, entries.buffers) == (((1, 32),), ((1, 32), (1, 64)))
    assert [dims for _, dims in given.buffers] == [64, 64, 128, 128]
    # The last tokens' rows and what a block's tokens gave do not grow with the context.
    assert token_bytes(config.cache_specs[0], "f32") == 0
    assert token_bytes(config.cache_specs[1], "f32") == 4 * (32 + 64) / 4
    rows = 4 * (16 * 32 + 8 * (2 * 64 + 2 * 128))
    # At depth 400 the indexer reads the keys of 100 entries, and attention the best 8.
    assert kv_read_bytes([config.cache_specs[1]], 400, "f32") == rows + 4 * (8 * 32 + 100 * 64)


def test_ngrams_stop_where_a_text_ends():
    config = NgramConfig(
        *(0, 3, 1, 4, 2, 9), multipliers=(3, 5, (1 << 62) + 7), sizes=(11, 13), offsets=(0, 11)
    )

    def row(*ids: int) -> list[int]:
        found = []
        for n, (size, offset) in enumerate(zip(config.sizes, config.offsets, strict=True), 2):
            mixed = 0
            for number, factor in zip(ids[:n], config.multipliers, strict=False):
                mixed ^= number * factor
            mixed = (mixed + (1 << 63)) % (1 << 64) - (1 << 63)  # as 64-bit numbers wrap around
            found.append(mixed % size + offset)
        return found

    rows = ngram_rows(mx.array([-1, -1, 4, 6, 9, 2, 7, 8], mx.int64), config).tolist()
    expected = [(4, 9, 9), (6, 4, 9), (9, 6, 4), (2, 9, 9), (7, 2, 9), (8, 7, 2)]
    assert rows == [row(*ids) for ids in expected]


@pytest.mark.parametrize(
    ("name", "key", "value", "kind"),
    [
        ("deepseek4", "attention.compress_ratios", None, GGUFError),
        ("deepseek4", "attention.compress_ratios", np.array([0, 1, 4], np.int32), GGUFError),
        ("deepseek4", "attention.output_group_count", 3, GGUFError),
        ("deepseek4", "attention.indexer.key_length", 4, GGUFError),
        ("deepseek4", "hyper_connection.count", 0, GGUFError),
        ("deepseek4", "hash_layer_count", 4, GGUFError),
        ("qwen4exp", "hyper_connection.count", None, GGUFError),
        ("qwen4exp", "ple.layers", np.array([2], np.int32), UnsupportedError),
        ("qwen4exp", "ple.layers", np.array([0, 1], np.int32), UnsupportedError),
        ("qwen4exp", "ple.head_offsets", np.array([0, 1], np.uint64), GGUFError),
    ],
)
def test_nonsense_names_its_key(name: str, key: str, value: object, kind: type[Exception]):
    header = dict(open_model(HERE / name / "model.gguf").metadata)
    header.pop(f"{name}.{key}")
    if value is not None:
        header[f"{name}.{key}"] = memoryview(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(kind, match=key):
        read_config(header)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deepseek4", "attention.output_group_count"),
        ("deepseek4", "hyper_connection.count"),
    ],
)
def test_a_model_without_its_parts_is_a_bad_file(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
):
    file = open_model(HERE / name / "model.gguf")
    file.metadata.pop(f"{name}.{key}")
    with pytest.raises(GGUFError, match=key):
        engine.load(file)


def test_blocks_that_the_indexer_cannot_count_are_refused():
    file = open_model(HERE / "qwen4exp" / "model.gguf")
    file.metadata["qwen4exp.attention.indexer.top_k"] = 18
    with pytest.raises(GGUFError, match="multiple of the tokens in a block"):
        engine.load(file)


def test_whole_numbers_are_no_weights(kernels: str):
    file = open_model(HERE / "deepseek4" / "model.gguf")
    weights = Weights(file, engine.load(file, kernels=kernels).kernels)
    name = "blk.0.ffn_gate_tid2eid.weight"
    assert weights.table(name, 320, 2).shape == (320, 2)
    with pytest.raises(GGUFError, match="has type I32, expected weights"):
        weights.matrix(name, 320, 2)
    with pytest.raises(GGUFError, match="has type F32, expected I32"):
        weights.table("output.weight", 320, 64)
