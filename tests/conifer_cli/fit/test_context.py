"""A hint about the context can be followed: -c only where a larger one exists."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import resolve
from conifer_cli.errors import UsageError
from conifer_cli.fit.context import advice, largest_context, limit, require_room
from conifer_cli.fit.verdict import FitReport, FitRequest, judge_disk
from engine.fit.machine import Machine
from support.program import MODELS

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
MACHINE = Machine("test machine", "cpu", 1 << 34, 1 << 34, "available memory")


def report(supported: int, fitting: int) -> FitReport:
    found = judge_disk(QWEN, resolve(QWEN), Path(QWEN), FitRequest(), MACHINE)
    assert found.config is not None
    verdict = replace(found.verdict, largest_context=fitting)
    config = replace(found.config, context=supported)
    return replace(found, name="m", config=config, verdict=verdict)


@pytest.mark.parametrize(
    ("supported", "fitting", "context", "needed", "said"),
    [
        (8192, 8192, 8192, 8193, "m supports no more than 8,192 tokens."),
        (8192, 8192, 4096, 4097, "Pass -c 8192 "),
        (8192, 8192, 4096, 28_925, "m supports no more than 8,192 tokens."),
        (32_768, 16_384, 4096, 5000, "Pass -c 8192 "),
        (32_768, 16_384, 4096, 10_000, "Pass -c 10000 "),
        (32_768, 16_384, 16_384, 16_385, "no more than 16,384 fit in memory. Close other"),
        (32_768, 16_384, 4096, 20_000, "no more than 16,384 fit in memory. Close other"),
        (32_768, 16_384, 4096, 40_000, "`conifer list --catalog`"),
        (32_768, 0, 4096, 5000, "Pass -c 8192 "),  # with --force
        (1, 1, 1, 5, "m supports no more than 1 token."),
    ],
)
def test_the_advice_names_what_limits_the_context(supported, fitting, context, needed, said):
    found = report(supported, fitting)
    text = advice(found, context, needed, "f16")
    assert said in text
    if wanted := re.search(r"-c (\d+)", text):
        assert needed <= int(wanted[1]) <= largest_context(found, context)


def test_what_takes_less_memory_is_not_advised_twice():
    found = report(32_768, 16_384)
    assert "--kv-type q8" in advice(found, 16_384, 16_385, "f16")
    assert "--kv-type" not in advice(found, 16_384, 16_385, "q8")


def test_a_context_that_is_too_large_is_refused_with_the_limit():
    found = report(32_768, 16_384)
    require_room(found, 4096, 16_384)
    with pytest.raises(UsageError, match="20,000 tokens is too large") as error:
        require_room(found, 4096, 20_000)
    assert error.value.hint == limit(found, 4096)
