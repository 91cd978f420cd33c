"""A cache that is dumped and loaded continues exactly like the original cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.errors import CacheStateError, ContextOverflow
from engine.nn.cache.state import CacheState, cache_format, dump, load

HERE = Path(__file__).parents[3] / "fixtures"
# full attention (fused with native kernels), windows, borrowed keys, latent attention, recurrent
NAMES = (
    "llama",
    "qwen3moe",
    "gemma3",
    "gemma4-e4b",
    "gpt-oss-yarn-exact",
    "deepseek2-lite",
    "qwen3next",
    "granitehybrid",
    "lfm2",
    "deepseek4",
    "qwen4exp",
)
PROMPT = [5, 9, 3, 7] * 10
GREEDY = engine.Settings(temperature=0, max_tokens=8, ignore_end=True)


def answered(model: engine.Model, kv_type: str) -> tuple[engine.Cache, list[int], CacheState]:
    """Return a cache after an answer, the next prompt, and a copy of the dumped state."""
    cache = model.new_cache(256, kv_type)
    sequence = PROMPT + list(model.generate(PROMPT, GREEDY, cache)) + [4, 4]
    kept = dump(model, cache)
    return cache, sequence, replace(kept, arrays=[np.array(array) for array in kept.arrays])


@pytest.mark.parametrize("kv_type", ["f16", "q8", "f32"])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_goes_on_from_what_was_kept(name: str, kv_type: str, kernels: str):
    model = engine.load(HERE / name / "model.gguf", kernels)
    cache, sequence, kept = answered(model, kv_type)
    other = model.new_cache(256, kv_type)
    load(model, kept, other)
    streams = [model.generate(sequence, GREEDY, used) for used in (cache, other)]
    answers = [list(stream) for stream in streams]
    assert answers[0] == answers[1]
    assert streams[1].stats.cached_tokens == streams[0].stats.cached_tokens >= len(PROMPT)


@pytest.mark.parametrize("name", ["qwen3moe", "gemma3", "qwen3next"])
def test_what_is_not_of_this_model_is_refused_and_nothing_is_filled(name: str, kernels: str):
    model = engine.load(HERE / name / "model.gguf", kernels)
    _, _, kept = answered(model, "f16")
    first = kept.arrays[0]
    wrong = [
        replace(kept, arrays=kept.arrays[1:]),
        replace(kept, arrays=[]),
        replace(kept, arrays=[first.astype(np.float32), *kept.arrays[1:]])
        if first.dtype == np.float16
        else replace(kept, arrays=[first.astype(np.float16), *kept.arrays[1:]]),
        replace(kept, arrays=[first[..., :-1], *kept.arrays[1:]]),
        replace(kept, tokens=kept.tokens[1:]),
        replace(kept, tokens=[model.config.vocab, *kept.tokens[1:]]),
        replace(kept, tokens=[-1, *kept.tokens[1:]]),
    ]
    if kept.positions:
        wrong += [
            replace(kept, positions=kept.positions[1:]),
            replace(kept, positions=[[1 << 40], *kept.positions[1:]]),
            replace(kept, positions=[[], *kept.positions[1:]]),
            replace(kept, positions=[[*kept.positions[0], 1 << 40], *kept.positions[1:]]),
        ]
    for each in wrong:
        cache = model.new_cache(256, "f16")
        with pytest.raises(CacheStateError):
            load(model, each, cache)
        assert cache.length == 0


def test_more_than_the_context_is_an_error_with_both_counts(kernels: str):
    model = engine.load(HERE / "llama" / "model.gguf", kernels)
    _, _, kept = answered(model, "f16")
    with pytest.raises(ContextOverflow) as caught:
        load(model, kept, model.new_cache(32, "f16"))
    assert (caught.value.used, caught.value.limit) == (len(kept.tokens), 32)


@pytest.mark.parametrize("name", ["qwen3next", "granitehybrid", "lfm2"])
def test_a_short_conversation_after_a_long_one_is_kept_too(name: str, kernels: str):
    """The long conversation leaves a mark past the end of the short one."""
    model = engine.load(HERE / name / "model.gguf", kernels)
    cache, other = model.new_cache(256, "f32"), model.new_cache(256, "f32")
    list(model.generate(PROMPT, GREEDY, cache))
    sequence = [3, 9, 4]
    sequence += list(model.generate(sequence, GREEDY, cache))
    load(model, dump(model, cache), other)
    answers = [list(model.generate([*sequence, 7], GREEDY, used)) for used in (cache, other)]
    assert answers[0] == answers[1]


def test_states_of_the_same_tokens_are_refused():
    model = engine.load(HERE / "qwen3next" / "model.gguf", "native")
    _, _, kept = answered(model, "f16")
    end = len(kept.tokens) + 1  # fused positions are 1 higher
    twice = [end if at else 0 for at in kept.positions[-1]]
    assert twice.count(end) > 2
    with pytest.raises(CacheStateError):
        load(model, replace(kept, positions=[*kept.positions[:-1], twice]), model.new_cache(256))


def test_forms_differ_where_caches_do(kernels: str, monkeypatch: pytest.MonkeyPatch):
    llama = engine.load(HERE / "llama" / "model.gguf", kernels)
    monkeypatch.setattr("engine.kernels.native.fused.fuses", lambda config, tensors: False)
    plain = engine.load(HERE / "llama" / "model.gguf", kernels)
    assert cache_format(llama, "f16") != cache_format(llama, "q8")
    assert cache_format(plain, "f16") == "plain f16"
