"""The message history: it persists, only its owner can read it, and it never causes a failure."""

from __future__ import annotations

import pytest

from conifer_cli.chat import line_editor
from conifer_cli.chat.line_editor import add_to_history, read_history


def test_what_is_added_comes_back_the_oldest_first(tmp_path):
    path = tmp_path / "home" / "history"
    texts = ["one", "two\nlines", "é \u2028 \x1b[31m", '"quoted"']
    for text in texts:
        add_to_history(path, text)
    assert read_history(path) == texts
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith('{"format": 1}\n')


def test_it_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(line_editor, "MAX_HISTORY", 5)
    path = tmp_path / "history"
    for number in range(20):
        add_to_history(path, str(number))
    assert read_history(path) == ["15", "16", "17", "18", "19"]
    assert len(path.read_text().splitlines()) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["history"]


@pytest.mark.parametrize("data", [b"", b"ls\n", b'{"format": 2}\n"x"\n', b"\xff\xfe", b"[[[[\n"])
def test_a_file_of_another_kind_is_left_alone(tmp_path, data):
    path = tmp_path / "history"
    path.write_bytes(data)
    assert read_history(path) == []
    add_to_history(path, "x")
    assert path.read_bytes() == data


def test_a_damaged_line_is_skipped(tmp_path):
    path = tmp_path / "history"
    add_to_history(path, "one")
    with path.open("a") as file:
        file.write('"half\n5\n')
    add_to_history(path, "two")
    assert read_history(path) == ["one", "two"]


def test_a_place_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").touch()
    add_to_history(tmp_path / "file" / "history", "x")
    assert read_history(tmp_path / "file" / "history") == []
