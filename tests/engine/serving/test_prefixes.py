"""A conversation's next prompt is read only from where it is new, on every kind of layer."""

import threading
from dataclasses import replace

import pytest

from engine.model import load
from engine.sampling import Settings
from engine.serving.prefixes import MAX_POINTS, Prefixes
from engine.serving.scheduler import Decoded, Finished, Job, Scheduler
from support.models import HERE

MODELS = ("qwen3moe", "gpt-oss-mxfp4", "gemma3", "qwen35moe", "granitehybrid", "lfm2moe")
LONG = ("granitehybrid", "qwen3next", "qwen35", "gpt-oss-mxfp4", "gemma3")
GREEDY = Settings(max_tokens=8, temperature=0.0, ignore_end=True)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return load(HERE / request.param / "model.gguf")


def text(seed, length):
    return [(seed * 31 + i * i * (seed + 1)) % 250 for i in range(length)]


def answer(prefixes, tokens, settings=GREEDY):
    """Answer a prompt. Returns (tokens read, the answer)."""
    start = prefixes.take(tokens)
    read = len(start.tokens) - start.lane.cache.length
    if start.save_at:
        cache = start.lane.cache
        prefixes.model.prefill(start.tokens[cache.length : start.save_at], cache, None)
        prefixes.mark(start.lane, start.save_at)
    found = []
    for token in prefixes.model.generate(start.tokens, settings, start.lane.cache):
        if not found:
            prefixes.mark_prompt(start.lane, len(start.tokens))
        found.append(token)
    prefixes.give(start.lane)
    return read, found


def fresh(model, tokens):
    return list(model.generate(tokens, GREEDY, model.new_cache(2048)))


def test_a_conversation_that_keeps_all_is_read_once(model):
    prefixes, tokens = Prefixes(model, 2048, "f16", 1, 64 << 20), text(1, 200)
    for turn in range(5):
        read, found = answer(prefixes, tokens)
        new = 200 if turn == 0 else 60
        assert read <= new + 64
        tokens = [*tokens, *found, *text(turn + 7, 60)]


def test_a_conversation_that_drops_its_thinking_is_read_from_the_last_message(model):
    prefixes, tokens = Prefixes(model, 2048, "f16", 1, 64 << 20), text(1, 200)
    for turn in range(5):
        read, found = answer(prefixes, tokens)
        assert read <= (200 if turn == 0 else 64) + 64
        assert found == fresh(model, tokens)
        tokens = [*tokens, *text(turn + 40, 4), *text(turn + 7, 60)]  # another answer than found


def test_a_conversation_returns_to_an_earlier_message(model):
    prefixes, tokens = Prefixes(model, 2048, "f16", 1, 64 << 20), text(1, 200)
    lengths = []
    for turn in range(5):
        answer(prefixes, tokens)
        lengths.append(len(tokens))
        tokens = [*tokens, *text(turn + 40, 70)]
    back = [*tokens[: lengths[1]], *text(99, 50)]
    read, found = answer(prefixes, back)
    assert read <= 50 + 64
    assert found == fresh(model, back)


def test_two_conversations_in_one_lane(model):
    prefixes = Prefixes(model, 2048, "f16", 1, 64 << 20)
    one, two = text(1, 150), text(2, 170)
    for turn in range(3):
        for at, tokens in enumerate((one, two)):
            read, found = answer(prefixes, tokens)
            assert read <= 50 + 64 or turn == 0
            assert found == fresh(model, tokens)
            tokens += text(turn + 5 + at, 50)
    assert 0 < prefixes.stored_bytes <= 64 << 20


def test_the_same_conversation_is_stored_once(model):
    prefixes = Prefixes(model, 2048, "f16", 1, 64 << 20)
    sizes = []
    for turn in range(12):
        answer(prefixes, text(turn % 3, 150), replace(GREEDY, max_tokens=80))
        sizes.append(prefixes.stored_bytes)
    assert sizes[-1] == sizes[-4] > 0


def test_a_shared_beginning_is_read_once(model):
    prefixes, system = Prefixes(model, 2048, "f16", 2, 64 << 20), text(1, 300)
    reads = []
    for n in range(4):
        prompt = [*system, *text(n + 50, 40)]
        read, found = answer(prefixes, prompt)
        assert found == fresh(model, prompt)
        reads.append(read)
    assert max(reads[2:]) <= 40 + 64


def test_no_budget_stores_nothing(model):
    prefixes = Prefixes(model, 2048, "f16", 1, 0)
    for tokens in (text(1, 150), text(2, 150), text(1, 150)):
        _, found = answer(prefixes, tokens)
        assert found == fresh(model, tokens)
        assert prefixes.stored_bytes == 0


def test_points_are_thinned():
    model = load(HERE / "granitehybrid" / "model.gguf")
    prefixes, tokens = Prefixes(model, 2048, "f16", 1, 256 << 20), text(1, 100)
    for turn in range(12):
        answer(prefixes, tokens)
        tokens = [*tokens, *text(turn, 30)]  # stays below a block of the kernels
    lane = prefixes.take(tokens).lane
    assert 2 < len(lane.points) <= MAX_POINTS


def scheduled(scheduler, prefixes, tokens):
    """Answer a prompt as the server does. Returns (tokens read, the answer)."""
    ended, events = threading.Event(), []

    def emit(event):
        events.append(event)
        if isinstance(event, Finished):
            ended.set()

    scheduler.submit(Job(prefixes, tokens, GREEDY, emit))
    assert ended.wait(120) and events[-1].error is None
    found = [e.token for e in events if isinstance(e, Decoded) and e.token is not None]
    return events[-1].prompt_tokens - events[-1].cached_tokens, found


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "drops"])
@pytest.mark.parametrize("name", LONG)
def test_ten_turns_of_an_agent_read_only_what_is_new(name, keeps):
    """keeps: whether the next prompt contains the answer with its thinking."""
    model, scheduler = load(HERE / name / "model.gguf"), Scheduler()
    prefixes, tokens = Prefixes(model, 8192, "f16", 1, 256 << 20), text(1, 6000)
    if not model.kernels.in_place:
        pytest.skip("stock kernels take minutes for a prompt this long")
    block = model.new_cache(1).block  # with AMX, a mixture computes whole blocks in another way
    known = 0
    for turn in range(11):
        read, found = scheduled(scheduler, prefixes, tokens)
        filled = block and known - known % block + block <= len(tokens)
        again = known % block if filled and not keeps else 0
        assert read <= len(tokens) - known + 64 + again
        if not keeps and turn % 4 == 2:
            assert found == scheduled(scheduler, Prefixes(model, 8192, "f16", 1, 0), tokens)[1]
        known = len(tokens) + (len(found) if keeps else 0)
        said = found if keeps else text(turn + 40, 5)
        tokens = [*tokens, *said, *text(turn + 7, 40 + turn * 67 % 301)]
    scheduler.close(5)
