"""`fit` and `show` of models too large for this machine, and of sets of parts that are no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.gguf.reader import open_model
from support.gguf_writer import Tensor, split_bytes, write_parts
from support.giants import write_deepseek_v3, write_qwen3_235b
from support.program import MODELS, run_unplugged
from support.rewrite import all_tensors

pytestmark = pytest.mark.process


def test_a_giant_in_parts_is_too_large_by_its_header_and_exits_4(tmp_path: Path):
    path = write_deepseek_v3(tmp_path, 13)[0]
    done = run_unplugged("fit", str(path), "-c", "8k", "--json", home=tmp_path)
    fit = json.loads(done.stdout)
    assert (done.returncode, fit["verdict"], fit["estimated"]) == (4, "too_large", False)
    assert fit["size_bytes"] == sum(part.stat().st_size for part in tmp_path.glob("*.gguf"))
    assert fit["need_bytes"]["kv"] == 8192 * 61 * 576 * 2
    assert fit["need_bytes"]["weights"] > 700 * 10**9


def test_a_giant_fits_where_the_memory_is(tmp_path: Path):
    path = write_qwen3_235b(tmp_path, 5)[0]
    done = run_unplugged("fit", str(path), home=tmp_path, memory_bytes=1 << 40)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Qwen3 235B A22B, qwen3moe, 235B parameters, 21.6B active per token" in text
    assert "verdict: fits" in text


def test_show_describes_a_giant(tmp_path: Path):
    path = write_deepseek_v3(tmp_path, 13)[0]
    done = run_unplugged("show", str(path), "--json", home=tmp_path)
    shown = json.loads(done.stdout)["file"]
    assert done.returncode == 0
    assert shown["total_parameters"] == 671_026_419_200
    assert (len(shown["paths"]), shown["tensors"]) == (13, 1086)
    text = run_unplugged("show", str(path), home=tmp_path).stdout.decode()
    assert "671,026,419,200, 36,625,625,600 active per token" in text
    assert "in 13 parts" in text


def broken(kind: str, folder: Path) -> Path:
    """The first file of a set of three parts with something wrong."""
    source = MODELS / "qwen3moe" / "model.gguf"
    metadata, tensors = open_model(source).metadata, all_tensors(source)
    parts = [[], tensors[:9], tensors[9:]]
    if kind == "a tensor twice":
        parts[2] = [*parts[2], tensors[0]]
    blobs = split_bytes(metadata, parts)
    if kind == "parts swapped":
        blobs[1:] = blobs[:0:-1]
    if kind == "another count":
        blobs[2] = split_bytes(metadata, [*parts, [Tensor("more", (1,))]])[2]
    if kind == "fewer tensors than promised":
        blobs = split_bytes(metadata, parts, **{"split.tensors.count": np.int32(999)})
    if kind == "a part cut short":
        blobs[2] = blobs[2][:-100]
    paths = write_parts(folder, "m", blobs)
    if kind == "a part missing":
        paths[1].unlink()
    return paths[1] if kind == "not the first part" else paths[0]


@pytest.mark.parametrize("command", ["fit", "show", "run"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a part missing", "part 2 of 3 is missing: m-00002-of-00003.gguf"),
        ("parts swapped", "part 2: key 'split.no' is 2, expected 1"),
        ("another count", "part 3: key 'split.count' is 4, expected 3"),
        ("a tensor twice", "is also in an earlier part"),
        ("fewer tensors than promised", "'split.tensors.count' is 999"),
        ("a part cut short", "m-00003-of-00003.gguf: the file is cut short"),
        ("not the first part", "not the first part; open m-00001-of-00003.gguf"),
    ],
)
def test_parts_that_are_no_model_are_one_error(kind: str, said: str, command: str, tmp_path: Path):
    prompt = ["hello"] if command == "run" else []
    done = run_unplugged(command, str(broken(kind, tmp_path)), *prompt, home=tmp_path)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (3, b"")
    assert said in lines[0]
    assert "Traceback" not in done.stderr.decode()
    assert len(lines) <= 2  # the second says what to do
