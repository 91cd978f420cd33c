"""From a name on a hub to a file on the disk, against a hub on the loopback interface."""

from __future__ import annotations

import io
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import NoSpace, resolve
from catalog.hub.client import RemoteFile
from catalog.store.store import Store
from conifer_cli import acquire
from conifer_cli.errors import Declined, UsageError
from conifer_cli.fit.verdict import FitReport, FitRequest
from conifer_cli.terminal import console
from support.hub_server import COMMIT, Fault, running_hub, sha256
from support.program import MODELS, run_conifer

TINY = (MODELS / "qwen3moe" / "model.gguf").read_bytes()
NAME = "org/tiny/tiny-F32.gguf"


@pytest.fixture
def hub():
    with running_hub() as server:
        server.files[NAME] = TINY
        yield server


def conifer(*arguments, hub, home):
    return run_conifer(*arguments, home=home, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1")


@pytest.mark.process
def test_fit_reads_a_header_and_downloads_nothing(tmp_path, hub):
    done = conifer("fit", "hf:org/tiny", hub=hub, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"verdict: fits" in done.stdout
    assert not list(tmp_path.rglob("*.gguf"))
    assert all("range" in request.headers for request in hub.sent_to("storage"))


@pytest.mark.process
def test_pull_says_what_comes_from_where_and_prints_the_path(tmp_path, hub):
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert done.returncode == 0
    path = Path(done.stdout.decode().strip())
    assert path.read_bytes() == TINY
    said = done.stderr.decode().splitlines()[0]
    assert "tiny-F32.gguf (866.1 kB; " in said and "127.0.0.1" in said and "org/tiny" in said
    assert "licence: not stated)" in said and str(tmp_path / "hf" / "hub") in said


@pytest.mark.process
def test_a_newer_revision_is_reported_and_fetched_only_when_asked(tmp_path, hub):
    first = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path).stdout
    hub.commit = "a" * 40  # the same bytes under another commit are not news
    asked, served = len(hub.requests), hub.bytes_served
    same = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert same.returncode == 0 and b"newer" not in same.stderr
    assert [request.path for request in hub.requests[asked:]] == ["/api/models/org/tiny?blobs=true"]
    newer = TINY[:-1] + bytes([TINY[-1] ^ 1])
    hub.files[NAME], hub.commit = newer, "b" * 40
    said = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert (said.returncode, said.stdout) == (0, first)
    assert b"newer revision: bbbbbbb\nRun `conifer pull hf:org/tiny --update`" in said.stderr
    assert hub.bytes_served == served
    done = conifer("pull", "hf:org/tiny", "--update", "--json", hub=hub, home=tmp_path)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["commit"] == "b" * 40 and document["newer_commit"] is None
    [file] = document["files"]
    assert Path(file["path"]).read_bytes() == newer and file["sha256"] == sha256(newer)


@pytest.mark.process
def test_rm_takes_every_revision_unless_the_name_says_which(tmp_path, hub):
    conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    hub.files[NAME], hub.commit = TINY[:-1] + bytes([TINY[-1] ^ 1]), "b" * 40
    update = ("pull", "hf:org/tiny", "--update")

    def left() -> tuple[int, int]:
        records = (tmp_path / "conifer").glob("pulled/*/*.json")
        return len(list(tmp_path.rglob("tiny-F32.gguf"))), len(list(records))

    assert conifer(*update, hub=hub, home=tmp_path).returncode == 0
    assert left() == (2, 2)
    name = f"hf:org/tiny@{hub.commit}"
    assert conifer("rm", name, "--yes", hub=hub, home=tmp_path).returncode == 0
    assert left() == (1, 1)
    assert conifer(*update, hub=hub, home=tmp_path).returncode == 0
    assert left() == (2, 2)
    done = conifer("rm", "hf:org/tiny", "--yes", hub=hub, home=tmp_path)
    assert (done.returncode, left()) == (0, (0, 0))
    assert done.stderr.count(b"tiny-F32.gguf, 866.1 kB") == 2


@pytest.mark.process
def test_a_model_that_is_here_needs_no_hub(tmp_path, hub):
    first = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path).stdout
    away = run_conifer("pull", "hf:org/tiny", home=tmp_path, HF_HUB_OFFLINE="1")
    assert (away.returncode, away.stdout) == (0, first)
    assert b"cannot check for a newer revision: org/tiny: offline mode is on" in away.stderr
    absent = run_conifer("pull", "hf:org/other", home=tmp_path, HF_HUB_OFFLINE="1")
    assert absent.returncode == 5 and b"HF_HUB_OFFLINE" in absent.stderr


@pytest.mark.process
def test_json_says_what_is_where(tmp_path, hub):
    done = conifer("pull", "hf:org/tiny", "--json", hub=hub, home=tmp_path)
    document = json.loads(done.stdout)
    [file] = document.pop("files")
    assert file["size_bytes"] == len(TINY) and file["sha256"] == sha256(TINY)
    assert document == {
        "name": "hf:org/tiny",
        "model": None,
        "repository": "org/tiny",
        "commit": COMMIT,
        "licence": None,
        "size_bytes": len(TINY),
        "was_here": False,
        "newer_commit": None,
        "verdict": "fits",
    }


