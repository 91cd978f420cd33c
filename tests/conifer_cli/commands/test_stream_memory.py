"""A budget is a promise about memory: a streamed run is held to it by the kernel."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from engine.fit.machine import this_machine
from engine.fit.memory import judge
from engine.gguf.reader import open_model
from engine.kernels.native import unavailable_reason
from engine.nn.config import read_model_config
from support.benchmarks import program
from support.cgroup import memory_group
from support.program import environment, know_bandwidth

pytestmark = [
    pytest.mark.process,
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a cgroup of Linux"),
    pytest.mark.skipif(unavailable_reason() is not None, reason="needs the native kernels"),
]
synthesize = program("synthesize")
REAL = synthesize.SHAPES["qwen3-30b-a3b"]
# 512 experts of 0.5 MB and, 330 MB of all else, most of it for a chunk of 2,048 tokens.
KEYS = {**REAL.keys, "embedding_length": 1024, "expert_feed_forward_length": 256}
SHAPE = dataclasses.replace(REAL, layers=4, vocab=4096, keys=KEYS)
PROMPT = "many different words about lakes, engines, bread and the law of the sea " * 12
CONTEXT = 2304
ANSWER = ("-c", str(CONTEXT), "--temperature", "0", "-n", "16", "--json")
# Conifer, with budgets below 1 GB.
SMALL_BUDGETS = """
import conifer_cli.options
conifer_cli.options.MIN_MEMORY = 10**8
from conifer_cli.__main__ import main
main()
"""


def run(home, *arguments, around=lambda command: command):
    command = [sys.executable, "-P", "-c", SMALL_BUDGETS, *arguments]
    return subprocess.run(
        around(command), env=environment(home), cwd=home, capture_output=True, check=False
    )


def forget(path):
    """Drop the file from the page cache, so that a run that caches it is charged for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_streamed_run_stays_within_its_budget_and_answers_as_in_memory(tmp_path):
    path = tmp_path / "mixture.gguf"
    synthesize.synthesize(SHAPE, path, seed=1)
    arguments = ("run", str(path), "-p", PROMPT, *ANSWER)
    know_bandwidth(tmp_path, machine=f"cpu: {this_machine().name}")
    right = json.loads(run(tmp_path, *arguments).stdout)
    file = open_model(path)
    config = read_model_config(file.metadata, file.tensors)
    need_bytes = judge(config, file.tensors, this_machine(), CONTEXT).need.total_bytes
    budget = need_bytes - 60 * 10**6
    peaks = []
    for how in (("--budget", f"{budget // 10**6}MB"), ("--force",)):
        forget(path)
        with memory_group(int(1.25 * budget)) as group:
            done = run(tmp_path, *arguments, *how, around=group.around)
            assert (done.returncode, group.kills) == (0, 0), done.stderr.decode()
            peaks.append(group.peak_bytes)
        found = json.loads(done.stdout)
        assert found["answer"] == right["answer"]
        assert ("experts_from_disk" in found) == (how[0] == "--budget")
    assert peaks[0] <= budget
    assert peaks[1] - peaks[0] > path.stat().st_size // 3, "a mapped file is counted, too"
