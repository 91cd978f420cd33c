"""Names of models on the Hub as people type and paste them, from the command line to the disk."""

from __future__ import annotations

import pytest

from catalog import UnknownModel
from conifer_cli.acquire import locate
from conifer_cli.errors import UsageError
from support.hub_server import running_hub
from support.program import MODELS, run_conifer

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
def test_bare_repository_gets_its_hf_form(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such file") as caught:
        locate(name)
    assert caught.value.hint == f"For org/tiny on the Hugging Face Hub, write `{form}`."


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
