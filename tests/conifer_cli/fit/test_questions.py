"""Questions that people ask before they download or buy: one command each, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.program import run_unplugged

pytestmark = pytest.mark.process

# The question, the command, its exit code, and what the answer says.
QUESTIONS = [
    ("best for my M3?", ("--machine", "m3-32gb"), 0, "Best there for chat: "),
    ("X at 64k?", ("qwen3-coder-30b-a3b", "-c", "64k", "--machine", "m3-max-64gb"), 0, "fits"),
    ("which quant?", ("qwen3-30b-a3b", "--machine", "m3-max-96gb"), 0, "Q8_0"),
    ("why slow?", ("qwen3-30b-a3b", "--machine", "m1-max-64gb"), 0, "bytes per token: 1.9 GB"),
    ("card and RAM?", ("gpt-oss-120b", "--machine", "rtx-4090", "--ram", "64GB"), 4, "on the CPU"),
    ("longest context?", ("qwen3-30b-a3b", "--machine", "m3-32gb"), 0, "largest that fits"),
    ("long prompt?", ("qwen3-30b-a3b", "--machine", "m3-max-64gb"), 0, "s to the first token"),
    ("what to buy?", ("gpt-oss-120b", "--buy"), 0, "m2-max-96gb"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [question[1:] for question in QUESTIONS],
    ids=[question[0] for question in QUESTIONS],
)
def test_one_command_answers(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run_unplugged("fit", *arguments, home=tmp_path)
    assert (done.returncode, done.stderr) == (code, b"")
    assert said in " ".join(done.stdout.decode().split())


def test_a_context_beyond_the_model_names_its_sibling(tmp_path: Path) -> None:
    asked = ("fit", "qwen3-30b-a3b", "-c", "64k", "--machine", "m3-max-64gb")
    done = run_unplugged(*asked, home=tmp_path)
    assert done.returncode == 2
    assert "qwen3-30b-a3b-instruct-2507 has the same shape" in done.stderr.decode()


def test_a_mac_that_is_only_short_of_its_working_set_gets_the_command(tmp_path: Path) -> None:
    asked = ("fit", "qwen3-30b-a3b:Q4_K_M", "-c", "8192", "--machine", "m4-pro-24gb")
    done = run_unplugged(*asked, home=tmp_path)
    assert "sudo sysctl iogpu.wired_limit_mb=22118" in done.stdout.decode()


def test_a_purpose_lists_only_what_fits_and_serves_it(tmp_path: Path) -> None:
    asked = ("fit", "--for", "code", "--machine", "m3-32gb", "--json")
    found = json.loads(run_unplugged(*asked, home=tmp_path).stdout)
    assert found["best"] == found["models"][0]["id"]
    assert {model["verdict"] for model in found["models"]} == {"fits"}
    assert all(model["context"] >= 8192 for model in found["models"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--buy",), "--buy needs a MODEL"),
        (("qwen3-4b", "--for", "chat"), "leave out MODEL"),
        (("--bandwidth", "80"), "add --machine"),
        (("--machine", "cpu-64gb"), "pass --bandwidth 80"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run_unplugged("fit", *arguments, home=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.decode()
