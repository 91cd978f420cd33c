"""What is tried on a user's GPU, in the emulator: right kernels pass, and wrong ones do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.kernels.gpu import self_test, verdicts
from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.texts import OPERATIONS, TYPES, KernelText
from engine.kernels.gpu.verdicts import BEGUN, GOOD, Verdicts, refusal
from support.emulator.run import Fault, launch
from support.gpu import NIGHT, needs_compiler

pytestmark = [pytest.mark.process, needs_compiler]
EMULATED = Gpu(cuda=False, launch=launch)


def broken(*changes: tuple[str, str]) -> Gpu:
    """Return a GPU whose kernels have a mistake."""

    def run(kernel: KernelText, *given):
        for old, new in changes:
            kernel = dataclasses.replace(
                kernel,
                header=kernel.header.replace(old, new),
                source=kernel.source.replace(old, new),
            )
        return launch(kernel, *given)

    return Gpu(cuda=False, launch=run)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Q4_0" else NIGHT) for name in TYPES]
)
def test_right_kernels_pass(name: str, tmp_path: Path):
    kept = Verdicts(tmp_path / "gpu.json", "an emulator")
    self_test.test_type(name, kept, EMULATED)
    assert {op: kept.get(op, name, False) for op in OPERATIONS} == dict.fromkeys(OPERATIONS, GOOD)


@pytest.mark.parametrize(
    ("operation", "old", "new"),
    [
        ("product", "four[i] & 0x0f0f0f0f", "four[i] & 0x0e0f0f0f"),  # one bit of a weight
        ("product", "offsets[1] = -dmin", "offsets[1] = dmin"),
        ("rows", "(scale & 0xc0c0) >> 2", "(scale & 0xc0c0) >> 1"),
        ("chosen", "pair / share", "0"),
        ("weighted", "lane, scores[pair]", "lane, scores[token]"),
        pytest.param("gated", "silu * up", "silu * gate", marks=NIGHT),
        pytest.param("grouped", "uint(ends[expert])", "uint(ends[0])", marks=NIGHT),
    ],
)
def test_a_wrong_kernel_does_not(operation: str, old: str, new: str):
    found = self_test.verdict(operation, "Q4_K", broken((old, new)))
    assert "are off by" in found


def test_what_a_compiler_refuses_is_a_verdict():
    def refuses(*given):
        raise RuntimeError("Unable to build metal library from source\nmore")

    found = self_test.verdict("rows", "Q4_0", Gpu(cuda=False, launch=refuses))
    assert found == "RuntimeError: Unable to build metal library from source"


def test_a_type_is_tried_once_and_its_verdict_kept(tmp_path: Path):
    kept, tried = Verdicts(tmp_path / "gpu.json", "one GPU"), []

    def test(name: str, file: Path, cuda: bool) -> None:
        tried.append(name)
        for operation in OPERATIONS:
            kept.put(operation, name, cuda, GOOD if name == "Q4_K" else "wrong")

    for _ in range(2):
        assert refusal("Q4_K", kept, False, test) is None
        assert refusal("Q6_K", kept, False, test) == "product: wrong"
    assert tried == ["Q4_K", "Q6_K"]
    assert refusal("Q4_K", Verdicts(kept.file, "another GPU"), False, lambda *_: None) is not None


def test_a_kernel_that_took_its_process_along_is_not_tried_again(tmp_path: Path):
    kept = Verdicts(tmp_path / "gpu.json", "one GPU")

    def dies(*given):
        raise Fault("stands for a process that was killed")

    def test(name: str, file: Path, cuda: bool) -> None:
        with pytest.raises(Fault):
            self_test.test_type(name, kept, Gpu(cuda=cuda, launch=dies))

    assert refusal("Q4_K", kept, False, test) == f"product: {BEGUN}"
    assert refusal("Q4_K", kept, False, pytest.fail) == f"product: {BEGUN}"


def test_a_damaged_file_of_verdicts_is_as_none(tmp_path: Path):
    kept = Verdicts(tmp_path / "gpu.json", "one GPU")
    for content in ("{", "[]", '{"a": 1}'):
        kept.file.write_text(content)
        assert kept.get("rows", "Q4_K", False) is None


def test_a_child_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verdicts, "TEST_S", 0.01)
    found = refusal("Q4_K", Verdicts(tmp_path / "gpu.json", "one GPU"), False)
    assert found == "product: its self-test did not start"
