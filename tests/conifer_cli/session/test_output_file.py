"""Files that the user names: nothing is replaced unasked, or left half written."""

from __future__ import annotations

import os
import threading

import pytest

from conifer_cli.errors import OutputError, UsageError
from conifer_cli.session import output_file
from conifer_cli.terminal import console
from support.program import MODELS, run_conifer

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


def test_an_old_file_is_replaced_only_by_agreement(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    output_file.require_new(path, yes=False)
    path.write_text("dear diary")
    with pytest.raises(UsageError, match=r"x\.json already exists") as caught:
        output_file.require_new(path, yes=False)
    assert caught.value.hint == "Choose another name, or pass --yes."
    output_file.require_new(path, yes=True)
    monkeypatch.setattr(console, "can_ask", lambda: True)
    for agrees in (True, False):
        monkeypatch.setattr(console, "confirm", lambda *_, default, agrees=agrees: agrees)
        if agrees:
            output_file.require_new(path, yes=False)
        else:
            with pytest.raises(UsageError, match="was not replaced"):
                output_file.require_new(path, yes=False)


@pytest.mark.parametrize(("reply", "agrees"), [("\n", False), ("y\n", True), ("", False)])
def test_enter_does_not_replace(monkeypatch, tmp_path, reply, agrees):
    (tmp_path / "reply").write_text(reply)
    with (tmp_path / "reply").open() as typed:
        monkeypatch.setattr("sys.stdin", typed)
        assert console.confirm("Replace it?", default=False) is agrees


def test_what_cannot_be_written_is_refused_with_its_reason(tmp_path):
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "x", "does not exist")):
        with pytest.raises(UsageError, match=said):
            output_file.require_new(path, yes=True)
    os.symlink(tmp_path / "gone", tmp_path / "link")
    with pytest.raises(UsageError, match="already exists"):
        output_file.require_new(tmp_path / "link", yes=False)


def test_a_write_is_whole_or_not_and_keeps_a_link(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("old")
    os.symlink(path, tmp_path / "link")
    output_file.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and path.read_bytes() == b"new"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "broken disk")))
    with pytest.raises(OutputError, match="broken disk"):
        output_file.write(path, b"newer")
    assert path.read_bytes() == b"new" and sorted(os.listdir(tmp_path)) == ["link", "x"]


def test_a_pipe_is_written_into(tmp_path):
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    output_file.require_new(path, yes=False)
    writer = threading.Thread(target=output_file.write, args=(path, b"hello"))
    writer.start()
    assert path.read_bytes() == b"hello"
    writer.join()
    assert not path.is_file()


@pytest.mark.process
def test_an_expert_report_replaces_no_file_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "keep.json"
    path.write_text("dear diary")
    asked = ("run", QWEN, "hi", "--max-tokens", "2", "--experts-out", str(path))
    done = run_conifer(*asked, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"conifer: {path} already exists\n")
    assert path.read_text() == "dear diary"
    assert run_conifer(*asked, "--yes", home=tmp_path).returncode == 0
    assert path.read_text().startswith("{")
