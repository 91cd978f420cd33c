"""The probe of the disk: rates above nought, and no file left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.fit import disk


def test_a_file_is_read_at_random_places(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(8 << 20))
    counts = []
    rate = disk.random_read_rate(path, 900_000, 0.3, lambda done, _: counts.append(done))
    assert rate > 0
    assert counts == sorted(counts) and counts[-1] > 0


def test_a_file_smaller_than_a_read_is_read_as_it_is(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(5000))
    assert disk.random_read_rate(path, 900_000, 0.05) > 0


def test_an_empty_or_missing_file_is_an_os_error(tmp_path: Path):
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(OSError, match=r"too small|No such file"):
            disk.random_read_rate(tmp_path / name, 900_000, 0.05)


def test_where_direct_reads_are_refused_pages_are_dropped(tmp_path: Path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(8 << 20))
    plain, refused = disk.os.open, []

    def refuse(name, flags, *more):
        if flags & disk.os.O_DIRECT:
            refused.append(name)
            raise OSError(22, "Invalid argument")
        return plain(name, flags, *more)

    monkeypatch.setattr(disk.os, "open", refuse)
    assert disk.random_read_rate(path, 900_000, 0.05) > 0
    assert refused == [path]


def test_a_temporary_file_is_gone_afterwards(tmp_path: Path):
    folder = tmp_path / "hub"
    assert disk.temporary_read_rate(folder, 900_000, 0.1, size_bytes=8 << 20) > 0
    assert list(folder.iterdir()) == []


def test_a_temporary_file_has_no_name_while_it_is_read(tmp_path: Path):
    seen = []
    disk.temporary_read_rate(
        tmp_path, 900_000, 1, lambda *_: seen.append([*tmp_path.iterdir()]), size_bytes=8 << 20
    )
    assert seen and not any(seen)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_probe_that_fails(error, tmp_path: Path, monkeypatch):
    def fail(*_):
        raise error

    before = threading.active_count()
    with pytest.raises(error if isinstance(error, type) else OSError):
        disk.temporary_read_rate(tmp_path, 900_000, 5, fail, size_bytes=8 << 20)
    monkeypatch.setattr(disk.os, "write", fail)
    with pytest.raises(error if isinstance(error, type) else OSError):
        disk.temporary_read_rate(tmp_path, 900_000, 5, size_bytes=8 << 20)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before
