"""One stream of tokens: where it stops, what it leaves in the cache, what it refuses."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.errors import ContextOverflow, DoesNotFit, NumericError
from engine.generate import StopFilter
from engine.sampling import Sampler
from support.models import HERE

PROMPT = list(range(3, 23))


@pytest.fixture(scope="module")
def model(kernels: str) -> engine.Model:
    return engine.load(HERE / "qwen3moe" / "model.gguf", kernels=kernels)


def greedy(**settings: object) -> engine.Settings:
    return engine.Settings(**{"temperature": 0, "max_tokens": 12} | settings)


def plain_greedy(model: engine.Model, tokens: list[int], count: int) -> list[int]:
    """The greedy continuation by running the whole sequence anew for every token."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(model.logits(tokens)[-1].argmax().item()))
    return tokens[-count:]


def test_generate_equals_running_everything_anew(model: engine.Model):
    stream = model.generate(PROMPT, greedy())
    assert list(stream) == plain_greedy(model, PROMPT, 12)
    assert (stream.finish, stream.cut_by) == ("length", "max_tokens")
    assert stream.stats.prompt_tokens == len(PROMPT)
    assert stream.stats.decoded_tokens == 12
    assert stream.stats.decode_per_s > 0


def test_text_is_the_decoded_tokens(model: engine.Model):
    tokens = list(model.generate(PROMPT, greedy()))
    pieces = list(model.generate(PROMPT, greedy()).text())
    assert "".join(pieces) == model.tokenizer.decode(tokens)


def test_a_cached_prefix_is_not_run_again(model: engine.Model):
    cache = model.new_cache(context=64, kv_type="f32")
    first = model.generate(PROMPT, greedy(), cache)
    answer = list(first)
    assert cache.tokens == PROMPT + answer[:-1]  # the last token was never fed
    longer = PROMPT + answer[:4] + [7, 8]
    second = model.generate(longer, greedy(), cache)
    assert list(second) == plain_greedy(model, longer, 12)
    assert second.stats.cached_tokens == len(PROMPT) + 4


def test_the_same_prompt_again_runs_one_token(model: engine.Model):
    cache = model.new_cache(context=64, kv_type="f32")
    first = list(model.generate(PROMPT, greedy(), cache))
    again = model.generate(PROMPT, greedy(), cache)
    assert list(again) == first
    assert again.stats.cached_tokens == len(PROMPT) - 1


def test_an_abandoned_stream_leaves_a_sound_cache(model: engine.Model):
    cache = model.new_cache(context=64, kv_type="f32")
    stream = iter(model.generate(PROMPT, greedy(), cache))
    taken = [next(stream) for _ in range(5)]
    del stream
    assert cache.tokens == PROMPT + taken
    rest = model.generate(PROMPT + taken, greedy(max_tokens=7), cache)
    assert taken + list(rest) == plain_greedy(model, PROMPT, 12)


def test_an_end_of_generation_token_stops_and_is_not_given(model: engine.Model, monkeypatch):
    answer = plain_greedy(model, PROMPT, 12)
    last = next(i for i, token in enumerate(answer) if token not in answer[:i] and i >= 3)
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset({answer[last]}))
    stream = model.generate(PROMPT, greedy())
    assert list(stream) == answer[:last]
    assert (stream.finish, stream.cut_by) == ("stop", None)
    assert stream.stats.decoded_tokens == last


def test_the_end_of_an_answer_is_not_timed_as_a_token(model: engine.Model, monkeypatch):
    answer = plain_greedy(model, PROMPT, 12)
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset({answer[-1]} - set(answer[:-1])))
    ticks = iter(range(1000))
    monkeypatch.setattr("engine.generate.time.perf_counter", lambda: float(next(ticks)))
    stream = model.generate(PROMPT, greedy())
    said = len(list(stream))
    assert stream.stats.decode_s == said - 1 and stream.stats.decode_per_s == 1.0


def test_a_prompt_that_does_not_fit_leaves_the_cache_as_it_is(model: engine.Model):
    cache = model.new_cache(context=64, kv_type="f32")
    list(model.generate(PROMPT, greedy(), cache))
    held = list(cache.tokens)
    with pytest.raises(ContextOverflow):
        list(model.generate([*PROMPT] * 9, greedy(), cache))
    assert cache.tokens == held


def test_a_stop_string_ends_the_answer_and_is_left_out(model: engine.Model):
    whole = "".join(model.generate(PROMPT, greedy()).text())
    stop = whole[4:7]
    stream = model.generate(PROMPT, greedy(stop=(stop,)))
    assert "".join(stream.text()) == whole[: whole.index(stop)]
    assert (stream.finish, stream.cut_by) == ("stop", None)


@pytest.mark.parametrize(("length", "left"), [(31, 1), (32, 0), (20, 12)])
def test_decoding_stops_exactly_at_the_context(model: engine.Model, length: int, left: int):
    stream = model.generate([5] * length, greedy(max_tokens=None), model.new_cache(context=32))
    assert len(list(stream)) == left
    assert (stream.finish, stream.cut_by) == ("length", "context")


@pytest.mark.parametrize("length", [33, 320])
def test_a_prompt_over_the_context_is_an_error_with_both_counts(model: engine.Model, length: int):
    with pytest.raises(ContextOverflow) as caught:
        list(model.generate([5] * length, greedy(), model.new_cache(context=32)))
    assert (caught.value.used, caught.value.limit) == (length, 32)


def test_a_step_over_the_context_computes_nothing(model: engine.Model):
    cache = model.new_cache(context=4)
    model.step([5, 6, 7], cache)
    with pytest.raises(ContextOverflow, match="5 tokens do not fit in a context of 4 tokens"):
        model.step([8, 9], cache)
    assert cache.tokens == [5, 6, 7]


