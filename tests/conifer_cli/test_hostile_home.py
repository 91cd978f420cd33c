"""Anything may lie in Conifer's folders in place of its files: no traceback, no wait."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog import licences, resolve
from catalog.hub.header_cache import HeaderCache
from catalog.store import manifest
from catalog.store.store import Store
from conifer_cli.chat import line_editor
from conifer_cli.fit import run_history
from support.program import MODELS, UNPLUGGED, environment, run_unplugged

TINY = MODELS / "qwen3moe" / "model.gguf"
COMMIT = "0" * 40
DIGITS = "9" * 5000


def file(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**30)


def bind(path: Path) -> None:
    where = Path(tempfile.mkdtemp()) / "s"  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(where))
    shutil.move(where, path)
    where.parent.rmdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def cannot_read(path: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0)


def rows(**odd: object) -> Callable[[Path], None]:
    """A ledger in which each line has the right form but for one value."""
    run = {
        "format": 1,
        "kind": "run",
        "date": "2026-01-01",
        "machine": "m",
        "model": "a",
        "file": "a.gguf",
        "size_bytes": 1,
        "kernels": "native",
        "backend": "cpu",
        "kv_type": "f16",
        "layers": 1,
        "depth": 1,
        "weights_bytes": 1,
        "kv_bytes": 1,
        "decode_per_s": 1.0,
        "prefill_per_s": 1.0,
        "peak_bytes": 1,
        "predicted_bytes": 1,
    }
    return file(json.dumps(run | odd).encode() + b"\n")


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "socket": bind,
    "loop": loop,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "unreadable": cannot_read,
    "gigabyte": sparse,
    "empty": file(b""),
    "not UTF-8": file(b"\xff\xfe\x00" * 100),
    "nested": file(b"[" * 100_000),
    "nested objects": file(b'{"format":' * 100_000),
    "digits": file(f'{{"format": 1, "kind": "run", "size_bytes": {DIGITS}}}'.encode()),
    "NaN": file(b'{"format": 1, "agreed": NaN, "kind": "bandwidth", "bytes_per_s": Infinity}'),
    "huge": file(b'{"format": 1, "kind": "bandwidth", "machine": "m", "bytes_per_s": 1e999}'),
    "list": file(b"[1, 2, 3]"),
    "null": file(b"null\n"),
    "surrogate": file(b'{"format": 1, "agreed": {"\\ud800": 1}, "kind": "\\udfff"}'),
    "zero layers": rows(layers=0, weights_bytes=0, kv_bytes=0),
    "other kernels": rows(kernels="of another planet"),
    "negative": rows(depth=-1, peak_bytes=-(2**70)),
    "tiny rate": rows(decode_per_s=5e-324),
    "odd text": rows(model="\ud800", date=""),
}
PLACES = (
    *("ledger.jsonl", "history", "licences.json", "pulled", "headers", "prompts", "models"),
    f"pulled/models--org--tiny/{'a' * 64}.json",
    "headers/models--org--tiny/tiny-F32.gguf.header",
    *("hub/models--org--tiny/refs/main", "hub/models--org--tiny/snapshots"),
    f"hub/models--org--tiny/snapshots/{COMMIT}/tiny-F32.gguf",
    f"hub/models--org--tiny/blobs/{'a' * 64}.00000000-1-0.part",
    f"hub/models--org--tiny/blobs/{'a' * 64}.00000000-1-0.json",
    *("hub", "hub/.locks", "hub/models--org--tiny", "hub/models--org--tiny/blobs"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_every_reader_takes_anything_for_nothing(home: Path, place: str, kind: str) -> None:
    path = home / place
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)
    store = Store(home, home / "hub")
    reference = resolve("hf:org/tiny")
    assert run_history.runs() == [] or kind in ("odd text",)
    assert all(isinstance(date, str) for date in licences.agreed(home).values())
    assert manifest.read(home) == []
    assert HeaderCache(home).find(reference) is None
    assert line_editor.read_history(home / "history") == []
    store.installed()
    store.find(reference)
    from catalog.download.unfinished import active_files, unfinished

    unfinished(store)
    active_files(store)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "gigabyte", "loop"])
@pytest.mark.parametrize("place", ["ledger.jsonl", "history"])
def test_nothing_is_appended_to_another_kind_of_file(home: Path, place: str, kind: str) -> None:
    KINDS[kind](home / place)
    before = (home / place).lstat()
    run_history.append("run", {})
    line_editor.add_to_history(home / "history", "hello")
    after = (home / place).lstat()
    replaced = (place, kind) in (("ledger.jsonl", "gigabyte"), ("history", "loop"))
    assert replaced or stat.S_IFMT(before.st_mode) == stat.S_IFMT(after.st_mode)
    assert replaced or after.st_size <= before.st_size


def test_a_ledger_that_is_too_large_begins_anew(home: Path) -> None:
    sparse(home / "ledger.jsonl")
    run_history.append("run", {})
    assert (home / "ledger.jsonl").stat().st_size < 100


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "code"),
    [("pipe", 2), ("folder", 2), ("device", 2), ("gigabyte", 2), ("loop", 2), ("digits", 2)],
)
def test_a_config_file_of_another_kind_is_named(tmp_path: Path, kind: str, code: int) -> None:
    config = tmp_path / "conifer" / "config.toml"
    config.parent.mkdir()
    KINDS[kind](config)
    if kind == "digits":
        config.write_text(f"context = {DIGITS}\n")
    done = run_unplugged("list", home=tmp_path, timeout_s=30)
    assert done.returncode == code and str(config).encode() in done.stderr
    assert b"Traceback" not in done.stderr and b"Errno" not in done.stderr


@pytest.mark.process
def test_a_config_file_that_is_no_file_at_all_is_nothing(tmp_path: Path) -> None:
    config = tmp_path / "conifer" / "config.toml"
    config.parent.mkdir()
    config.symlink_to(os.devnull)
    done = run_unplugged("list", home=tmp_path)
    assert done.returncode == 0


HOMES: dict[str, Callable[[Path], Path]] = {
    "unreadable": lambda folder: locked(folder),
    "too long": lambda folder: folder / ("x" * 300),
    "a loop": lambda folder: looped(folder),
    "a file": lambda folder: filed(folder),
    "a pipe": lambda folder: piped(folder),
}


def locked(folder: Path) -> Path:
    (folder / "locked").mkdir(mode=0)
    return folder / "locked"


def looped(folder: Path) -> Path:
    loop(folder / "loop")
    return folder / "loop"


def filed(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def piped(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


# Run a program without root's power to read and write what permissions forbid (capabilities 1, 2).
AS_ANYBODY = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
MEMORY = str(16 << 30)


@pytest.mark.process
@pytest.mark.parametrize("variable", ["CONIFER_HOME", "HF_HOME"])
@pytest.mark.parametrize("kind", HOMES)
def test_a_path_runs_whatever_the_home_is(tmp_path: Path, variable: str, kind: str) -> None:
    place = HOMES[kind](tmp_path)
    model = tmp_path / "tiny.gguf"
    shutil.copy(TINY, model)
    where = environment(tmp_path, **{variable: str(place)})
    asked = ("run", str(model), "hi", "--max-tokens", "2", "--temperature", "0")
    done = subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, sys.executable, "-P", "-c", UNPLUGGED, MEMORY, *asked],
        env=where,
        cwd=tmp_path,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    notes = [line for line in done.stderr.splitlines() if b"no answer: " not in line]
    assert b"Traceback" not in done.stderr and len(notes) <= 1


COMMANDS = (("list",), ("doctor",), ("rm", "--all", "--yes"), ("verify",), ("config",), ("chats",))


@pytest.mark.process
@pytest.mark.parametrize("variable", ["CONIFER_HOME", "HF_HOME"])
@pytest.mark.parametrize("kind", [kind for kind in HOMES if kind != "unreadable"])
@pytest.mark.parametrize("asked", COMMANDS)
def test_no_command_breaks_on_a_home(
    tmp_path: Path, variable: str, kind: str, asked: tuple[str, ...]
) -> None:
    place = HOMES[kind](tmp_path)
    more = {variable: str(place), "HF_HUB_OFFLINE": "1"}
    done = run_unplugged(*asked, home=tmp_path, timeout_s=30, **more)
    assert done.returncode in (0, 1, 2, 5)
    assert b"Traceback" not in done.stderr and b"Errno" not in done.stderr + done.stdout
