"""Which model is best: by quality, size and speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from catalog import Entry, entries
from catalog.registry import Quality
from catalog.store.store import Store
from conifer_cli.fit.best import (
    FLUENT_PER_S,
    PURPOSES,
    USABLE_PER_S,
    Contender,
    best,
    judged,
    ranked,
)
from conifer_cli.fit.predict import choose_target
from conifer_cli.fit.verdict import FitRequest

LARGE, SMALL = entries()["qwen3-30b-a3b-instruct-2507"], entries()["qwen3-8b"]


def scored(entry: Entry, value: float) -> Entry:
    return replace(entry, quality=(Quality("MMLU-Pro", value, "example.org/x", "2026-01"),))


def test_the_larger_of_two_is_better_unless_it_is_slow():
    assert best([Contender(SMALL, True), Contender(LARGE, True)]) == [LARGE, SMALL]
    slow = Contender(LARGE, True, FLUENT_PER_S / 2)
    assert best([Contender(SMALL, True, FLUENT_PER_S), slow]) == [SMALL, LARGE]
    assert best([Contender(SMALL, True), Contender(LARGE, False)]) == [SMALL]
    barely = Contender(SMALL, True, USABLE_PER_S)
    assert best([Contender(LARGE, True, USABLE_PER_S - 0.1), barely])[0] == SMALL


def test_published_scores_decide_between_models_of_about_one_size():
    near = replace(LARGE, id="near", total_parameters=28_000_000_000)
    better, worse = Contender(scored(near, 80), True), Contender(scored(LARGE, 70), True)
    assert best([worse, better])[0].id == "near"
    small = Contender(scored(SMALL, 99), True)
    assert best([worse, small])[0] == worse.entry
    assert best([Contender(LARGE, True), better])[0] == LARGE  # nothing to compare with


def test_a_purpose_has_its_kinds_and_its_least_context():
    base, short = entries()["deepseek-v2-lite"], entries()["qwen3-32b"]
    assert best([Contender(base, True)]) == []
    assert best([Contender(short, True)], "long-context") == []
    coder = entries()["qwen3-coder-30b-a3b"]
    assert best([Contender(LARGE, True), Contender(coder, True)], "code")[0] == coder
    assert best([Contender(LARGE, True)], "reasoning") == []


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("name", ["m4-16gb", "m3-32gb", "rtx-4090", "ryzen-7950x-64gb"])
def test_there_is_a_best_model_for_common_machines(name: str, purpose: str, tmp_path: Path):
    target = choose_target(name, None, True, "auto")
    rows = judged(target, FitRequest(), Store(tmp_path, tmp_path / "hub"))
    found = ranked(rows, purpose)[0].entry
    assert found.kind != "base"
    assert (found.context or 0) >= PURPOSES[purpose].context
