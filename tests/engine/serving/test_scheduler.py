"""Answers that take turns are what they are alone, and can be cancelled at any step."""

import threading

import pytest

from engine.errors import EngineError
from engine.model import load
from engine.sampling import Settings
from engine.serving.prefixes import Prefixes
from engine.serving.scheduler import Decoded, Finished, Job, Reading, Scheduler
from support.models import HERE

# Full attention, sliding windows, two kinds of recurrence.
MODELS = ("qwen3moe", "gpt-oss-mxfp4", "qwen35moe", "granitehybrid")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return load(HERE / request.param / "model.gguf")


class Asked:
    """A job and what it emitted."""

    def __init__(self, scheduler, prefixes, tokens, seed=None, **settings):
        self.events, self.done = [], threading.Event()
        given = {"max_tokens": 12, "temperature": 0.0, **settings}
        self.job = Job(prefixes, tokens, Settings(seed=seed, **given), self.emit)
        self.position = scheduler.submit(self.job)

    def emit(self, event):
        self.events.append(event)
        if isinstance(event, Finished):
            self.done.set()

    def result(self):
        assert self.done.wait(60)
        return [e.token for e in self.events if isinstance(e, Decoded) and e.token is not None]

    @property
    def end(self):
        return self.events[-1]


def prompt(seed, length):
    return [(seed * 7 + i * i) % 250 for i in range(length)]


def alone(model, tokens, **settings):
    given = {"max_tokens": 12, "temperature": 0.0, **settings}
    return list(model.generate(tokens, Settings(**given), model.new_cache(2048)))


def prefixes_of(model, lanes=1, budget_bytes=64 << 20):
    return Prefixes(model, 2048, "f16", lanes, budget_bytes)


@pytest.fixture
def scheduler():
    made = []

    def make(parallel=1):
        made.append(Scheduler(parallel))
        return made[-1]

    yield make
    for each in made:
        each.close(5)


def test_interleaved_answers_are_those_alone(model, scheduler):
    run = scheduler(3)
    prefixes = prefixes_of(model, 3)
    prompts = [prompt(seed, length) for seed, length in enumerate((40, 700, 3, 1200, 90))]
    asked = [Asked(run, prefixes, tokens) for tokens in prompts]
    assert [each.result() for each in asked] == [alone(model, tokens) for tokens in prompts]
    assert all(each.end.finish in ("stop", "length") for each in asked)


def test_sampled_answers_depend_on_their_seed_only(model, scheduler):
    run, prefixes = scheduler(2), prefixes_of(model, 2)
    settings = {"temperature": 1.0, "top_k": 20, "seed": 5}
    asked = [Asked(run, prefixes, prompt(seed, 30), **settings) for seed in range(4)]
    expected = [alone(model, prompt(seed, 30), **settings) for seed in range(4)]
    assert [each.result() for each in asked] == expected


def test_positions_in_the_queue(scheduler):
    model = load(HERE / "qwen3moe" / "model.gguf")
    run, prefixes = scheduler(1), prefixes_of(model)
    held = threading.Event()
    run.call(held.wait)  # keeps the thread busy
    asked = [Asked(run, prefixes, prompt(seed, 9)) for seed in range(3)]
    assert [each.position for each in asked] == [0, 1, 2]
    run.cancel(asked[1].job)
    assert asked[1].end.finish == "interrupted"
    held.set()
    assert asked[0].result() and asked[2].result()
    assert asked[1].result() == []


def test_a_cancelled_answer_ends_at_once(model, scheduler):
    run, prefixes = scheduler(1), prefixes_of(model)
    first = Asked(run, prefixes, prompt(1, 1500), max_tokens=400, ignore_end=True)
    while not any(isinstance(event, Reading) for event in first.events):
        pass
    run.cancel(first.job)
    second = Asked(run, prefixes, prompt(2, 20))
    first.result()
    assert first.end.finish == "interrupted"
    assert second.result() == alone(model, prompt(2, 20))


def test_a_failed_answer_does_not_stop_the_next(scheduler):
    model = load(HERE / "qwen3moe" / "model.gguf")
    run, prefixes = scheduler(1), prefixes_of(model)

    def fail(tokens):
        raise EngineError("no guide")

    bad = Asked(run, prefixes, prompt(1, 20))
    bad.result()
    job = Job(prefixes, prompt(1, 20), Settings(), bad.emit, guide=fail)
    bad.done.clear()
    run.submit(job)
    assert bad.done.wait(30) and str(bad.end.error) == "no guide"
    assert Asked(run, prefixes, prompt(3, 20)).result() == alone(model, prompt(3, 20))


def test_closing_ends_all_answers(scheduler):
    model = load(HERE / "qwen3moe" / "model.gguf")
    run, prefixes = scheduler(1), prefixes_of(model)
    asked = [
        Asked(run, prefixes, prompt(n, 20), max_tokens=1000, ignore_end=True) for n in range(3)
    ]
    run.close(5)
    for each in asked:
        each.result()
        assert each.end.finish == "interrupted"
    assert not run.alive
    with pytest.raises(RuntimeError):
        Asked(run, prefixes, prompt(0, 5))
