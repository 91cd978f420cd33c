"""Partial files: filled in any order, taken up after any death, never written over."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from pathlib import Path

import pytest

from catalog.download import part_file as partials
from catalog.download.part_file import claim, sweep

MIB = 2**20
DATA = b"GGUF" + random.Random(2).randbytes(4 * MIB)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / hashlib.sha256(DATA).hexdigest()


def test_what_is_there_and_what_is_not_is_known(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        assert partial.missing() == [(0, len(DATA))]
        partial.write(MIB, DATA[MIB : 2 * MIB], 0)
        partial.write(0, DATA[:5], 0)
        assert partial.size_bytes == MIB + 5
        assert partial.missing() == [(5, MIB), (2 * MIB, len(DATA))]


def test_next_claim_goes_on_where_the_last_stopped(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.check_etag('"a"', 0)
        partial.write(MIB, DATA[MIB : 2 * MIB + 7], 0)
    with claim(blob, len(DATA)) as partial:
        assert partial.missing() == [(0, MIB), (2 * MIB + 7, len(DATA))]
        assert partial.etag == '"a"'
        for first, last in partial.missing():
            partial.write(first, DATA[first:last], 0)
        digest = hashlib.sha256(DATA).hexdigest()
        assert partial.publish(blob, digest) == digest
    assert blob.read_bytes() == DATA
    assert os.listdir(blob.parent) == [blob.name]


def test_bytes_that_are_there_are_not_written_over(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(10, b"abc", 0)
        partial.write(8, b"zzzzzzz", 0)
        with partial.path.open("rb") as file:
            assert file.read()[8:15] == b"zzabczz"


def test_after_a_new_start_of_the_machine_only_what_was_synced_counts(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[:MIB], 0)
        partial.sync()
        partial.write(MIB, DATA[MIB : 3 * MIB], 0)
    monkeypatch.setattr(partials, "_boot", lambda: "the next one")
    with claim(blob, len(DATA)) as partial:
        assert partial.missing() == [(MIB, len(DATA))]


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b'{"format": 2}', b"\xff" * 9, b"[" * 60_000, b" " * 2**17]
    + [
        json.dumps({"format": 1, "size_bytes": len(DATA), "boot": "", "etag": None} | odd).encode()
        for odd in (
            {"there": [[0, 5]]},
            {"there": [[5, 0]], "lasting": []},
            {"there": [[-1, 5]], "lasting": []},
            {"there": [["0", 5]], "lasting": []},
            {"there": 7, "lasting": []},
            {"there": [], "lasting": [], "etag": 7},
            {"there": [], "lasting": [], "size_bytes": 7},
        )
    ],
)
def test_record_that_makes_no_sense_counts_for_nothing(blob: Path, record: bytes) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[:MIB], 0)
        left = partial.path
    left.with_suffix(".json").write_bytes(record)
    with claim(blob, len(DATA)) as partial:
        assert partial.missing() == [(0, len(DATA))]


def test_file_that_shrank_is_believed_up_to_its_end(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[: 2 * MIB], 0)
        left = partial.path
    os.truncate(left, MIB)
    with claim(blob, len(DATA)) as partial:
        assert partial.missing() == [(MIB, len(DATA))]


def test_changed_etag_forgets_all_once_and_then_counts_for_nothing(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        assert partial.check_etag('"a"', 0) == 0
        partial.write(0, DATA[:9], 0)
        assert partial.check_etag(None, 0) == 0  # nothing said, nothing changed
        assert partial.check_etag('"b"', 0) == 1
        assert partial.size_bytes == 0
        assert not partial.write(9, DATA[9:20], 0)  # of the version that is gone
        assert partial.check_etag('"a"', 0) is None
        assert partial.write(0, DATA[:9], 1)
        assert partial.check_etag('"a"', 1) == 1
        assert partial.size_bytes == 9
        assert partial.etag is None


def test_closed_file_takes_nothing_and_wakes_who_waits(blob: Path) -> None:
    found: list[object] = []
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[:9], 0)
        waiting = threading.Thread(target=lambda: found.append(partial.wait_for(9, 0)))
        waiting.start()
    waiting.join(5)
    assert found == [None]
    assert not partial.write(9, DATA[9:20], 0)
    assert partial.check_etag('"a"', 0) is None
    partial.sync()
    partial.close()


def test_file_of_a_living_process_is_left_alone(blob: Path) -> None:
    with claim(blob, len(DATA)) as first:
        first.write(0, DATA[: 2 * MIB], 0)
        with claim(blob, len(DATA)) as second:
            assert second.size_bytes == 0
        sweep(blob)
        assert first.path.exists()
    with claim(blob, len(DATA)) as third:
        assert third.size_bytes == 2 * MIB


def test_file_of_another_host_is_left_alone_for_an_hour(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[:MIB], 0)
        partial.sync()
        left = partial.path
    theirs = left.with_name(f"{blob.name}.0000abcd-1-0.part")
    left.rename(theirs)
    record = json.loads(left.with_suffix(".json").read_text())
    left.with_suffix(".json").unlink()
    theirs.with_suffix(".json").write_text(json.dumps(record | {"boot": "of another machine"}))
    with claim(blob, len(DATA)) as partial:
        assert partial.size_bytes == 0
    os.utime(theirs, (1, 1))
    with claim(blob, len(DATA)) as partial:
        assert partial.size_bytes == MIB


def test_sweep_takes_away_what_the_dead_left(blob: Path) -> None:
    with claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[:9], 0)
    blob.with_name(f"{partial.path.stem[:-1]}77.json").write_text("{}")
    sweep(blob)
    assert os.listdir(blob.parent) == []
