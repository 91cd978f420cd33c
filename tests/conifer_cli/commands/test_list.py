"""`conifer list`, `show` and `rm` on a small hub cache made by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from conifer_cli.commands.list import list_catalog
from engine.errors import BackendError
from support.hub_server import running_hub
from support.program import MODELS, know_bandwidth, run_conifer, run_unplugged

pytestmark = pytest.mark.process

COMMIT = "0" * 40


@pytest.fixture
def cached(tmp_path):
    """A home in which the hub cache holds org/tiny at one commit; the path of its blob."""
    folder = tmp_path / "hf" / "hub" / "models--org--tiny"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    blob = folder / "blobs" / ("a" * 64)
    shutil.copy(MODELS / "qwen3moe" / "model.gguf", blob)
    (folder / "snapshots" / COMMIT / "tiny-F32.gguf").symlink_to(f"../../blobs/{blob.name}")
    return blob


def test_an_empty_home_lists_nothing(tmp_path):
    done = run_conifer("list", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert run_conifer("list", "--json", home=tmp_path).stdout == b"[]\n"


def test_a_cached_model_is_listed_with_its_size_and_place(tmp_path, cached):
    done = run_conifer("list", home=tmp_path)
    heading, row = done.stdout.decode().splitlines()
    assert heading.split() == ["NAME", "SIZE", "VERDICT", "MODIFIED", "WHERE"]
    assert row.startswith("hf:org/tiny/tiny-F32.gguf  866.1 kB  ")
    [model] = json.loads(run_conifer("list", "--json", home=tmp_path).stdout)
    assert model["size_bytes"] == cached.stat().st_size


def test_a_listed_name_runs_from_the_cache(tmp_path, cached):
    for name in ("hf:org/tiny/tiny-F32.gguf", "hf:org/tiny"):
        short = ("--max-tokens", "2", "--temperature", "0")
        done = run_conifer("run", name, "hi", *short, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")


def test_show_tells_what_the_header_says(tmp_path, cached):
    done = run_conifer("show", "hf:org/tiny", home=tmp_path)
    assert done.returncode == 0
    assert "qwen3moe" in done.stdout.decode() and "2 of 8" in done.stdout.decode()
    shown = json.loads(run_conifer("show", "hf:org/tiny", "--json", home=tmp_path).stdout)
    assert shown["catalog"] is None and shown["file"]["config"]["experts"]["count"] == 8


def test_show_says_what_an_expert_weighs_and_what_a_token_reads(tmp_path, cached):
    shown = json.loads(run_conifer("show", "hf:org/tiny", "--json", home=tmp_path).stdout)["file"]
    config, experts, moved = shown["config"], shown["experts"], shown["bytes_per_token"]
    single = 3 * config["width"] * config["experts"]["width"] * 4  # gate, up and down in F32
    assert (experts["count"], experts["used"], experts["shared"]) == (8, 2, 0)
    assert (experts["layers"], experts["expert_bytes"]) == (config["layers"], single)
    assert moved["routed"] == config["layers"] * experts["used"] * single
    assert moved["total"] == moved["always"] + moved["routed"]
    values = 2 * config["layers"] * config["kv_heads"][0] * config["key_dim"]
    assert shown["kv_bytes_per_1000_tokens"]["f16"] == 1000 * 2 * values
    assert (shown["tokenizer"]["model"], shown["state_bytes"]) == ("gpt2", 0)


def test_show_and_fit_tell_what_a_file_is_made_of(tmp_path):
    path = MODELS / "qwen3moe-Q4_K_M" / "model.gguf"
    with running_hub() as hub:
        hub.files["org/mix/m-Q4_K_M.gguf"] = path.read_bytes()
        know_bandwidth(tmp_path)
        remote = run_conifer("fit", "hf:org/mix", home=tmp_path, HF_ENDPOINT=hub.url)
    told = [run_unplugged(*asked, home=tmp_path) for asked in (("fit", path), ("show", path))]
    kept = run_unplugged("show", "hf:org/mix", home=tmp_path)
    sizes = json.loads(run_unplugged("show", path, "--json", home=tmp_path).stdout)["file"]
    judged = json.loads(run_unplugged("fit", path, "--json", home=tmp_path).stdout)
    assert sizes["type_bytes"] == judged["type_bytes"]
    assert sum(sizes["type_bytes"].values()) < sizes["size_bytes"]
    assert list(sizes["type_bytes"].values()) == sorted(sizes["type_bytes"].values(), reverse=True)
    words = ", ".join(
        f"{name} {100 * part / sum(sizes['type_bytes'].values()):.0f} %"
        for name, part in sizes["type_bytes"].items()
    )
    for done in (remote, *told, kept):
        assert words in done.stdout.decode(), done.stderr


def test_nothing_is_made_up_about_a_file_whose_header_is_unknown(tmp_path):
    know_bandwidth(tmp_path)
    name = "qwen3-30b-a3b:Q4_K_M"
    judged = run_unplugged("fit", name, "--json", home=tmp_path, memory_bytes=1 << 30)
    assert json.loads(judged.stdout)["type_bytes"] is None
    for command in ("fit", "show"):
        done = run_unplugged(command, name, home=tmp_path, memory_bytes=1 << 30)
        assert b"made of" not in done.stdout


def test_show_tells_what_a_kept_header_says(tmp_path):
    with running_hub() as hub:
        hub.files["org/tiny/tiny-F32.gguf"] = (MODELS / "lfm2moe" / "model.gguf").read_bytes()
        know_bandwidth(tmp_path)
        assert run_conifer("show", "hf:org/tiny", home=tmp_path).returncode == 2
        assert run_conifer("fit", "hf:org/tiny", home=tmp_path, HF_ENDPOINT=hub.url).returncode == 0
    done = run_unplugged("show", "hf:org/tiny", "--json", home=tmp_path)
    shown = json.loads(done.stdout)["file"]
    assert (done.returncode, shown["paths"]) == (0, [])
    assert shown["state_bytes"] > 0
    assert b"cached header" in run_unplugged("show", "hf:org/tiny", home=tmp_path).stdout


def test_show_of_a_catalog_model_needs_no_file(tmp_path):
    done = run_conifer("show", "qwen3-30b-a3b", home=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "30.5B, 3.3B active" in text and "8 of 128" in text and "Apache-2.0" in text
    shown = json.loads(run_conifer("show", "qwen3-30b-a3b", "--json", home=tmp_path).stdout)
    assert shown["catalog"]["experts"] == 128 and shown["file"] is None


def test_rm_needs_yes_where_nobody_can_be_asked(tmp_path, cached):
    done = run_conifer("rm", "hf:org/tiny", home=tmp_path)
    assert done.returncode == 2
    assert b"--yes" in done.stderr and cached.exists()


def test_rm_shows_what_goes_and_frees_it(tmp_path, cached):
    done = run_conifer("rm", "hf:org/tiny", "--yes", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"866.1 kB freed" in done.stderr and not cached.exists()
    assert run_conifer("rm", "hf:org/tiny", "--yes", home=tmp_path).returncode == 2


def test_rm_of_one_model_under_two_names_removes_it_once(tmp_path, cached):
    names = ("hf:org/tiny", "hf:org/tiny/tiny-F32.gguf")
    done = run_conifer("rm", *names, "--yes", home=tmp_path)
    assert (done.returncode, done.stderr.count(b"tiny-F32.gguf, 866.1 kB")) == (0, 1)
    assert b"866.1 kB freed" in done.stderr


def test_a_damaged_file_that_was_fetched_is_fetched_again(tmp_path, cached):
    cached.write_bytes(cached.read_bytes()[:5000])
    for command in ("show", "fit"):
        done = run_conifer(command, "hf:org/tiny", home=tmp_path)
        assert done.returncode == 3
        assert b"`conifer rm hf:org/tiny`, then `conifer pull hf:org/tiny`" in done.stderr


def test_a_model_of_the_cache_runs_without_a_socket(tmp_path, cached):
    short = ("--max-tokens", "2", "--temperature", "0")
    done = run_unplugged("run", "hf:org/tiny", "hi", *short, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_metadata_cannot_drive_the_terminal(tmp_path):
    data = (MODELS / "qwen3moe" / "model.gguf").read_bytes()
    name = b"general.name\x08\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00qwen3moe"
    assert name in data
    path = tmp_path / "evil.gguf"
    path.write_bytes(data.replace(name, name[:-8] + b"a\x1b[2J\rb\x07"))
    done = run_conifer("show", str(path), home=tmp_path)
    assert done.returncode == 0
    assert not set(done.stdout) & {0x1B, 0x07, 0x0D}


def test_the_catalog_is_listed_without_a_backend(monkeypatch, capsys):
    def none(idle: bool = False):
        raise BackendError("MLX has no backend here")

    monkeypatch.setattr("engine.fit.machine.this_machine", none)
    assert list_catalog(as_json=False) == 0
    assert "unknown" in capsys.readouterr().out
