"""Files that are no model are told by what they are, in one line that names them; exit 3."""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

import engine
from conifer_cli import app
from engine.fit.machine import Machine
from engine.fit.memory import judge
from engine.fit.speed import bytes_per_token
from engine.gguf.reader import open_model
from engine.nn.config import count_parameters, read_config, used_tensors
from engine.nn.weights import Weights
from support.gguf_writer import Tensor, gguf_bytes, split_bytes
from support.program import MODELS
from support.rewrite import all_tensors, rewrite

MODEL = MODELS / "qwen3moe" / "model.gguf"
DATA = MODEL.read_bytes()
COMMANDS = [["run", "NAME", "-p", "hi"], ["fit", "NAME"], ["fit", "NAME", "--json"]]
COMMANDS += [["show", "NAME", "--json"], ["pull", "NAME"], ["bench", "NAME"]]


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 18556689568\n"
HEADER = b'{"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
NO_GGUF = {
    "an empty file": b"",
    "a file of zeros": bytes(4096),
    "a Git LFS pointer": LFS,
    "a web page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "JSON text": b'{"error": "Repository not found"}',
    "a ZIP archive": zipped("model.gguf"),
    "PyTorch's weights": zipped("archive/data.pkl"),
    "a TAR archive": tarred(),
    "a gzip archive": b"\x1f\x8b\x08\0" + bytes(50),
    "a 7-Zip archive": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(50),
    "a Zstandard archive": b"\x28\xb5\x2f\xfd" + bytes(50),
    "an XZ archive": b"\xfd7zXZ\0" + bytes(50),
    "a safetensors file": len(HEADER).to_bytes(8, "little") + HEADER + bytes(2),
    "a Python pickle": pickle.dumps({"weight": [1.0]}, protocol=2),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x051.13" + bytes(50),
    "a GGML file": b"lmgg" + bytes(50),
    "a GGJT file": b"tjgg\3\0\0\0" + bytes(50),
    "text": b"dear diary\n",
    "starts with the bytes 00 01 02 03": bytes(range(256)),
    "big-endian": b"GGUF\0\0\0\3" + bytes(50),
}


def keys(**changes) -> dict:
    return {"general.architecture": "qwen3moe", **changes}


def changed(**changes) -> bytes:
    """Return the tiny model with other metadata; `__` stands for a dot."""
    metadata = open_model(MODEL).metadata
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return gguf_bytes({**metadata, **changes}, all_tensors(MODEL))


def without(start: str) -> bytes:
    tensors = [tensor for tensor in all_tensors(MODEL) if not tensor.name.startswith(start)]
    return gguf_bytes(open_model(MODEL).metadata, tensors)


W = [Tensor("w", (32,))]
NO_MODEL = {
    "an adapter": gguf_bytes({"general.type": "adapter", **keys()}, W),
    "an adapter (LoRA)": gguf_bytes({"adapter.type": "lora", **keys()}, W),
    "a projector": gguf_bytes({"general.architecture": "clip"}, W),
    "a projector for": changed(general__type="mmproj"),
    "an importance matrix": gguf_bytes({"general.type": "imatrix"}, W),
    "an importance": gguf_bytes({"imatrix.chunk_count": 4}, W),
    "a vocabulary without weights": gguf_bytes(open_model(MODEL).metadata),
    "an embedding model": gguf_bytes({"general.architecture": "bert"}, W),
    "an embedding": changed(qwen3moe__pooling_type=3),
    "a reranker": changed(qwen3moe__pooling_type=4),
    "a diffusion model": gguf_bytes({"general.architecture": "flux"}, W),
    "a diffusion model,": gguf_bytes({"general.architecture": "dream"}, W),
    "a draft model": gguf_bytes({"general.architecture": "eagle3"}, W),
    "a draft model: the last layers": without("blk.0."),
    "a part of a model": without("token_embd"),
}
KINDS = {**NO_GGUF, **NO_MODEL}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> tuple[int, str, str]:
        code = app._outcome([*arguments])
        return code, *capsys.readouterr()

    return ask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_file_is_told_by_what_it_is(run, tmp_path, command, kind):
    (tmp_path / "thing.gguf").write_bytes(KINDS[kind])
    code, out, err = run(*("./thing.gguf" if word == "NAME" else word for word in command))
    assert (code, out) == (3, "")
    assert err.startswith("conifer: thing.gguf: ") and kind in err
    assert "b'" not in err and "\\x" not in err and err.count("\n") <= 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
