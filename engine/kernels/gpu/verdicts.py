"""Which kernels may be used on this GPU, kept in a file.

A verdict holds for a GPU, its system, MLX's version and the kernel's text. It is written before the
self-test starts, so that a kernel that takes its process along is never tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx

from engine.kernels.gpu.texts import OPERATIONS, kernel_text

BEGUN = "its self-test was begun and not ended"
TEST_S = 120.0  # for all operations of a type; compiling takes most of it
GOOD = ""


class Verdicts:
    """The verdicts of this machine: what is wrong with a kernel, or GOOD."""

    def __init__(self, file: Path, machine: str) -> None:
        self.file, self._machine = file, machine

    def get(self, operation: str, type_name: str, cuda: bool) -> str | None:
        """Return the verdict on a kernel, or None if it was never tried."""
        return self._read().get(self._key(operation, type_name, cuda))

    def put(self, operation: str, type_name: str, cuda: bool, verdict: str) -> None:
        """Keep a verdict. If the file cannot be written, the kernel is tried again next time."""
        kept = self._read() | {self._key(operation, type_name, cuda): verdict}
        part = self.file.with_suffix(".part")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        part.replace(self.file)

    def _key(self, operation: str, type_name: str, cuda: bool) -> str:
        kernel = kernel_text(operation, type_name, cuda)
        text = "\0".join((self._machine, kernel.header, kernel.source))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"{operation} {type_name} {digest}"

    def _read(self) -> dict[str, str]:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        sound = isinstance(kept, dict) and all(isinstance(v, str) for v in kept.values())
        return kept if sound else {}


def this_gpu() -> str:
    """Return all that a verdict depends on besides the kernel's text."""
    info = mx.device_info(mx.gpu)
    gpu = (info.get("device_name"), info.get("architecture"))
    return "; ".join(map(str, (*gpu, platform.platform(), importlib.metadata.version("mlx"))))


def refusal(
    type_name: str,
    verdicts: Verdicts,
    cuda: bool,
    test: Callable[[str, Path, bool], None] | None = None,
) -> str | None:
    """Return why a type's kernels may not be used on this GPU, or None if they may.

    What was never tried is tried first, in a child process. test: tries a type, and keeps its
    verdicts in a file.
    """
    known = [verdicts.get(operation, type_name, cuda) for operation in OPERATIONS]
    if None in known and not any(known):
        (test or _in_child)(type_name, verdicts.file, cuda)
    return _first_fault(type_name, verdicts, cuda, OPERATIONS)


def _first_fault(
    type_name: str, verdicts: Verdicts, cuda: bool, operations: Iterable[str]
) -> str | None:
    for operation in operations:
        verdict = verdicts.get(operation, type_name, cuda)
        if verdict != GOOD:
            return f"{operation}: {verdict or 'its self-test did not start'}"
    return None


def _in_child(type_name: str, file: Path, cuda: bool) -> None:
    """Try a type in a child process, as a GPU's fault may end the process."""
    program = "engine.kernels.gpu.self_test"
    command = [sys.executable, "-P", "-m", program, type_name, str(file), str(int(cuda))]
    with contextlib.suppress(subprocess.TimeoutExpired):  # a kernel that hung keeps BEGUN
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TEST_S)
