"""Names of models on the Hub as people type and paste them, from the command line to the disk."""

from __future__ import annotations

import shutil

import pytest

from catalog import UnknownModel
from conifer_cli.acquire import locate
from conifer_cli.errors import UsageError
from engine.gguf.reader import open_model
from support.gguf_writer import gguf_bytes
from support.hub_server import running_hub
from support.program import MODELS, run_conifer
from support.rewrite import all_tensors

TINY = (MODELS / "qwen3moe" / "model.gguf").read_bytes()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("org/tiny", "hf:org/tiny"),
        ("org/tiny:Q4_K_M", "hf:org/tiny:Q4_K_M"),
        ("org/tiny/b-Q8_0.gguf", "hf:org/tiny/b-Q8_0.gguf"),
        ("org/tiny@v1", "hf:org/tiny@v1"),
    ],
)
def test_bare_repository_means_its_hf_form(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name) == locate(form)
    assert locate(name).name == form


@pytest.mark.parametrize(
    "name", ["./org/tiny", "/org/tiny", "models/tiny", "org/b.gguf", "a/b/c/d"]
)
def test_local_path_is_no_repository(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match="no such file") as caught:
        locate(name)
    assert caught.value.hint == ""


def test_link_to_a_mirror_in_use_is_a_link_to_the_hub(monkeypatch):
    link = "https://mirror.example/org/tiny/blob/main/b.gguf"
    with pytest.raises(UnknownModel, match="not to the Hugging Face Hub"):
        locate(link)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert locate(link).reference.file == "b.gguf"


def with_type(kind):
    """Return the tiny model with a `general.type`."""
    source = MODELS / "qwen3moe" / "model.gguf"
    return gguf_bytes(open_model(source).metadata | {"general.type": kind}, all_tensors(source))


@pytest.mark.process
@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_whose_header_says_that_it_is_no_model_is_passed_over(tmp_path, kind):
    with running_hub() as hub:
        network = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        hub.files["org/tiny/a-Q4_K_M.gguf"] = with_type(kind)
        hub.files["org/tiny/b-Q8_0.gguf"] = hub.files["org/tiny/c-Q8_0.gguf"] = with_type(kind)
        done = run_conifer("fit", "hf:org/tiny", home=tmp_path, **network)
        assert done.returncode == 3
        hub.files["org/tiny/d-Q4_K_M.gguf"] = hub.files["org/tiny/e-Q8_0.gguf"] = TINY
        for quant, name in ((":Q4_K_M", "d-Q4_K_M"), (":Q8_0", "e-Q8_0"), ("", "d-Q4_K_M")):
            done = run_conifer("pull", f"hf:org/tiny{quant}", home=tmp_path, **network)
            assert done.returncode == 0, done.stderr
            assert done.stdout.decode().endswith(f"{name}.gguf\n")
            shutil.rmtree(tmp_path / "hf")
        done = run_conifer("fit", "hf:org/tiny/a-Q4_K_M.gguf", home=tmp_path, **network)
        assert done.returncode == 3


@pytest.mark.process
def test_every_command_finds_a_model_however_its_repository_is_typed(tmp_path):
    with running_hub() as hub:
        hub.files["Org/Tiny-GGUF/tiny-F32.gguf"] = TINY
        hub.files["Org/Tiny-GGUF/tiny-draft-F32.gguf"] = TINY[:-1]
        hub.renamed = dict.fromkeys(("org/tiny-gguf", "old/name"), "Org/Tiny-GGUF")
        network = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        for name in ("hf:org/tiny-gguf", "hf:old/name"):
            assert run_conifer("pull", name, home=tmp_path, **network).returncode == 0
        assert hub.bytes_served <= 2 * len(TINY)
    for command in ("show", "fit", "verify"):
        for name in ("hf:ORG/TINY-gguf", "hf:Old/Name", "huggingface.co/org/tiny-GGUF"):
            done = run_conifer(command, name, home=tmp_path, HF_HUB_OFFLINE="1")
            assert (done.returncode, done.stderr) == (0, b""), (command, name)
    done = run_conifer("list", home=tmp_path)
    assert done.stdout.count(b"hf:Org/Tiny-GGUF/tiny-F32.gguf") == 1
    done = run_conifer("rm", "hf:org/tiny-gguf", "--yes", home=tmp_path)
    assert done.returncode == 0
    assert not list(tmp_path.rglob("*.gguf"))
    assert not list((tmp_path / "conifer" / "pulled").rglob("*.json"))
