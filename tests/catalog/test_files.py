"""Small files: written whole or not at all, read only if they have the expected shape."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from catalog.files import (
    open_atomically,
    parse_json,
    read_json,
    write_atomically,
)


@dataclass
class Row:
    name: str
    count: int
    rate: float | None
    spans: list[tuple[int, int]]
    dates: dict[str, str]

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


ROW = {"name": "a", "count": 1, "rate": 2, "spans": [[0, 4]], "dates": {"x": "y"}, "format": 1}


def test_a_write_creates_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, "one")
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    with open_atomically(path, mode=0o600, sync=True) as file:
        file.write(b"three")
    assert path.read_bytes() == b"three"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), open_atomically(path) as file:
        file.write(b"new")
        raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_becomes_a_dataclass(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps(ROW))
    assert read_json(path, Row, format=1) == Row("a", 1, 2, [(0, 4)], {"x": "y"})
    assert read_json(path, Row, format=2) is None
    assert read_json(path, Row, max_bytes=20) is None
    assert read_json(tmp_path / "none", Row) is None
    assert read_json(tmp_path, Row) is None
    assert parse_json('"text"', str) == "text"


@pytest.mark.parametrize(
    "change",
    [
        *({"name": 1}, {"count": True}, {"count": 1.5}, {"count": -1}, {"rate": "fast"}),
        *({"spans": [[0]]}, {"spans": [[0, "4"]]}, {"spans": {}}, {"dates": {"x": 1}}),
        {"name": None},
    ],
)
def test_a_wrong_shape_is_refused(change: dict[str, object]) -> None:
    assert parse_json(json.dumps(ROW | change), Row) is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"name":"a"}']
)
def test_damaged_json_is_refused(text: bytes) -> None:
    assert parse_json(text, Row) is None
    assert parse_json(text, Row, format=1) is None


def test_the_mark_of_a_saved_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, dict) == {"a": 1}
    assert parse_json(path.read_text(encoding="utf-8"), dict) == {"a": 1}
