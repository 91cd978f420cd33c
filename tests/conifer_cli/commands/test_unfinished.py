"""Unfinished downloads: seen by `list` and `doctor`, removed by `rm`, left alone while they run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.store import manifest
from conifer_cli.terminal.format import size
from support.gguf_writer import Tensor
from support.hub_server import HubServer, running_hub
from support.program import MODELS, command, environment, run_conifer
from support.rewrite import all_tensors, rewrite

pytestmark = pytest.mark.process

MIB = 2**20
TINY = MODELS / "qwen3moe" / "model.gguf"
NAME = "hf:org/big/big-Q8_0.gguf"


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> bytes:
    """The tiny model with 16 MiB of other weights."""
    noise = os.urandom(16 * MIB)
    tensors = [*all_tensors(TINY), Tensor("noise.weight", (4096, 1024), "F32", noise)]
    return rewrite(TINY, tmp_path_factory.mktemp("big") / "big.gguf", tensors).read_bytes()


@pytest.fixture
def hub(big) -> Iterator[HubServer]:
    with running_hub() as server:
        server.files["org/big/big-Q8_0.gguf"] = big
        yield server


def conifer(*arguments: str, home: Path, hub: HubServer, **more: str):
    return run_conifer(*arguments, home=home, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1", **more)


def start(hub: HubServer, home: Path) -> subprocess.Popen[bytes]:
    """Begin to pull the big model, and wait until some of it is here."""
    hub.throttle_bytes_per_s = 4 * MIB
    process = subprocess.Popen(
        [*command(), "pull", NAME, "--yes"],
        env=environment(home, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while hub.bytes_served < 6 * MIB:  # the first 4 MiB are the header's
        assert process.poll() is None
        time.sleep(0.01)
    hub.throttle_bytes_per_s = MIB // 16  # the rest would take minutes
    return process


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.wait()


def test_an_unfinished_download_is_listed_counted_and_removed_by_name(hub, tmp_path, big):
    stop(start(hub, tmp_path))
    [row] = conifer("list", home=tmp_path, hub=hub).stdout.decode().splitlines()[1:]
    assert row.startswith(f"{NAME}  ")
    assert f" of {size(len(big))}  " in row and "  (unfinished)  " in row
    [document] = json.loads(conifer("list", "--json", home=tmp_path, hub=hub).stdout)
    assert (document["name"], document["state"]) == (NAME, "unfinished")
    assert MIB < document["present_bytes"] < document["size_bytes"] == len(big)
    examined = conifer("doctor", "--json", home=tmp_path, hub=hub, HF_HUB_OFFLINE="1").stdout
    [cache] = [c for c in json.loads(examined)["checks"] if c["name"] == "cache"]
    assert "0 models" in cache["detail"] and "1 unfinished download (" in cache["detail"]
    refused = conifer("rm", "hf:org/other", "--yes", home=tmp_path, hub=hub)
    assert refused.returncode == 2 and list(tmp_path.rglob("*.part"))
    done = conifer("rm", "hf:org/big", "--yes", home=tmp_path, hub=hub)
    assert (done.returncode, done.stdout) == (0, b"")
    assert NAME.encode() in done.stderr and b" MB freed" in done.stderr
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".lock", ".header")]
    assert left == []
    assert conifer("list", "--json", home=tmp_path, hub=hub).stdout == b"[]\n"


def test_an_unfinished_download_without_a_record_goes_by_its_repository(hub, tmp_path):
    stop(start(hub, tmp_path))
    shutil.rmtree(tmp_path / "conifer")
    [document] = json.loads(conifer("list", "--json", home=tmp_path, hub=hub).stdout)
    assert document["name"] == "hf:org/big" and document["commit"] is None
    assert conifer("rm", "hf:org/big", "--yes", home=tmp_path, hub=hub).returncode == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_model_that_lacks_a_part_is_unfinished(hub, tmp_path, big):
    hub.files = {f"org/big/big-Q8_0-0000{n}-of-00002.gguf": big for n in (1, 2)}
    hub.files["org/big/big-Q8_0-00002-of-00002.gguf"] = big[:-1]
    # what a pull leaves that was ended between two files
    from catalog import resolve
    from catalog.download.pull import pull
    from catalog.hub.client import Hub
    from catalog.store.store import Store

    store = Store(tmp_path / "conifer", tmp_path / "hf" / "hub")
    client = Hub(endpoint=hub.url)
    files = client.find(resolve("hf:org/big:Q8_0"))
    manifest.write(store.home, store.hub_cache, files)
    pull(client, files[:1], store)
    [document] = json.loads(conifer("list", "--json", home=tmp_path, hub=hub).stdout)
    assert document["state"] == "unfinished"
    assert (document["present_bytes"], document["size_bytes"]) == (len(big), 2 * len(big) - 1)
    assert conifer("rm", "hf:org/big:Q8_0", "--yes", home=tmp_path, hub=hub).returncode == 0
    assert not list(tmp_path.rglob("*.gguf")) and not list(tmp_path.rglob("pulled/*/*"))


def test_a_pull_in_progress_is_shown_and_left_alone(hub, tmp_path, big):
    process = start(hub, tmp_path)
    [document] = json.loads(conifer("list", "--json", home=tmp_path, hub=hub).stdout)
    assert document["state"] == "downloading"
    refused = conifer("rm", "hf:org/big", "--yes", home=tmp_path, hub=hub)
    assert refused.returncode == 2 and b"is being downloaded" in refused.stderr
    swept = conifer("rm", "--all", "--yes", home=tmp_path, hub=hub)
    assert swept.returncode == 0 and b"keeping its files" in swept.stderr
    assert len(manifest.read(tmp_path / "conifer")) == 1
    hub.throttle_bytes_per_s = 0
    assert process.wait(60) == 0
    assert b" ok " in conifer("verify", home=tmp_path, hub=hub).stdout
    assert conifer("rm", "--all", "--yes", home=tmp_path, hub=hub).returncode == 0
    assert not list(tmp_path.rglob("*.gguf")) and not (tmp_path / "conifer" / "pulled").exists()


def test_rm_all_under_another_cache_keeps_the_records_of_what_it_leaves(hub, tmp_path):
    assert conifer("pull", "hf:org/big", home=tmp_path, hub=hub).returncode == 0
    records = manifest.read(tmp_path / "conifer")
    other = {"HF_HOME": str(tmp_path / "other")}
    assert conifer("rm", "--all", "--yes", home=tmp_path, hub=hub, **other).returncode == 0
    assert manifest.read(tmp_path / "conifer") == records
    assert conifer("pull", "hf:org/big", home=tmp_path, hub=hub, **other).returncode == 0
    assert conifer("rm", "--all", "--yes", home=tmp_path, hub=hub, **other).returncode == 0
    assert not list((tmp_path / "other").rglob("*.gguf"))
    assert len(manifest.read(tmp_path / "conifer")) == 1
    assert conifer("rm", "--all", "--yes", home=tmp_path, hub=hub).returncode == 0
    assert not list(tmp_path.rglob("*.gguf")) and not (tmp_path / "conifer" / "pulled").exists()


# What a C library may refuse; each function has the arguments that a caller passes in registers.
CALLS = {
    "chmod": ("chmod", "fchmod", "fchmodat"),
    "fsync": ("fsync", "fdatasync"),
    "symlinks": ("symlink", "symlinkat"),
    "locks": ("flock",),
    "rename": ("rename", "renameat", "renameat2"),
    "": (
        *("link", "linkat", "utimensat", "futimens", "statvfs", "statvfs64", "fstatvfs64"),
        *("posix_fallocate", "copy_file_range", "sendfile", "sendfile64", "setxattr", "fsetxattr"),
    ),
}
ALL = tuple(call for calls in CALLS.values() for call in calls)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(
    ("error", "calls", "words"),
    [
        ("EPERM", CALLS["chmod"], "chmod"),
        ("ENOSYS", CALLS["rename"] + CALLS[""], "rename"),
        ("ENOTSUP", ALL, "chmod or fsync or locks or rename or symlinks"),
        ("EINVAL", ALL, "chmod or fsync or locks or rename or symlinks"),
    ],
)
def test_a_system_that_refuses_calls_is_told_once(hub, tmp_path, error, calls, words):
    data = hub.files["org/big/big-Q8_0.gguf"] = TINY.read_bytes()
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    lines = [
        f"long {call}(long a, long b, long c) {{ errno = {error}; return -1; }}" for call in calls
    ]
    source.write_text("#include <errno.h>\n" + "\n".join(lines))
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", library, source], check=True)
    preload = {"LD_PRELOAD": str(library)}

    def run(*arguments: str):
        return conifer(*arguments, home=tmp_path, hub=hub, **preload)

    done = run("pull", "hf:org/big")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.decode().strip()).read_bytes() == data
    assert done.stderr.count(f"does not support {words};".encode()) == 1
    served = hub.bytes_served
    again = run("pull", "hf:org/big", "--json")
    assert again.returncode == 0 and b"not support" not in again.stderr
    assert json.loads(again.stdout)["files"][0]["sha256"] is not None
    assert hub.bytes_served == served
    assert b" ok " in run("verify").stdout and NAME.encode() in run("list").stdout
    assert run("run", "hf:org/big", "hi", "--max-tokens", "2").returncode == 0
    assert run("rm", "hf:org/big", "--yes").returncode == 0
    assert run("list", "--json").stdout == b"[]\n"
