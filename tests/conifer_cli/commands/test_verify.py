"""`conifer verify`, and `rm` with what is ours and what is another tool's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from support.hub_server import running_hub, sha256
from support.program import MODELS, run_conifer

pytestmark = pytest.mark.process

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
    assert f"expected SHA-256 {sha256(TINY)}".encode() in done.stderr
    assert b"then `conifer pull hf:org/tiny/tiny-F32.gguf`" in done.stderr
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
    assert b"nothing to remove" in conifer("rm", "--all", "--yes", home=tmp_path).stderr


def test_rm_all_leaves_what_another_tool_fetched_from_the_same_repository(tmp_path, here):
    commit = here.parents[0]
    theirs = [commit / "sub" / here.name, commit.with_name("a" * 40) / here.name]
    for number, path in enumerate(theirs):
        data = OTHER + bytes([number])
        blob = here.resolve().with_name(sha256(data))
        blob.write_bytes(data)
        path.parent.mkdir()
        path.symlink_to(blob)
    done = conifer("rm", "--all", "--yes", home=tmp_path)
    assert done.returncode == 0
    assert not here.exists() and all(path.exists() for path in theirs)
    assert str(here) in done.stderr.decode()
    assert not [path for path in theirs if str(path) in done.stderr.decode()]


# The names on the page, and examples of them.
EXAMPLES = {
    "ORG": "org",
    "NAME": "tiny",
    "MODEL": "0123456789abcdef",
    "*.prompt": f"{16 * 'a0'}.prompt",
    "*": "x",
}


def test_rm_all_removes_whatever_the_page_on_files_lists_and_nothing_else(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "files.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `CONIFER_HOME/")]
    home, ours = tmp_path / "conifer", []
    for row in rows:
        name = row.split("`")[1].partition("/")[2]
        for placeholder, example in EXAMPLES.items():
            name = name.replace(placeholder, example)
        inside = {"models/smollm2-135m/": "SmolLM2-135M-Instruct.Q4_1.gguf", "models/.fetch-x": "a"}
        ours.append(home / name / inside.get(name, ""))
    ours += [
        home / f"{folder}.{name}.0123abcd.tmp"  # as a kill leaves them
        for folder, name in (
            *(("", "history"), ("", "ledger.jsonl"), ("", "licences.json")),
            *((f"{room}/models--org--tiny/", "x.json") for room in ("headers", "pulled")),
            ("prompts/0123456789abcdef/", "x.prompt"),
        )
    ]
    mine = [
        home / name
        for name in (
            *("models/mine.gguf", "models/smollm2-135m.gguf", "prompts/mine/note.prompt"),
            *("prompts/note.prompt", "headers/mine.header", "headers/mine/a.header"),
            *("pulled/mine.json", "pulled/mine/a.json", "history.txt", "config.toml"),
        )
    ]
    for path in (*ours, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert len(ours) >= 7
    done = conifer("rm", "--all", "--yes", home=tmp_path)
    assert done.returncode == 0
    left = [path for path in home.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(mine)
    assert all(any(path.iterdir()) for path in home.rglob("*") if path.is_dir())


def test_rm_all_leaves_folders_that_have_the_names_of_ours(tmp_path):
    home = tmp_path / "conifer"
    mine = [home / "history" / "rome.txt", home / "ledger.jsonl" / "a", home / "models" / "a.gguf"]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert b"nothing to remove" in conifer("rm", "--all", "--yes", home=tmp_path).stderr
    assert all(path.exists() for path in mine)