def test_a_download_that_stopped_says_how_much_is_there(run, tmp_path, share):
    size = int(len(DATA) * share)
    (tmp_path / "cut.gguf").write_bytes(DATA[:size])
    code, out, err = run("run", "./cut.gguf", "-p", "hi")
    assert (code, out) == (3, "") and err.startswith("conifer: cut.gguf: ")
    assert f"{size:,}" in err


def test_any_other_error_of_a_file_names_it(run, tmp_path):
    rewrite(MODEL, tmp_path / "odd.gguf", all_tensors(MODEL), {"qwen3moe.block_count": 0})
    for command in (
        ["run", "./odd.gguf", "-p", "hi"],
        ["fit", "./odd.gguf"],
        ["show", "./odd.gguf"],
    ):
        code, out, err = run(*command)
        assert (code, out) == (3, "") and err.startswith("conifer: odd.gguf: qwen3moe.block_count")


def test_a_later_part_names_the_first(run, tmp_path):
    tensors = all_tensors(MODEL)
    parts = split_bytes(open_model(MODEL).metadata, [tensors[:9], tensors[9:]])
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(parts[1])
    code, _, err = run("run", "./m-00002-of-00002.gguf", "-p", "hi")
    assert code == 3 and "open m-00001-of-00002.gguf" in err


@pytest.mark.parametrize("name", ["folder.gguf", "pipe.gguf", "/dev/null"])
def test_what_is_no_file_exits_2_at_once(run, tmp_path, name):
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    code, out, err = run("fit", f"./{name}" if name[0] != "/" else name)
    assert (code, out) == (2, "") and name in err
    assert "is a folder" in err or "is a pipe, a socket or a device" in err


@pytest.mark.parametrize("number", [19, 22, 95])
def test_a_file_system_that_cannot_map_is_read(monkeypatch, number):
    expected = list(engine.load(MODEL).logits([1, 2, 3]).tolist())

    class Unmapped(mmap.mmap):
        def __new__(cls, *_: object, **__: object):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", Unmapped)
    assert engine.load(MODEL).logits([1, 2, 3]).tolist() == expected


# A text model's file with other things in it.

OTHERS = [
    *(Tensor(f"blk.2.{name}.weight", (64, 64), "F16") for name in ("attn_q", "nextn.eh_proj")),
    *(Tensor(name, (512, 512), "F16") for name in ("v.patch_embd.weight", "mm.0.weight")),
    *(
        Tensor(name, (512, 512), "F16")
        for name in ("a.blk.0.attn_q.weight", "v.blk.0.ffn_up.weight")
    ),
    Tensor("blk.0.nextn.eh_proj.weight", (512, 512), "F16"),
]


def test_only_what_the_graph_reads_is_counted_and_loaded(run, tmp_path):
    file, config = open_model(MODEL), read_config(open_model(MODEL).metadata)
    assert config.layers == 2
    more = rewrite(MODEL, tmp_path / "more.gguf", [*all_tensors(MODEL), *OTHERS])
    other = open_model(more)
    machine = Machine("made up", "cpu", 8 << 30, 8 << 30, "available memory")
    for kernels in ("stock", "native"):
        needs = [judge(config, f.tensors, machine, kernels=kernels).need for f in (file, other)]
        assert needs[0] == needs[1]
        traffic = [
            bytes_per_token(config, f.tensors, "cpu", kernels, 0, "f16") for f in (file, other)
        ]
        assert traffic[0] == traffic[1]
    assert count_parameters(config, file.tensors) == count_parameters(config, other.tensors)
    loaded: list[tuple[int, int]] = []
    model = engine.load(more, on_load=lambda done, total: loaded.append((done, total)))
    assert model.logits([1, 2, 3]).tolist() == engine.load(MODEL).logits([1, 2, 3]).tolist()
    assert loaded[-1][1] == sum(info.size_bytes for info in file.tensors.values())
    code, out, _ = run("show", str(more), "--json")
    unread = json.loads(out)["file"]["unread"]
    assert code == 0 and unread["tensors"] == len(OTHERS)
    assert "for drafts, images or audio" in run("show", str(more))[1]


@pytest.mark.parametrize(
    "path", sorted(MODELS.glob("*/model.gguf")), ids=lambda path: path.parent.name
)
def test_the_graph_reads_all_that_is_counted(path: Path, monkeypatch):
    read, blocks = set(), Weights._blocks

    def noted(self, info):
        read.add(info.name)
        return blocks(self, info)

    monkeypatch.setattr(Weights, "_blocks", noted)
    file = open_model(path)
    engine.load(file, kernels="stock")
    assert read == {info.name for info in used_tensors(read_config(file.metadata), file.tensors)}
