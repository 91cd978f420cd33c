"""What `fit` says of a process's memory is what was measured of each kind of cache and buffer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from engine.fit.memory import needs
from engine.gguf.reader import read_header
from engine.nn.config import read_model_config
from support.benchmarks import program

synthesize, accuracy = program("synthesize"), program("fit_accuracy")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "fit-memory.json"
CASES = json.loads(RESULTS.read_text())["cases"]


def test_every_kind_of_memory_was_measured():
    kinds = {"gemma4", "nemotron_h_moe", "laguna", "kimi-linear", "lfm2moe", "llama4", "phimoe"}
    kinds |= {"glm-dsa", "deepseek2"}
    measured = {synthesize.SHAPES[Path(case["file"]).stem].architecture for case in CASES}
    assert measured >= kinds


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']}-{case['context']}")
def test_the_need_is_what_was_measured(case: dict[str, Any]):
    shape = synthesize.SHAPES[Path(case["file"]).stem]
    shape = dataclasses.replace(shape, layers=case["layers"])
    tensors = synthesize.plan(shape)
    data = synthesize.header(synthesize.metadata(shape, 0), tensors)
    header = read_header(data, len(data) + sum(-(-t.size_bytes // 32) * 32 for t in tensors))
    config = read_model_config(header.metadata, header.tensors)
    need = needs(config, header.tensors, "cpu", "f16", "native")(case["context"])
    share = case["memory"]["peak_bytes"] / need.total_bytes
    assert accuracy.LEAST <= share <= accuracy.MOST
    if case["context"] > 3000:  # as committed, and still
        assert need.total_bytes == pytest.approx(case["memory"]["predicted_bytes"], rel=0.01)
