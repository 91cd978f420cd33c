"""From a name on a hub to a file on the disk, against a hub on the loopback interface."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from catalog import resolve
from conifer_cli import prepare, terminal
from conifer_cli.errors import Declined, UsageError
from conifer_cli.verdict import Judged, Wishes
from support.hub_server import Fault, running_hub
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


def test_fit_reads_a_header_and_downloads_nothing(tmp_path, hub):
    done = conifer("fit", "hf:org/tiny", hub=hub, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"verdict: fits" in done.stdout
    assert not list(tmp_path.rglob("*.gguf"))
    assert all("range" in request.headers for request in hub.sent_to("storage"))


def test_pull_says_what_comes_from_where_and_prints_the_path(tmp_path, hub):
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert done.returncode == 0
    path = Path(done.stdout.decode().strip())
    assert path.read_bytes() == TINY
    said = done.stderr.decode().splitlines()[0]
    assert "tiny-F32.gguf, 866.1 kB" in said and "127.0.0.1" in said and "org/tiny" in said
    assert "licence not stated" in said and str(tmp_path / "hf" / "hub") in said


def test_a_pulled_model_is_not_asked_for_again(tmp_path, hub):
    conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    asked = len(hub.requests)
    again = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    ran = conifer("run", "hf:org/tiny", "hi", "--max-tokens", "2", hub=hub, home=tmp_path)
    assert (again.returncode, ran.returncode, ran.stderr) == (0, 0, b"")
    assert len(hub.requests) == asked


def test_run_fetches_what_is_not_here(tmp_path, hub):
    done = conifer("run", "hf:org/tiny", "hi", "--max-tokens", "2", hub=hub, home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.strip() and done.stderr.startswith(b"conifer: fetching tiny-F32.gguf")


def test_damaged_bytes_exit_5_and_are_not_kept(tmp_path, hub):
    hub.faults += [Fault("flip", at=500_000)]
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"SHA-256" in done.stderr
    assert conifer("show", "hf:org/tiny", hub=hub, home=tmp_path).returncode == 2
    assert conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path).returncode == 0


def test_a_file_of_a_type_we_lack_is_refused_before_the_download(tmp_path, hub):
    name = b"token_embd.weight"
    at = TINY.index(name) + len(name) + 4 + 2 * 8  # dims, and then the type
    hub.files[NAME] = TINY[:at] + b"\x10\x00\x00\x00" + TINY[at + 4 :]  # 16 is IQ2_XXS
    done = conifer("run", "hf:org/tiny", "hi", hub=hub, home=tmp_path)
    assert done.returncode == 3
    assert b"IQ2_XXS" in done.stderr and b"token_embd.weight" in done.stderr
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("name", ["hf:org/none", "hf:org/tiny:Q8_0", "hf:org/tiny/no.gguf"])
def test_what_the_hub_lacks_exits_5(tmp_path, hub, name):
    done = conifer("pull", name, hub=hub, home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")


def test_a_gated_repository_is_explained(tmp_path, hub):
    hub.gated.add("org/tiny")
    done = conifer("pull", "hf:org/tiny", hub=hub, home=tmp_path)
    assert done.returncode == 5
    assert b"HF_TOKEN" in done.stderr and b"licence" in done.stderr


def large(size_bytes: int) -> tuple[prepare.Target, Judged]:
    name = "hf:org/tiny"
    judged = Judged(name, None, verdict=None, size_bytes=size_bytes)  # type: ignore[arg-type]
    return prepare.Target(name, resolve(name)), judged


def test_a_large_transfer_without_a_person_needs_yes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UsageError, match=r"200\.0 MB needs --yes"):
        prepare._require_consent(*large(200 * 10**6), Wishes())
    prepare._require_consent(*large(200 * 10**6), Wishes(yes=True))
    prepare._require_consent(*large(200 * 10**6 - 1), Wishes())


@pytest.mark.parametrize(("typed", "agreed"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_a_person_is_asked(monkeypatch, capsys, typed, agreed):
    monkeypatch.setattr(terminal, "can_ask", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    if agreed:
        prepare._require_consent(*large(10**9), Wishes())
    else:
        with pytest.raises(Declined):
            prepare._require_consent(*large(10**9), Wishes())
    assert capsys.readouterr().err == "Fetch it? [Y/n] "


def test_the_end_of_input_is_no_consent(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert not terminal.confirm("Fetch it?")


def test_the_starter_needs_no_consent(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    _, judged = large(10**9)
    prepare._require_consent(prepare.locate(None), judged, Wishes())
