"""A prompt's logits are the same to the last bit, whatever the cache already holds of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import engine
from engine.limits import MAX_CHUNK
from engine.nn.cache.cache import DECODED, READ, WHOLE, Cache
from engine.nn.cache.state import dump, load
from support.models import HERE

# Dense, mixtures with few and many bits, sinks and windows, latent attention, recurrent layers.
NAMES = (
    "llama-Q4_1",
    "qwen3moe-Q4_K_M",
    "gpt-oss-mxfp4",
    "deepseek2-lite-Q5_0",
    "granitehybrid",
)
RECURRENT_ON_STOCK = ("granitehybrid",)  # chunks of the scan start where the step does
BLOCK = 512
GREEDY = engine.Settings(temperature=0, max_tokens=4, ignore_end=True)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, kernels: str) -> engine.Model:
    if kernels == "stock" and request.param in RECURRENT_ON_STOCK:
        pytest.skip("stock kernels compute a recurrence in chunks, which depend on what is cached")
    return engine.load(HERE / request.param / "model.gguf", kernels, threads=1)


def new_cache(model: engine.Model, kv_type: str) -> Cache:
    return model.new_cache(context=2048, kv_type=kv_type)


def logits(model: engine.Model, prompt: list[int], cache: Cache) -> np.ndarray:
    cache.reuse(prompt)
    return np.array(model.prefill(prompt[cache.length :], cache, None))


def random_tokens(model: engine.Model, seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, model.config.vocab, count).tolist()


def earlier(model: engine.Model, prompt: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Prompts that leave a part of `prompt` in the cache."""
    n, other = len(prompt), random_tokens(model, 9, 640)
    yield "the same", prompt
    yield "longer", [*prompt, *other[: 40 if n < BLOCK else BLOCK]]
    for shared, more in ((n // 3, 40), (n - 3, 1)):
        yield f"{shared} tokens in common, then {more}", [*prompt[:shared], *other[:more]]


@pytest.mark.parametrize("length", [33, BLOCK + 1])
def test_what_is_cached_does_not_change_a_prompts_logits(model: engine.Model, length: int):
    if length > BLOCK and not model.kernels.in_place:
        pytest.skip("stock kernels have no blocks, and take minutes for a prompt this long")
    kv_type = ("f16", "q8", "f32")[length % 3]
    prompt = random_tokens(model, length, length)
    cold = logits(model, prompt, new_cache(model, kv_type))
    for what, before in earlier(model, prompt):
        cache = new_cache(model, kv_type)
        logits(model, before, cache)
        assert np.array_equal(logits(model, prompt, cache), cold), what
    stored = new_cache(model, kv_type)
    load(model, dump(model, cache), stored)
    assert np.array_equal(logits(model, prompt, stored), cold)


def test_a_question_asked_again_in_a_conversation_has_the_same_answer(model: engine.Model):
    """Also after it was asked otherwise."""
    cache = new_cache(model, "f16")
    first = random_tokens(model, 1, 30)
    talk = first + list(model.generate(first, GREEDY, cache))
    question = [*talk, *random_tokens(model, 2, 25)]
    answer = logits(model, question, cache)
    list(model.generate(question, GREEDY, cache))
    assert np.array_equal(logits(model, question, cache), answer)  # asked again
    if not any(spec.state_values for spec in model.config.cache_specs):  # it cannot go back there
        list(model.generate([*talk, *random_tokens(model, 3, 40)], GREEDY, cache))
        assert np.array_equal(logits(model, question, cache), answer)


def test_one_token_of_a_prompt_is_read_as_many_are(model: engine.Model):
    prompt = random_tokens(model, 4, 40)
    together = new_cache(model, "f32")
    want = np.array(model.prefill(prompt, together, None))
    apart = new_cache(model, "f32")
    for token in prompt:
        got = np.array(model.prefill([token], apart, None))
    assert np.array_equal(got, want)


def cache_of(kinds: bytes) -> Cache:
    cache = Cache(None, 4096, lambda length: length, block=4)
    for at, kind in enumerate(kinds):
        cache.extend([at], kind)
    return cache


@pytest.mark.parametrize(
    ("kinds", "total", "kept"),
    [
        (bytes([READ] * 3), 3, 2),  # the last token is computed again
        (bytes([READ] * 3), 9, 0),  # the longer prompt fills the block
        (bytes([WHOLE] * 4 + [READ] * 3), 7, 6),
        (bytes([WHOLE] * 4 + [READ] * 3), 9, 4),
        (bytes([WHOLE] * 4), 4, 0),
        (bytes([WHOLE] * 4), 3, 0),  # the shorter prompt does not
        (bytes([READ, READ, DECODED, READ, READ]), 20, 4),
        (bytes([READ, READ, DECODED, DECODED]), 6, 4),
        (bytes([DECODED] * 7), 9, 7),
    ],
)
def test_a_block_is_kept_if_the_prompt_would_compute_it_so(kinds: bytes, total: int, kept: int):
    cache = cache_of(kinds)
    cache.reuse(list(range(total)))
    assert cache.length == len(cache.kinds) == kept


def test_a_layer_that_rewinds_into_a_block_rewinds_to_its_start():
    cache = cache_of(bytes([WHOLE] * 4 + [READ] * 3))
    cache._rewindable_length = lambda length: min(length, 3)  # a snapshot
    cache.reuse(list(range(7)))
    assert cache.length == 0


def test_the_kernels_and_the_limits_agree_on_the_size_of_a_block():
    from engine.kernels.native import _extension, unavailable_reason

    if unavailable_reason():
        pytest.skip("the native kernels, whose block size this test reads, are not built")
    assert _extension().block_tokens() == MAX_CHUNK == BLOCK
