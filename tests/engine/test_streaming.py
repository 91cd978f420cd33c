"""Experts that stay in the file: the same logits as in memory, to the last bit, or an error."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import engine
from engine.architectures.registry import ARCHITECTURES
from engine.device import backend
from engine.errors import EngineError, FileShrank, ReadFailed
from engine.gguf.reader import open_model
from engine.kernels.select import selected
from engine.limits import STREAM_CHUNK
from engine.nn.cache.cache import DECODED
from engine.nn.config import read_model_config
from engine.nn.decoder import Blocks
from engine.streaming import ExpertsDoNotFit, expert_layers, least_bytes, most_bytes, plan_store
from support.models import HERE, Stored, stored_models

SMALL = HERE / "qwen3moe-Q4_K_M" / "model.gguf"
GREEDY = engine.Settings(temperature=0, max_tokens=12, ignore_end=True)
PARTS_OF = ("least", "half", "most")


def budget(path: Path, part: str, kernels: str = "native") -> int:
    """Return the memory for one token's experts, for half of all, or for all; 0 without experts."""
    file = open_model(path)
    config = read_model_config(file.metadata, file.tensors)
    least, most = (of(config, file.tensors, kernels) for of in (least_bytes, most_bytes))
    return {"least": least, "half": (least + most) // 2, "most": most}[part]


MIXTURES = [one for one in stored_models(set(ARCHITECTURES)) if budget(one.model, "least")]


def tokens_for(model: engine.Model, count: int) -> list[int]:
    return np.random.default_rng(count).integers(3, model.config.vocab, count).tolist()


def results(model: engine.Model, prompt: int) -> list[np.ndarray]:
    """Logits without a cache, of a prompt, and of decoded tokens."""
    tokens = tokens_for(model, prompt)
    cache = model.new_cache(prompt + 16)
    found = [model.logits(tokens[:24]), model.prefill(tokens, cache, None)]
    for token in tokens[:10]:
        found.append(model.forward(mx.array([token]), cache))
        cache.extend([token], DECODED)
    logits = [np.array(one) for one in found]
    model.check_file()
    return logits


@pytest.mark.parametrize("stored", MIXTURES, ids=lambda stored: stored.name)
def test_logits_are_those_of_a_resident_run(stored: Stored, kernels: str):
    prompt = 40 if kernels == "stock" else 560
    right = results(engine.load(stored.model, kernels), prompt)
    for part in PARTS_OF:
        model = engine.load(stored.model, kernels, expert_bytes=budget(stored.model, part, kernels))
        for found, expected in zip(results(model, prompt), right, strict=True):
            assert np.array_equal(found, expected), part
        stats = model.expert_store.stats()
        assert stats.hits + stats.misses > 0
        assert sum(stats.distances) == stats.hits + stats.misses
        # Native kernels that run layer by layer read a prompt's experts again if no decoded token
        # has chosen them.
        if part == "most" and (kernels == "stock" or not isinstance(model._decoder.layers, Blocks)):
            results(model, prompt)
            assert (model.expert_store.stats() - stats).bytes_read == 0, "each expert is read once"


# Full attention, windows and sinks, recurrent layers, latent experts.
LONG = ("qwen3moe-Q4_K_M", "gpt-oss-mxfp4", "granitehybrid", "nemotron_h_moe-latent")


@pytest.mark.parametrize("name, threads", [(LONG[0], 1), *((name, 3) for name in LONG)])
def test_a_long_prompt_reads_each_expert_once_for_each_chunk(name: str, threads: int):
    path = HERE / name / "model.gguf"
    model = engine.load(path, threads=threads, expert_bytes=budget(path, "least"))
    if model.kernels.name != "native":
        pytest.skip("only native kernels read long chunks")
    resident = engine.load(path, threads=threads)
    tokens = tokens_for(model, STREAM_CHUNK + 700)
    parts = []
    for one in (resident, model):
        cache = one.new_cache(len(tokens))
        one.prefill(tokens[:300], cache, None)  # chunks end at fixed positions all the same
        parts.append(np.array(one.prefill(tokens[300:], cache, None)))
    assert np.array_equal(*parts)
    layers = model.expert_store.layers
    everything = sum(
        source.span_bytes * len(source.offsets)
        for one in layers
        for source in one.sources
        if source
    )
    chunks = 3
    assert model.expert_store.stats().prompt_bytes_read <= chunks * everything


def test_layers_that_run_one_by_one_give_the_same_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.kernels.native.fused.fuses", lambda *_: False)
    for name in ("qwen3moe-Q4_K_M", "gpt-oss-mxfp4", "qwen3moe-UD_MIX", "bailingmoe2"):
        path = HERE / name / "model.gguf"
        right = results(engine.load(path), 40)
        for part in PARTS_OF:
            model = engine.load(path, expert_bytes=budget(path, part, model_kernels()))
            for found, expected in zip(results(model, 40), right, strict=True):
                assert np.array_equal(found, expected), (name, part)


def model_kernels() -> str:
    """Return the kernels that `auto` chooses here."""
    return selected("auto", backend())


def test_an_answer_is_that_of_a_resident_run(kernels: str):
    resident = engine.load(SMALL, kernels)
    prompt = tokens_for(resident, 20)
    right = list(resident.generate(prompt, GREEDY))
    model = engine.load(SMALL, kernels, expert_bytes=budget(SMALL, "half", kernels))
    before = model.expert_store.stats()
    assert list(model.generate(prompt, GREEDY)) == right
    after = model.expert_store.stats() - before
    assert after.bytes_read > 0 and 0 <= after.hit_rate <= 1 and after.held_bytes > 0


def test_a_budget_below_one_tokens_experts_says_the_least():
    least = budget(SMALL, "least")
    with pytest.raises(ExpertsDoNotFit, match=f"at least {least:,} bytes") as caught:
        engine.load(SMALL, expert_bytes=least - 1)
    assert caught.value.least_bytes == least
    with pytest.raises(ValueError, match="none"):
        engine.load(HERE / "llama-Q4_1" / "model.gguf", expert_bytes=1 << 30)


@pytest.mark.parametrize("stored", MIXTURES, ids=lambda stored: stored.name)
def test_a_plan_keeps_to_its_budget(stored: Stored):
    file = open_model(stored.model)
    config = read_model_config(file.metadata, file.tensors)
    layers = expert_layers(config, file.tensors)
    least, most = least_bytes(config, file.tensors), most_bytes(config, file.tensors)
    for given in (least, (2 * least + most) // 3, most - 1, most, 2 * most):
        plan = plan_store(config, file.tensors, given)
        assert plan.size_bytes <= given
        assert plan.slots <= len(layers) * config.experts.count
        assert all(kind.count >= config.experts.used for kind in plan.kinds)
        for layer, kind in zip(layers, plan.kind_of, strict=True):
            assert plan.kinds[kind].size_bytes >= layer.slot_bytes
    assert plan.slots == len(layers) * config.experts.count


# What a disturbed read does to a run that reads experts all the time.
Run = Callable[[engine.Model], object]
RUNS: dict[str, Run] = {
    "prompt": lambda model: model.prefill(tokens_for(model, 60), model.new_cache(128), None),
    "decode": lambda model: list(model.generate(tokens_for(model, 5), GREEDY)),
}


@pytest.fixture
def disturbed(kernels: str) -> engine.Model:
    if kernels != "native":
        pytest.skip("only the native store's reads can be disturbed")
    return engine.load(SMALL, kernels, expert_bytes=budget(SMALL, "least"))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_disk_that_refuses_is_an_error_that_says_where(
    disturbed: engine.Model, run: Run, after: int
):
    disturbed.expert_store.store.disturb(0.0, 0, after)
    with pytest.raises(
        ReadFailed, match=r"tensor 'blk\.\d+\.ffn_\w+_exps.weight', expert \d+, byte"
    ):
        run(disturbed)
    disturbed.expert_store.store.disturb(0.0, 0, -1)
    right = results(engine.load(SMALL, "native"), 40)
    for found, expected in zip(results(disturbed, 40), right, strict=True):
        assert np.array_equal(found, expected), "after the failure"


@pytest.mark.parametrize("name", ["qwen3moe-Q4_K_M", "granitehybrid", "qwen35moe", "gpt-oss-mxfp4"])
@pytest.mark.parametrize("after", [1, 20, 60, 150])
def test_after_a_failure_the_cache_holds_only_what_was_computed(
    name: str, after: int, kernels: str
):
    """Attention, recurrent layers, windows: the conversation goes on as if nothing had happened."""
    if kernels != "native":
        pytest.skip("only the native store's reads can be disturbed")
    path = HERE / name / "model.gguf"
    model = engine.load(path, expert_bytes=budget(path, "least"))
    tokens, more = tokens_for(model, 60), tokens_for(model, 9)
    cache, done = model.new_cache(128), list[int]()
    model.expert_store.store.disturb(0.0, 0, after)
    with suppress(ReadFailed):
        for token in model.generate(tokens, GREEDY, cache):
            done.append(token)
    assert len(done) < GREEDY.max_tokens or after == 150
    model.expert_store.store.disturb(0.0, 0, -1)
    found = list(model.generate([*tokens, *done, *more], GREEDY, cache))
    resident = engine.load(path)
    kept = resident.new_cache(128)
    if done:
        same = engine.Settings(temperature=0, max_tokens=len(done), ignore_end=True)
        assert list(resident.generate(tokens, same, kept)) == done
    assert found == list(resident.generate([*tokens, *done, *more], GREEDY, kept))


@pytest.mark.parametrize("delay_s, most", [(0.002, 0), (0.0, 4096), (0.001, 8192)])
def test_slow_and_short_reads_change_nothing(disturbed: engine.Model, delay_s: float, most: int):
    disturbed.expert_store.store.disturb(delay_s, most, -1)
    right = results(engine.load(SMALL, "native"), 40)
    for found, expected in zip(results(disturbed, 40), right, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_file_that_shrinks_is_an_error(tmp_path: Path, kernels: str, run: Run, share: float):
    path = tmp_path / "model.gguf"
    shutil.copy(SMALL, path)
    model = engine.load(path, kernels, expert_bytes=budget(path, "least", kernels))
    run(model)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(FileShrank, match="shrank"):
        run(model)


def test_a_file_that_shrinks_during_a_read_is_an_error(tmp_path: Path, kernels: str):
    path = tmp_path / "model.gguf"
    shutil.copy(SMALL, path)
    model = engine.load(path, kernels, expert_bytes=budget(path, "least", kernels))
    size = path.stat().st_size
    for _ in range(3):
        timer = threading.Timer(0.05, os.truncate, (path, size // 2))
        timer.start()
        with pytest.raises(EngineError):
            for _ in range(10_000):
                RUNS["decode"](model)
        timer.join()


@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "decode"])
def test_stopping_does_not_wait_for_the_disk(disturbed: engine.Model, prompt: bool):
    """The next answer is that of an undisturbed run."""
    tokens = tokens_for(disturbed, 60)
    right = list(disturbed.generate(tokens, GREEDY))
    cache = disturbed.new_cache(128)
    stream = disturbed.generate(tokens, GREEDY, cache)
    answer = iter(stream)
    if not prompt:
        assert [next(answer) for _ in range(3)] == right[:3]
    disturbed.expert_store.store.disturb(5.0, 0, -1)
    stopped: list[float] = []

    def stop(*_: object) -> None:
        stopped.append(time.perf_counter())
        stream.stop()

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        for _ in answer:
            pass
        assert time.perf_counter() - stopped[0] < 0.3
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stream.finish == "interrupted"
    disturbed.expert_store.store.disturb(0.0, 0, -1)
    time.sleep(5.0)  # the reads that hang
    assert list(disturbed.generate(tokens, GREEDY, cache)) == right


def cached_pages(path: Path) -> int:
    """Return how many of a file's pages are in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        count = -(-len(mapped) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        start = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(start))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), flags)
        del start
    assert not failed
    return sum(flag & 1 for flag in flags)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_experts_do_not_enter_the_page_cache(tmp_path: Path, kernels: str):
    path = tmp_path / "model.gguf"
    shutil.copy(SMALL, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path) > 0:
        pytest.skip("this file system keeps its files in memory")
    model = engine.load(path, kernels, expert_bytes=budget(path, "least", kernels))
    for run in RUNS.values():
        run(model)
    assert model.expert_store.stats().bytes_read > 0
    assert cached_pages(path) == 0
