"""Hyperparameters are read correctly, and an invalid value raises an error that names its key."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import GGUFError, UnsupportedError
from engine.gguf.reader import open_model
from engine.nn.config import read_config, read_model_config
from support.headers import kv_values, metadata
from support.models import HERE

SOUND = {
    "general.architecture": "qwen3moe",
    "general.name": "Tiny",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "qwen3moe.block_count": 2,
    "qwen3moe.context_length": 2048,
    "qwen3moe.embedding_length": 64,
    "qwen3moe.feed_forward_length": 128,
    "qwen3moe.attention.head_count": 4,
    "qwen3moe.attention.head_count_kv": 2,
    "qwen3moe.attention.key_length": 48,
    "qwen3moe.attention.value_length": 48,
    "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen3moe.rope.freq_base": 1e6,
    "qwen3moe.expert_count": 8,
    "qwen3moe.expert_used_count": 2,
    "qwen3moe.expert_feed_forward_length": 32,
}
MISSING = object()
RECURRENT = {
    "ssm__conv_kernel": 4,
    "ssm__state_size": 32,
    "ssm__group_count": 1,
    "ssm__inner_size": 128,
    "ssm__time_step_rank": 4,
    "kda__head_dim": 16,
}


def test_config_reads_what_the_file_says():
    config = read_config(SOUND)
    assert (config.layers, config.width, config.vocab, config.context) == (2, 64, 3, 2048)
    assert (config.heads, config.kv_heads, config.key_dim) == ((4, 4), (2, 2), 48)
    assert config.experts is not None
    assert (config.experts.count, config.experts.used, config.experts.width) == (8, 2, 32)
    assert config.attention_scale == 48**-0.5
    assert kv_values(config) == 2 * 2 * (48 + 48)


@pytest.mark.parametrize("name", ["deepseek2", "deepseek32", "glm-dsa", "mistral4"])
def test_a_converter_that_leaves_the_key_out_means_no(name: str):
    # DeepSeek's converter writes `expert_weights_norm` only if it is true.
    routed = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}
    header = metadata(name, **routed)
    experts = read_config(header).experts
    assert experts is not None and not experts.renormalize
    experts = read_config(header | {f"{name}.expert_weights_norm": True}).experts
    assert experts is not None and experts.renormalize


def test_layers_may_differ_in_their_experts():
    arrays = {
        "qwen3moe.expert_used_count": np.array([0, 3], np.uint32),
        "qwen3moe.expert_feed_forward_length": np.array([0, 48], np.uint32),
    }
    experts = read_config(SOUND | arrays).experts
    assert experts is not None and (experts.used, experts.width) == (3, 48)
    assert [(experts.of_layer(i).used, experts.of_layer(i).width) for i in range(2)] == [
        (0, 0),
        (3, 48),
    ]
    one = np.array([48, 48], np.uint32)
    with pytest.raises(GGUFError, match="0 in the same layers"):
        read_config(SOUND | arrays | {"qwen3moe.expert_feed_forward_length": one})


def test_head_width_is_not_width_over_heads():
    # Not 64 / 4 = 16: two other tools assume so, and halve the size of Qwen3's KV cache.
    assert read_config(SOUND).key_dim == 48


def test_kv_heads_may_be_an_array_per_layer():
    config = read_config(SOUND | {"qwen3moe.attention.head_count_kv": np.array([1, 4], np.int32)})
    assert config.kv_heads == (1, 4)
    assert kv_values(config) == 5 * (48 + 48)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 513),
        ("block_count", "two"),
        ("block_count", True),
        ("block_count", MISSING),
        ("embedding_length", 0),
        ("embedding_length", MISSING),
        ("context_length", 0),
        ("context_length", 1 << 40),
        ("feed_forward_length", -1),
        ("attention.head_count", 0),
        ("attention.head_count", 1 << 20),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 3),  # 4 query heads
        ("attention.head_count_kv", np.array([2], np.int32)),
        ("attention.head_count_kv", np.array([2.0, 2.0], np.float32)),
        ("attention.key_length", 0),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("attention.layer_norm_rms_epsilon", float("inf")),
        ("attention.layer_norm_rms_epsilon", -1e-6),
        ("attention.layer_norm_rms_epsilon", MISSING),
        ("attention.scale", float("nan")),
        ("rope.dimension_count", 7),
        ("rope.dimension_count", 0),
        ("rope.dimension_count", 96),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", 1.0),
        ("rope.freq_base", float("nan")),
        ("rope.scaling.factor", -1.0),
        ("rope.scaling.type", 4),
        ("expert_count", 1025),
        ("expert_used_count", 9),
        ("expert_used_count", 0),
        ("expert_used_count", MISSING),
        ("expert_weights_norm", 1),
        ("vocab_size", 4),
    ],
)
def test_nonsense_is_an_error_that_names_the_key(key: str, value: object):
    metadata = SOUND | {f"qwen3moe.{key}": value}
    if value is MISSING:
        del metadata[f"qwen3moe.{key}"]
    with pytest.raises(GGUFError, match=key.replace(".", r"\.")):
        read_config(metadata)


@pytest.mark.parametrize("tokens", [MISSING, [], "abc", np.array([1, 2, 3])])
def test_a_file_without_a_vocabulary_is_refused(tokens: object):
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.tokens"):
        read_config(SOUND | {"tokenizer.ggml.tokens": tokens})


@pytest.mark.parametrize("architecture", [MISSING, "", 3])
def test_a_file_without_an_architecture_is_refused(architecture: object):
    with pytest.raises(GGUFError, match=r"general\.architecture"):
        read_config(SOUND | {"general.architecture": architecture})


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope.scaling.type", "spiral"), ("expert_gating_func", 9), ("expert_gating_func", 5)],
)
def test_what_the_engine_lacks_is_unsupported_not_damaged(key: str, value: object):
    with pytest.raises(UnsupportedError, match=key.replace(".", r"\.")):
        read_config(SOUND | {f"qwen3moe.{key}": value})


@pytest.mark.parametrize("architecture", ["mamba", "gpt2", "clip"])
def test_a_sound_file_of_another_architecture_is_unsupported_not_damaged(architecture: str):
    with pytest.raises(UnsupportedError, match=f"architecture '{architecture}' is not supported"):
        read_config({"general.architecture": architecture})


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("gpt-oss", "attention.sliding_window", -1),
        ("gpt-oss", "attention.sliding_window", "wide"),
        ("gemma3", "attention.sliding_window_pattern", 0),
        ("gemma3", "attention.sliding_window_pattern", np.array([1, 2], np.int32)),
        ("mimo2", "attention.sliding_window_pattern", np.array([1], np.int32)),
        ("mimo2", "attention.value_scale", -0.5),
        ("kimi-linear", "ssm.conv_kernel", 0),
        ("kimi-linear", "kda.head_dim", 0),
        ("bailingmoe3", "kda.gate_lower_bound", 1.0),
        ("nemotron_h", "feed_forward_length", np.array([0, -1], np.int32)),
        ("gemma3", "rope.freq_base_swa", 0.0),
        ("gemma2", "attn_logit_softcapping", float("nan")),
        ("gemma2", "final_logit_softcapping", -1.0),
        ("granite", "embedding_scale", float("inf")),
        ("granite", "residual_scale", "big"),
        ("granite", "logit_scale", -0.5),
        ("granite", "rope.scaling.finetuned", 1),
        ("mistral3", "attention.temperature_scale", -1.0),
        ("glm4moe", "nextn_predict_layers", 2),
        ("glm4moe", "nextn_predict_layers", -1),
        ("llama", "feed_forward_length", np.array([128], np.int32)),
        ("llama", "attention.head_count", np.array([8.0, 8.0], np.float32)),
        ("laguna", "attention.head_count_kv", np.array([2, 3], np.int32)),
        ("laguna", "rope.dimension_count_swa", 7),
        ("laguna", "rope.dimension_count_swa", 66),
        ("laguna", "rope.scaling.yarn_attn_factor", -1.0),
        ("gemma4", "attention.key_length_swa", 0),
        ("gemma4", "attention.shared_kv_layers", 2),
        ("gemma4", "embedding_length_per_layer_input", -1),
        ("step35", "swiglu_clamp_exp", np.array([0.0, -1.0], np.float32)),
        ("step35", "swiglu_clamp_exp", np.array([1, 1], np.int32)),
        ("step35", "swiglu_clamp_shexp", np.array([0.5], np.float32)),
    ],
)
def test_nonsense_of_a_family_names_its_key(architecture: str, key: str, value: object):
    with pytest.raises(GGUFError, match=key.replace(".", r"\.")):
        read_config(metadata(architecture, **RECURRENT) | {f"{architecture}.{key}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_group_count", 3),
        ("expert_group_count", 9),
        ("expert_group_used_count", 5),
        ("expert_used_count", 5),  # the 2 chosen groups contain 4 experts
        ("expert_shared_count", -1),
        ("expert_shared_feed_forward_length", 1.5),
        ("leading_dense_block_count", -1),
        ("interleave_moe_layer_step", 0),
        ("expert_weights_scale", float("nan")),
    ],
)
def test_nonsense_of_experts_names_its_key(key: str, value: object):
    routed = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}
    routed |= {"expert_group_count": 4, "expert_group_used_count": 2}
    header = metadata("bailingmoe2", **routed)
    read_config(header)
    with pytest.raises(GGUFError, match=key):
        read_config(header | {f"bailingmoe2.{key}": value})


def test_tensors_show_which_layers_are_dense_if_no_key_does():
    file = open_model(HERE / "hy_v3" / "model.gguf")
    config = read_model_config(file.metadata, file.tensors)
    assert [config.routed(layer) for layer in range(config.layers)] == [False, True, True]


def test_a_pattern_of_windows_may_be_stored_as_integers():
    file = open_model(HERE / "mimo2" / "model.gguf")
    assert read_config(file.metadata).windows == (0, 16, 16, 0)


def test_a_layer_of_a_single_part_mixes_or_feeds_forward():
    file = open_model(HERE / "nemotron_h_moe" / "model.gguf")
    config = read_model_config(file.metadata, file.tensors)
    layers = range(config.layers)
    assert [config.mixes(layer) for layer in layers] == [True, False, True, True, False]
    assert [config.routed(layer) for layer in layers] == [False, True, False, False, True]
    kinds = [bool(spec.state_values) - bool(spec.buffers) for spec in config.cache_specs]
    assert kinds == [1, 0, 1, -1, 0]  # the layers that only feed forward cache nothing


def test_a_gate_without_a_bound_that_the_file_denies_is_unsupported():
    header = metadata("bailingmoe3", **RECURRENT) | {"bailingmoe3.kda.safe_gate": False}
    with pytest.raises(UnsupportedError, match=r"kda\.safe_gate"):
        read_config(header)


def test_layers_with_a_window_may_have_heads_and_a_rotary_embedding_of_their_own():
    header = metadata(
        "gemma4",
        attention__sliding_window=16,
        attention__sliding_window_pattern=np.array([True, False]),
        attention__key_length_swa=32,
        attention__value_length_swa=16,
        rope__freq_base=1e6,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
    )
    config = read_config(header)
    assert [config.head_dims(layer) for layer in range(2)] == [(32, 16), (64, 64)]
    assert (config.rope.dims, config.rope.base, config.rope.scaling) == (64, 1e6, "yarn")
    window = config.window_rope
    assert (window.dims, window.base, window.scaling) == (32, 10_000.0, "none")


def test_the_number_of_query_heads_may_differ_by_layer():
    config = read_config(metadata("laguna", attention__head_count=np.array([4, 6], np.int32)))
    assert config.heads == (4, 6)


def test_half_of_a_head_is_rotated_where_no_key_says_how_much():
    header = metadata("step35", attention__sliding_window=16)
    config = read_config(header)
    assert (config.windows, config.rope.dims, config.window_rope.dims) == ((0, 16), 32, 64)
    config = read_config(header | {"step35.rope.dimension_count": 16})
    assert (config.rope.dims, config.window_rope.dims) == (16, 16)


def test_the_last_layers_borrow_the_keys_of_the_last_layer_of_their_kind():
    pattern = np.array([True, False, True, True, False])
    header = metadata("gemma4", block_count=5, attention__sliding_window=16)
    header |= {"gemma4.attention.sliding_window_pattern": pattern}
    config = read_config(header | {"gemma4.attention.shared_kv_layers": 2})
    assert [config.kv_source(layer) for layer in range(5)] == [0, 1, 2, 2, 1]
    assert [spec.borrowed for spec in config.cache_specs] == [False, False, False, True, True]
    with pytest.raises(GGUFError, match=r"shared_kv_layers leaves no layer"):
        read_config(header | {"gemma4.attention.shared_kv_layers": 4})


def test_the_epsilon_of_a_norm_may_have_either_name():
    header = metadata("cohere2moe")
    assert not read_config(header).centred_norms
    eps = header.pop("cohere2moe.attention.layer_norm_rms_epsilon")
    config = read_config(header | {"cohere2moe.attention.layer_norm_epsilon": eps})
    assert config.centred_norms and config.norm_eps == eps
