"""Verdicts for Macs, beside what users of other programs report of the same files.

Reports: llama.cpp and mlx_lm swap with gpt-oss-20b on 16 GB; gpt-oss-120b fails on 64 GB, runs on
96; the 30B-A3B fails on 16 GB and runs on 24 GB; GLM-4.5-Air at four bits fails on 64 GB.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.program import run_unplugged

pytestmark = pytest.mark.process


def verdict(model: str, machine: str, context: str, home: Path) -> str:
    arguments = (model, "-c", context, "--machine", machine)
    done = run_unplugged("fit", *arguments, "--json", home=home)
    return str(json.loads(done.stdout)["verdict"])


@pytest.mark.parametrize(
    ("model", "machine", "context"),
    [
        ("qwen3-30b-a3b:Q3_K_M", "m5-pro-24gb", "8k"),
        ("qwen3-30b-a3b:Q4_K_M", "m4-32gb", "16k"),
        ("gpt-oss-120b", "m2-max-96gb", "8k"),
    ],
)
def test_what_runs_there_fits(model: str, machine: str, context: str, tmp_path: Path):
    assert verdict(model, machine, context, tmp_path) == "fits"


@pytest.mark.parametrize(
    ("model", "machine"),
    [
        ("gpt-oss-20b", "m4-16gb"),
        ("gpt-oss-120b", "m4-max-64gb"),
        ("qwen3-30b-a3b:Q4_K_M", "m4-16gb"),
        ("qwen3-30b-a3b:Q3_K_M", "m4-16gb"),
        ("qwen3-coder-30b-a3b:Q4_K_M", "m4-16gb"),
        ("glm-4.5-air:Q4_K_M", "m4-max-64gb"),
        ("qwen3-235b-a22b-instruct-2507:Q4_K_M", "m4-max-128gb"),
        ("qwen3-next-80b-a3b:Q4_K_M", "m4-pro-48gb"),
    ],
)
def test_what_fails_there_does_not_fit(model: str, machine: str, tmp_path: Path):
    assert verdict(model, machine, "8k", tmp_path) in ("streams", "too_large")
