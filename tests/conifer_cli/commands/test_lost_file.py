"""The model's file shrinks, or its disk fails, while a program uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.program import MODELS, environment

pytestmark = pytest.mark.process

COPIED = "stock kernels copy the weights while loading, so the file is not read afterwards"

# Runs the CLI. Before the file's weights are used for the Nth time, it is cut or hidden.
PROGRAM = """
import ctypes, os, sys
from engine.nn import mapped
from engine import model as models

path, how, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]

def lose(view):
    if how == "shrink":
        os.truncate(path, os.path.getsize(path) // 3)
    else:  # a page that its file cannot fill, in place of one that its disk cannot read
        import numpy as np
        empty = os.open(path + ".empty", os.O_RDWR | os.O_CREAT)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        long, numbers = ctypes.c_size_t, [ctypes.c_int] * 3
        libc.mmap.argtypes = [ctypes.c_void_p, long, *numbers, ctypes.c_long]
        address = np.frombuffer(view, np.uint8).ctypes.data + len(view) // 3 // 4096 * 4096
        size = len(view) // 3 // 4096 * 4096
        assert libc.mmap(address, size, 1, 2 | 16, empty, 0) == address

files, calls = [], 0
class Mapped(mapped.MappedFile):
    def __init__(self, path):
        super().__init__(path)
        files.append(self)

import engine.nn.weights as weights
weights.MappedFile = Mapped
forward = models.Model.forward
def counted(self, tokens, cache):
    global calls
    calls += 1
    if calls == after:
        lose(files[0].view)
    return forward(self, tokens, cache)
models.Model.forward = counted
if after == 0:
    load = mapped.MappedFile.check
    def cut(self):
        mapped.MappedFile.check = load
        load(self)
        lose(self.view)
    mapped.MappedFile.check = cut
from conifer_cli.app import main
main()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(MODELS / "qwen3moe" / "model.gguf", tmp_path / "model.gguf"))


def run(copy: Path, how: str, after: int, *flags: str, kernels: str = "native"):
    arguments = ["run", str(copy), "Count to thirty.", "--temperature", "0", "--max-tokens", "30"]
    return subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, copy, how, str(after), *arguments, *flags],
        env=environment(copy.parent, CONIFER_KERNELS=kernels),
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize("after", [0, 1, 6])  # while it loads, in the prompt, in the answer
@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [("shrink", 3, b"model.gguf shrank from"), ("lose", 1, b"the disk failed to read a part of")],
)
def test_a_lost_file_is_one_line_and_a_code(copy, how, code, reason, after):
    if os.environ.get("CONIFER_KERNELS") == "stock":
        pytest.skip(COPIED)
    done = run(copy, how, after)
    assert done.returncode == code, done.stderr
    first, hint = done.stderr.decode().splitlines()
    assert first.startswith("conifer: ") and reason.decode() in first and hint
    assert bool(done.stdout) == (after == 6)


def test_what_was_answered_is_saved(copy, tmp_path):
    if os.environ.get("CONIFER_KERNELS") == "stock":
        pytest.skip(COPIED)
    whole = copy.read_bytes()
    saved = tmp_path / "talk"
    done = run(copy, "shrink", 12, "--save", str(saved))
    assert done.returncode == 3 and done.stdout.strip()
    header = json.loads(saved.read_bytes().split(b"\n")[1])
    assert [m["role"] for m in header["messages"]] == ["user", "assistant"]
    assert header["messages"][1]["content"].strip() == done.stdout.decode().strip()
    copy.write_bytes(whole)
    again = run(copy, "shrink", 10**9, "--resume", str(saved))
    assert again.returncode == 0, again.stderr


def test_stock_kernels_do_not_use_the_file_after_loading(copy):
    assert run(copy, "shrink", 3, kernels="stock").returncode == 0
    assert run(copy, "shrink", 0, kernels="stock").returncode == 3