@pytest.mark.parametrize("tokens", [[], [-1], [320], [5, 1 << 40]])
def test_tokens_outside_the_vocabulary_are_refused(model: engine.Model, tokens: list[int]):
    with pytest.raises(ValueError):
        model.generate(tokens, greedy())
    with pytest.raises(ValueError):
        model.logits(tokens)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [slice(None), slice(7, 8)])  # every logit, or one
@pytest.mark.parametrize("fails_at", [0, 3])  # in prefill, in decoding
@pytest.mark.parametrize(
    "drawn",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "min_p": 0.1},
    ],
    ids=str,
)
def test_logits_that_are_not_finite_stop_with_an_error(
    model: engine.Model, monkeypatch, bad: float, where: slice, fails_at: int, drawn: dict
):
    calls = []
    forward = engine.Model.forward

    def poisoned(self: engine.Model, tokens: mx.array, cache: engine.Cache) -> mx.array:
        calls.append(tokens)
        logits = mx.array(forward(self, tokens, cache))
        if len(calls) > fails_at:
            logits[where] = bad
        return logits

    monkeypatch.setattr(engine.Model, "forward", poisoned)
    given = []
    with pytest.raises(NumericError, match="not finite"):
        for token in model.generate(PROMPT, greedy(**drawn, ignore_end=True)):
            given.append(token)
    assert len(given) == fails_at


def test_memory_that_is_refused_is_an_error_of_ours(model: engine.Model, monkeypatch):
    def refused(self: engine.Model, tokens: mx.array, cache: engine.Cache) -> mx.array:
        raise RuntimeError("[metal::malloc] Unable to allocate 9 bytes.")  # MLX's own words

    monkeypatch.setattr(engine.Model, "forward", refused)
    with pytest.raises(DoesNotFit, match="out of memory"):
        list(model.generate(PROMPT, greedy()))


def test_prefill_reports_its_progress_in_chunks(model: engine.Model, monkeypatch):
    monkeypatch.setattr("engine.model.prefill_chunk", lambda *_: 8)
    seen: list[tuple[int, int]] = []
    list(
        model.generate(
            PROMPT, greedy(max_tokens=1), on_prefill=lambda done, all_: seen.append((done, all_))
        )
    )
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_the_same_seed_gives_the_same_text(model: engine.Model):
    settings = engine.Settings(temperature=1.5, seed=11, max_tokens=20)
    assert list(model.generate(PROMPT, settings)) == list(model.generate(PROMPT, settings))


def test_a_missing_file_is_the_operating_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["ab", "cd"], (), "abcd", False),
        (["ab", "cd"], ("bc",), "a", True),
        (["ab", "ab", "c"], ("abc",), "ab", True),
        (["aaa"], ("aab",), "aaa", False),
        (["x", "END"], ("END", "x"), "", True),
        (["a", "EN", "Dx"], ("END",), "a", True),
        (["a", "EN", "x"], ("END",), "aENx", False),
    ],
)
def test_stop_filter_holds_back_what_may_be_a_stop(
    pieces: list[str], stops: tuple[str, ...], text: str, found: bool
):
    stop_filter = StopFilter(stops)
    given = "".join(stop_filter.push(piece) for piece in pieces) + stop_filter.finish()
    assert (given, stop_filter.found) == (text, found)


def test_greedy_decoding_matches_llama_cpps_where_it_is_not_close(model: engine.Model):
    expected = dict(np.load(HERE / "qwen3moe" / "expected.npz"))
    stream = model.generate(expected["tokens"].tolist(), greedy(max_tokens=16))
    assert list(stream) == expected["decode_tokens"].tolist()


def test_an_answer_that_is_stopped_leaves_a_cache_that_the_next_one_uses(model: engine.Model):
    cache = model.new_cache(context=64, kv_type="f32")
    stream = model.generate(PROMPT, greedy(), cache)
    said = []
    for token in stream:
        said.append(token)
        if len(said) == 5:
            stream.stop()
    assert (stream.finish, stream.cut_by, len(said)) == ("interrupted", None, 5)
    longer = [*PROMPT, *said, 7, 8]
    following = model.generate(longer, greedy(), cache)
    assert list(following) == plain_greedy(model, longer, 12)
    assert following.stats.cached_tokens == len(PROMPT) + 5


def test_an_answer_that_is_stopped_before_it_starts_computes_nothing(model: engine.Model):
    cache = model.new_cache(context=64)
    stream = model.generate(PROMPT, greedy(), cache)
    stream.stop()
    assert (list(stream), stream.finish, cache.length) == ([], "interrupted", 0)


def test_an_answer_may_be_stopped_while_its_prompt_is_read(model: engine.Model):
    cache = model.new_cache(context=2048)
    stream = model.generate(PROMPT * 60, greedy(), cache, lambda done, total: stream.stop())
    assert (list(stream), stream.finish) == ([], "interrupted")
    assert 0 < cache.length < 1200


def test_the_ends_of_earlier_turns_are_not_penalised(model: engine.Model, monkeypatch):
    seen: list[list[int]] = []

    def sampler(settings, prompt, sample):
        seen.append(prompt)
        return Sampler(settings, prompt, sample)

    monkeypatch.setattr("engine.generate.Sampler", sampler)
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset({PROMPT[3], PROMPT[7]}))
    list(model.generate(PROMPT, greedy(repetition_penalty=1.1)))
    assert seen == [[token for token in PROMPT if token not in (PROMPT[3], PROMPT[7])]]
