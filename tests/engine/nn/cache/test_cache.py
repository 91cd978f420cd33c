"""Layer caches: the tokens they store, and the lengths they can be rewound to."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import engine.nn.cache.cache
from engine.nn.cache.cache import StateCache, TokenCache, new_layer_cache, rewindable_length
from engine.nn.cache.spec import SNAPSHOTS, CacheSpec, kv_bytes, kv_read_bytes
from engine.nn.config import read_config
from support.headers import kv_values, metadata


def marks(start: int, count: int) -> mx.array:
    """Return keys (1, 1, count, 1) whose values equal their positions."""
    return mx.arange(start, start + count).astype(mx.float32).reshape(1, 1, -1, 1)


def window_cache(monkeypatch: pytest.MonkeyPatch, window: int, slack: int) -> TokenCache:
    monkeypatch.setattr(engine.nn.cache.cache, "WINDOW_SLACK", slack)
    cache = new_layer_cache(CacheSpec(((1, 1), (1, 1)), window=window), 1000, "f32")
    assert isinstance(cache, TokenCache)
    return cache


def test_a_window_gives_back_what_the_new_tokens_see(monkeypatch: pytest.MonkeyPatch):
    cache = window_cache(monkeypatch, window=8, slack=6)
    position = 0
    for count in (5, 1, 9, 1, 1, 1, 12, 1, 1, 1, 1, 1, 1, 1, 1):
        first = max(0, position - 7)
        new = marks(position, count)
        (keys, values), base = cache.extend(position, (new, new), first)
        assert base == first
        expected = list(range(first, position + count))
        assert keys.reshape(-1).tolist() == values.reshape(-1).tolist() == expected
        position += count
    assert cache.base > 0
    held = position - cache.base
    assert held <= 8 + 12


def test_a_window_goes_back_only_while_it_holds_what_was_seen(monkeypatch: pytest.MonkeyPatch):
    cache = window_cache(monkeypatch, window=8, slack=6)
    for position in range(30):
        cache.extend(position, (marks(position, 1),) * 2, max(0, position - 7))
    base = cache.base
    assert cache.rewindable_length(30) == 30 and cache.rewindable_length(29) == 29
    assert cache.rewindable_length(base + 7) == base + 7  # it sees base .. base + 6, and itself
    assert cache.rewindable_length(base + 6) == 0
    (keys, _), _ = cache.extend(0, (marks(0, 3),) * 2, 0)  # and so it starts anew
    assert keys.reshape(-1).tolist() == [0, 1, 2]


def test_layers_go_back_together():
    state, tokens = StateCache(1000), TokenCache([], 1000)
    state.save(20, (mx.array(0),))
    assert rewindable_length([tokens, state], 25) == 20
    assert rewindable_length([tokens, state], 19) == 0
    assert rewindable_length([tokens], 19) == 19


def test_windowed_layers_cost_their_window():
    config = read_config(metadata("gpt-oss", attention__sliding_window=128))
    assert config.windows == (128, 0)
    token = 2 * 2 * 64 * 2  # keys and values, 2 heads of 64, 2 bytes
    assert kv_bytes(config.cache_specs, 131_072, "f16") == token * (
        131_072 + 1024
    )  # 128 + 512 + a step
    assert kv_bytes(config.cache_specs, 256, "f16") == token * 512
    assert kv_read_bytes(config.cache_specs, 1000, "f16") == token * (1000 + 128)


def test_layers_that_borrow_keys_read_them_but_do_not_store_them():
    header = metadata("gemma4", block_count=4, attention__sliding_window=16)
    pattern = np.array([True, False, True, False])
    header |= {"gemma4.attention.sliding_window_pattern": pattern}
    own = read_config(header).cache_specs
    borrowed = read_config(header | {"gemma4.attention.shared_kv_layers": 2}).cache_specs
    assert kv_bytes(borrowed, 4096, "f16") == kv_bytes(own[:2], 4096, "f16")
    assert kv_read_bytes(borrowed, 4096, "f16") == kv_read_bytes(own, 4096, "f16")
    layer = new_layer_cache(borrowed[3], 4096, "f16")
    assert isinstance(layer, TokenCache) and not layer.buffers


def test_a_recurrent_layer_costs_its_states_whatever_the_context():
    changes = {"ssm__conv_kernel": 4, "ssm__state_size": 32, "ssm__group_count": 1}
    changes |= {"ssm__inner_size": 128, "ssm__time_step_rank": 4}
    heads = np.array([0, 2], np.int32)
    header = metadata("granitehybrid", attention__head_count_kv=heads, **changes)
    config = read_config(header)
    state = 3 * (128 + 2 * 32) + 128 * 32
    assert config.cache_spec(0).state_values == state and not config.cache_spec(0).buffers
    token = 2 * 2 * 64 * 2
    small, large = (kv_bytes(config.cache_specs, context, "f16") for context in (256, 4096))
    assert small == 256 * token + SNAPSHOTS * 4 * state
    assert large - small == 3840 * token


def test_kimi_delta_attention_costs_its_state_and_three_convolutions():
    changes = {"ssm__conv_kernel": 4, "kda__head_dim": 16}
    heads = np.array([0, 1], np.int32)
    header = metadata("kimi-linear", attention__head_count_kv=heads, **changes)
    spec = read_config(header).cache_spec(0)
    assert spec.state_values == 3 * 3 * 8 * 16 + 8 * 16 * 16 and not spec.buffers


def test_latent_attention_keeps_576_values_a_token_and_layer():
    header = metadata(
        "deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        attention__kv_lora_rank=512,
        rope__dimension_count=64,
    )
    config = read_config(header)
    assert kv_values(config) == 2 * 576
    assert kv_bytes(config.cache_specs, 256, "f16") == 256 * 2 * 576 * 2