def test_no_room_on_the_disk_is_said_before_anyone_is_asked(monkeypatch, capsys, hub):
    monkeypatch.setattr(console, "can_ask", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    target, report = large(2**62)
    file = RemoteFile("org/tiny", "tiny-F32.gguf", 2**62, "a" * 64, "", COMMIT, "main")
    report = replace(report, remote=(file,))
    with pytest.raises(NoSpace, match=r"free up .* more bytes"):
        acquire._download(target, report, FitRequest(), Store(Path("/tmp/a"), Path("/tmp/b")))
    assert capsys.readouterr().err == ""
    with pytest.raises(Declined):  # --force goes past that
        acquire._download(
            target, report, FitRequest(force=True), Store(Path("/tmp/a"), Path("/tmp/b"))
        )


@pytest.mark.process
def test_run_fetches_what_is_not_here(tmp_path, hub):
    words = ("run", "hf:org/tiny", "hi", "--max-tokens", "4", "--seed", "1")
    done = conifer(*words, hub=hub, home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.strip() and done.stderr.startswith(b"conifer: downloading tiny-F32.gguf")


@pytest.mark.process
def test_damaged_bytes_exit_5_and_are_not_kept(tmp_path, hub):
    hub.faults += [Fault("flip", at=500_000)]
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"SHA-256" in done.stderr
    assert not list(tmp_path.rglob("*.gguf")) and not list(tmp_path.rglob("*.header"))
    assert conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path).returncode == 0


@pytest.mark.process
def test_a_file_of_a_type_we_lack_is_refused_before_the_download(tmp_path, hub):
    name = b"token_embd.weight"
    at = TINY.index(name) + len(name) + 4 + 2 * 8  # dims, and then the type
    hub.files[NAME] = TINY[:at] + b"\x0f\x00\x00\x00" + TINY[at + 4 :]  # 15 is Q8_K
    done = conifer("run", "hf:org/tiny", "hi", hub=hub, home=tmp_path)
    assert done.returncode == 3
    assert b"Q8_K" in done.stderr and b"token_embd.weight" in done.stderr
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.process
@pytest.mark.parametrize("name", ["hf:org/none", "hf:org/tiny:Q8_0", "hf:org/tiny/no.gguf"])
def test_what_the_hub_lacks_exits_5(tmp_path, hub, name):
    done = conifer("pull", name, hub=hub, home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")


@pytest.mark.process
def test_a_gated_repository_is_explained(tmp_path, hub):
    hub.gated.add("org/tiny")
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert done.returncode == 5
    assert b"HF_TOKEN" in done.stderr and f"{hub.url}/org/tiny".encode() in done.stderr


@pytest.mark.process
def test_a_licence_that_is_not_open_is_agreed_to_once(tmp_path, hub):
    name = "hf:org/tiny"
    hub.files[NAME] = licensed("llama3.1")
    asked = conifer("pull", name, hub=hub, home=tmp_path)
    assert (asked.returncode, asked.stdout) == (2, b"")
    assert b"llama3.1 licence, which is not open, requires confirmation" in asked.stderr
    assert hub.bytes_served <= len(hub.files[NAME])  # its header
    assert conifer("pull", name, "--yes", hub=hub, home=tmp_path).returncode == 0
    hub.files["org/other/other-F32.gguf"] = hub.files[NAME]
    again = conifer("pull", "hf:org/other", hub=hub, home=tmp_path)
    assert again.returncode == 0 and b"licence: llama3.1)" in again.stderr
    agreed = json.loads((tmp_path / "conifer" / "licences.json").read_text())
    assert list(agreed["agreed"]) == ["llama3.1"]


def licensed(name: str) -> bytes:
    """The tiny model with a licence in its metadata, padded to keep the alignment of all else."""
    key, value = b"general.license", name.encode()
    field = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    filler = b"padding"
    room = -(len(field) + 8 + len(filler) + 4 + 8) % 32
    field += struct.pack("<Q", len(filler)) + filler + struct.pack("<IQ", 8, room) + b" " * room
    (count,) = struct.unpack_from("<Q", TINY, 16)
    return TINY[:16] + struct.pack("<Q", count + 2) + field + TINY[24:]


def large(size_bytes: int) -> tuple[acquire.RequestedModel, FitReport]:
    name = "hf:org/tiny"
    report = FitReport(name, None, verdict=None, size_bytes=size_bytes)  # type: ignore[arg-type]
    return acquire.RequestedModel(name, resolve(name)), report


def test_a_large_transfer_without_a_person_needs_yes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UsageError, match=r"200\.0 MB download requires confirmation"):
        acquire._require_consent(*large(200 * 10**6), FitRequest())
    acquire._require_consent(*large(200 * 10**6), FitRequest(yes=True))
    acquire._require_consent(*large(200 * 10**6 - 1), FitRequest())


@pytest.mark.parametrize(("typed", "agreed"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_a_person_is_asked(monkeypatch, capsys, typed, agreed):
    monkeypatch.setattr(console, "can_ask", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    if agreed:
        acquire._require_consent(*large(10**9), FitRequest())
    else:
        with pytest.raises(Declined):
            acquire._require_consent(*large(10**9), FitRequest())
    assert capsys.readouterr().err == "Download it? [Y/n] "


def test_the_end_of_input_is_no_consent(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert not console.confirm("Download it?")


def test_the_starter_needs_no_consent(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    _, report = large(10**9)
    acquire._require_consent(acquire.locate(None), report, FitRequest())
