"""`conifer verify`, and `rm` with what is ours and what is another tool's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from support.hub_server import running_hub, sha256
from support.program import MODELS, run_conifer

TINY = (MODELS / "qwen3moe" / "model.gguf").read_bytes()
OTHER = (MODELS / "llama" / "model.gguf").read_bytes()


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    """A home with org/tiny, which Conifer pulled, and org/other, which another tool did."""
    home = tmp_path_factory.mktemp("pulled")
    with running_hub() as hub:
        hub.files |= {"org/tiny/tiny-F32.gguf": TINY, "org/other/other-F32.gguf": OTHER}
        for name in ("hf:org/tiny", "hf:org/other"):
            assert conifer("pull", name, home=home, HF_ENDPOINT=hub.url).returncode == 0
    for record in (home / "conifer" / "pulled").glob("*other/*"):
        record.unlink()
    return home


@pytest.fixture
def here(tmp_path, pulled):
    """The file of org/tiny in a copy of that home."""
    shutil.copytree(pulled, tmp_path, symlinks=True, dirs_exist_ok=True)
    [path] = tmp_path.rglob("snapshots/*/tiny-F32.gguf")
    return path


def conifer(*arguments, home, **more):
    return run_conifer(*arguments, home=home, NO_PROXY="127.0.0.1", **more)


def test_sound_models_are_ok(tmp_path, here):
    done = conifer("verify", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert [row[:2] for row in rows] == [
        ["hf:org/other/other-F32.gguf", "ok"],
        ["hf:org/tiny/tiny-F32.gguf", "ok"],
    ]


def test_a_damaged_model_exits_3_and_says_how_to_repair_it(tmp_path, here):
    blob = here.resolve()
    blob.chmod(0o644)
    blob.write_bytes(TINY[:-1] + b"!")
    done = conifer("verify", "hf:org/tiny", home=tmp_path)
    assert done.returncode == 3
    assert b"damaged" in done.stdout
    assert f"expected {sha256(TINY)}".encode() in done.stderr
    assert b"`conifer pull hf:org/tiny/tiny-F32.gguf` fetch it again" in done.stderr
    [check] = json.loads(conifer("verify", "hf:org/tiny", "--json", home=tmp_path).stdout)
    assert check["outcome"] == "damaged" and check["expected_sha256"] == sha256(TINY)


def test_a_file_without_a_hash_is_not_called_sound(tmp_path, here):
    for pointer in (tmp_path / "hf").rglob("other-F32.gguf"):
        pointer.unlink()
        pointer.write_bytes(OTHER)  # copied there by hand
    done = conifer("verify", "hf:org/other", home=tmp_path)
    assert done.returncode == 0 and b"no hash is known" in done.stdout


def test_a_file_without_links_is_held_to_the_hash_of_its_record(tmp_path, here):
    blob = here.resolve()
    here.unlink()
    blob.rename(here)  # as on a file system that has no links
    assert b" ok " in conifer("verify", "hf:org/tiny", home=tmp_path).stdout
    here.chmod(0o644)
    here.write_bytes(TINY[:-1] + b"!")
    assert conifer("verify", "hf:org/tiny", home=tmp_path).returncode == 3


@pytest.mark.parametrize(
    "arguments", [("verify",), ("verify", "hf:org/none"), ("rm", "--all", "x")]
)
def test_nothing_to_do_is_usage(tmp_path, arguments):
    assert conifer(*arguments, home=tmp_path).returncode == 2


def test_rm_all_takes_what_is_ours_and_leaves_what_is_not(tmp_path, here):
    home = tmp_path / "conifer"
    part = here.resolve().with_name("0" * 64 + ".00000000-1-0.part")
    for file in (part, part.with_suffix(".json"), home / "mine.txt"):
        file.write_bytes(b"x" * 10)
    os.utime(part, (1, 1))
    asked = conifer("rm", "--all", home=tmp_path)
    assert asked.returncode == 2 and b"--yes" in asked.stderr and part.exists()
    done = conifer("rm", "--all", "--yes", home=tmp_path)
    assert done.returncode == 0
    said = done.stderr.decode()
    assert "hf:org/tiny/tiny-F32.gguf" in said and str(part) in said and "other" not in said
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    names = {"main", "mine.txt", "other-F32.gguf", sha256(OTHER)}
    assert {path.name for path in left} == names
    assert [p.name for p in home.iterdir()] == ["mine.txt"]
    assert b"nothing of ours" in conifer("rm", "--all", "--yes", home=tmp_path).stderr


def test_rm_all_removes_whatever_the_page_on_files_lists():
    from conifer_cli.remove import OURS

    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `CONIFER_HOME/")]
    listed = {row.split("`")[1].split("/")[1] for row in rows}
    assert listed <= set(OURS)
