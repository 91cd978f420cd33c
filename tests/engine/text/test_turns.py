"""Turns of a conversation on one cache: stopped, undone, given anew, and stripped of thinking.

Each gives the tokens that a fresh cache gives for the same history, also where layers see a window
or keep a recurrent state and cannot go back.
"""

from __future__ import annotations

import random

import pytest

import engine
from support.models import HERE

# Keys and values, a window, latent rows, three kinds of recurrent layers; unquantised, as rounding
# to blocks depends on how many tokens are read at once.
MODELS = ("qwen3moe", "gemma3", "deepseek2-v3", "granitehybrid", "qwen3next", "lfm2")
TURNS = 9  # 54 moments at which an answer is stopped


def greedy(count: int) -> engine.Settings:
    return engine.Settings(temperature=0, max_tokens=count, ignore_end=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_turn_gives_what_a_fresh_cache_gives(name: str):
    model = engine.load(HERE / name / "model.gguf")
    chance = random.Random(name)
    vocab = model.config.vocab
    cache = model.new_cache(context=1024, kv_type="f32")
    history: list[list[int]] = []  # prompt and answer in turns
    for turn in range(TURNS):
        change = chance.choice(["go on", "go on", "undo", "anew", "strip"])
        if change == "undo":
            del history[-2:]
        elif change == "anew":
            del history[-1:]
        elif change == "strip" and history:
            del history[-1][: len(history[-1]) // 2]
        if len(history) % 2 == 0:
            history.append([chance.randrange(3, vocab) for _ in range(chance.choice([3, 20, 40]))])
        prompt = [id for part in history for id in part]
        stream = model.generate(prompt, greedy(8), cache)
        stop_after = chance.randrange(1, 9)
        said = []
        for token in stream:
            said.append(token)
            if len(said) == stop_after:
                stream.stop()
        fresh = model.generate(prompt, greedy(8), model.new_cache(context=1024, kv_type="f32"))
        assert said == list(fresh)[:stop_after], (turn, change)
        assert cache.tokens[: len(prompt)] == prompt
        history.append(said)


@pytest.mark.parametrize("name", MODELS)
def test_going_on_reads_only_what_is_new(name: str):
    model = engine.load(HERE / name / "model.gguf")
    cache = model.new_cache(context=1024)
    tokens = list(range(3, 43))
    for _ in range(3):
        before = cache.length
        stream = model.generate(tokens, greedy(6), cache)
        tokens += [*stream, 5, 6, 7]
        assert stream.stats.cached_tokens >= min(before, stream.stats.prompt_tokens - 1) - 1
