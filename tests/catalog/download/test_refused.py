"""Pulls on file systems that refuse an operation: the file arrives, and is fetched only once."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

import catalog
from catalog.download import part_file
from catalog.download.pull import missing_bytes, pull, require_room
from catalog.download.transfer import Callbacks
from catalog.hub import session
from catalog.hub.client import Hub, RemoteFile
from catalog.store import manifest
from catalog.store.disk import free_bytes
from catalog.store.store import Store
from support.hub_server import COMMIT, Fault, HubServer, sha256

MIB = 2**20
DATA = b"GGUF" + random.Random(7).randbytes(3 * MIB)
ERRORS = ("EPERM", "EACCES", "ENOTSUP", "ENOSYS", "EINVAL", "EXDEV", "ENOLCK", "EBUSY")
# Each operation, the functions that perform it, and the word for it in the message, if any.
OPERATIONS: dict[str, tuple[tuple[tuple[object, str], ...], str | None]] = {
    "chmod": (((os, "fchmod"), (os, "chmod")), "chmod"),
    "fsync": (((os, "fsync"), (os, "fdatasync")), "fsync"),
    "symlink": (((os, "symlink"),), "symlinks"),
    "flock": (((fcntl, "flock"), (fcntl, "lockf")), "locks"),
    "rename": (((os, "rename"), (os, "replace")), "rename"),
    "link": (((os, "link"),), None),
    "utime": (((os, "utime"),), None),
    "statvfs": (((os, "statvfs"), (shutil, "disk_usage")), None),
}
NAMES = (*OPERATIONS, "rename+link", "rename+link+symlink", "all")


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, error: str) -> set[str]:
    """Have operations fail with an error. Returns the words for them."""
    number, words = getattr(errno, error), set()

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number), str(arguments[:1]))

    for one in OPERATIONS if name == "all" else name.split("+"):
        functions, word = OPERATIONS[one]
        words |= {word} if word else set()
        for module, function in functions:
            monkeypatch.setattr(module, function, fail)
    return words


def remote(server: HubServer) -> tuple[Hub, tuple[RemoteFile, ...]]:
    server.files = {"org/repo/m-Q8_0.gguf": DATA}
    hub = Hub()
    return hub, hub.find(catalog.resolve("hf:org/repo:Q8_0"))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_refused_operation_is_told_once_and_nothing_is_fetched_twice(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    hub, files = remote(hub_server)
    words = refuse(monkeypatch, name, error)
    told: list[set[str]] = []
    require_room(files, store)
    manifest.write(store.home, store.hub_cache, files)
    (path,) = pull(hub, files, store, Callbacks(on_refused=told.append))
    assert path.read_bytes() == DATA
    assert len(told) <= 1 and set().union(*told) <= words
    assert bool(told) == bool(words)
    pull(Hub(), files, store)
    assert hub_server.bytes_served == len(DATA)
    (model,) = store.installed()
    assert model.expected_hashes() == [sha256(DATA)]
    store.remove(model)
    assert store.installed() == []
    left = [p.name for p in store.hub_cache.rglob("*") if not p.is_dir() and p.suffix != ".lock"]
    assert left == [] and manifest.read(store.home) == []


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("name", [*OPERATIONS, "rename+link", "all"])
def test_an_interrupted_pull_resumes_whatever_is_refused(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    hub, files = remote(hub_server)
    refuse(monkeypatch, name, error)

    def stop(done: int, total: int) -> None:
        if done > 2 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(hub, files, store, Callbacks(stop))
    assert missing_bytes(files, store) <= len(DATA) - 2 * MIB
    hub_server.bytes_served = 0
    (path,) = pull(Hub(), files, store)
    assert path.read_bytes() == DATA
    assert hub_server.bytes_served <= len(DATA) - 2 * MIB


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_disk_that_fails_is_no_disk_that_refuses(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    hub, files = remote(hub_server)
    with monkeypatch.context() as patched:
        refuse(patched, "fsync", error)
        with pytest.raises(catalog.StoreError):
            pull(hub, files, store)
    (path,) = pull(Hub(), files, store)
    assert path.read_bytes() == DATA
    assert hub_server.bytes_served == len(DATA)  # what came was kept


@pytest.mark.parametrize(
    ("error", "words"),
    [("ENOSPC", "disk is full"), ("EDQUOT", "quota is used up"), ("EFBIG", "ulimit -f")],
)
def test_a_full_disk_is_told_by_its_cause_and_what_came_is_kept(
    hub_server: HubServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
    words: str,
) -> None:
    hub, files = remote(hub_server)
    pwrite, number = os.pwrite, getattr(errno, error)

    def full(handle: int, data: bytes, at: int) -> int:
        if at >= 2 * MIB:
            raise OSError(number, os.strerror(number))
        return pwrite(handle, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(catalog.StoreError, match=f"{words}.*has been kept"):
            pull(hub, files, store)
    hub_server.bytes_served = 0
    assert pull(Hub(), files, store)[0].read_bytes() == DATA
    assert hub_server.bytes_served <= len(DATA) - MIB


def test_what_a_short_write_brought_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, number = os.pwrite, errno.EFBIG

    def short(handle: int, data: bytes, at: int) -> int:
        if at >= MIB:
            raise OSError(number, os.strerror(number))
        return pwrite(handle, data[: MIB - at], at)

    blob = tmp_path / sha256(DATA)
    with monkeypatch.context() as patched, part_file.claim(blob, len(DATA)) as partial:
        patched.setattr(os, "pwrite", short)
        with pytest.raises(OSError, match="File too large"):
            partial.write(0, DATA, 0)
        patched.undo()
    with part_file.claim(blob, len(DATA)) as partial:
        assert partial.size_bytes == MIB


def test_switch_off_symlinks_and_the_snapshot_has_the_file(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub, files = remote(hub_server)
    told: list[set[str]] = []
    manifest.write(store.home, store.hub_cache, files)
    (path,) = pull(hub, files, store, Callbacks(on_refused=told.append))
    assert path.read_bytes() == DATA and not path.is_symlink() and told == []
    hub_server.commit = "d" * 40
    again = Hub()
    newer = again.find(catalog.resolve("hf:org/repo:Q8_0"))
    (other,) = pull(again, newer, store)
    assert other != path and other.read_bytes() == DATA and not other.is_symlink()
    assert hub_server.bytes_served == len(DATA)  # the same bytes are copied, not fetched


def test_a_blob_that_another_revision_links_to_stays(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, files = remote(hub_server)
    (path,) = pull(hub, files, store)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub_server.commit = "d" * 40
    again = Hub()
    (other,) = pull(again, again.find(catalog.resolve("hf:org/repo:Q8_0")), store)
    assert path.is_symlink() and path.read_bytes() == DATA
    assert other.read_bytes() == DATA and not other.is_symlink()
    assert hub_server.bytes_served == len(DATA)


def test_timeouts_of_the_hub_client_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (session.connect_timeout_s(), session.stall_timeout_s()) == (10, 30)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 70)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 90)
    assert (session.connect_timeout_s(), session.stall_timeout_s()) == (70, 90)


def test_the_warning_about_symlinks_can_be_switched_off(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "symlink", "EPERM")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    hub, files = remote(hub_server)
    told: list[set[str]] = []
    pull(hub, files, store, Callbacks(on_refused=told.append))
    assert told == []


def test_a_file_in_the_shared_store_is_held_to_its_own_hash(store: Store) -> None:
    """The Hub client can store a blob as a link to a file that is named by another hash."""
    folder = store.hub.repository_folder("org/repo")
    shared = store.hub_cache / "blobs" / "ab" / ("ab" * 32)
    blob, path = folder / "blobs" / sha256(DATA), folder / "snapshots" / COMMIT / "m-Q8_0.gguf"
    for one in (shared, blob, path):
        one.parent.mkdir(parents=True, exist_ok=True)
    shared.write_bytes(DATA)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    path.symlink_to(os.path.relpath(blob, path.parent))
    (model,) = store.installed()
    assert model.expected_hashes() == [sha256(DATA)]
    store.remove(model)
    assert not os.path.lexists(blob) and shared.exists()


def test_free_space_that_nobody_knows_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = shutil._ntuple_diskusage(0, 0, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nothing)
    assert free_bytes(tmp_path) is None


# Others' hands


def plant_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def plant_second_name(path: Path, victim: Path) -> None:
    os.link(victim, path)


@pytest.mark.parametrize("plant", [plant_link, plant_second_name])
@pytest.mark.parametrize("suffix", [".part", ".json"])
def test_a_planted_name_is_never_written_through(
    hub_server: HubServer,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path, Path], None],
    suffix: str,
) -> None:
    hub, files = remote(hub_server)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o640)
    blob = store.hub.blob_path(files[0])
    blob.parent.mkdir(parents=True)
    host = part_file._host()
    for number in range(3):  # whichever name comes next, and one that looks abandoned
        plant(blob.with_name(f"{blob.name}.{host}-{os.getpid()}-{number}{suffix}"), victim)
    plant(blob.with_name(f"{blob.name}.{host}-4194304-0{suffix}"), victim)
    monkeypatch.setattr(part_file, "_numbers", iter(range(99)))
    (path,) = pull(hub, files, store)
    assert path.read_bytes() == DATA
    assert victim.read_bytes() == b"precious" and victim.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_planted_lock_is_not_opened(
    hub_server: HubServer, store: Store, tmp_path: Path, kind: str
) -> None:
    hub, files = remote(hub_server)
    lock = store.hub.lock_path(files[0])
    lock.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    {
        "link": lambda: lock.symlink_to(victim),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    assert pull(hub, files, store)[0].read_bytes() == DATA
    assert not victim.exists()


def test_a_planted_folder_of_locks_leads_nowhere(
    hub_server: HubServer, store: Store, tmp_path: Path
) -> None:
    hub, files = remote(hub_server)
    outside = tmp_path / "outside"
    outside.mkdir()
    store.hub_cache.mkdir()
    (store.hub_cache / ".locks").symlink_to(outside)
    assert pull(hub, files, store)[0].read_bytes() == DATA
    assert list(outside.iterdir()) == []


def test_bytes_that_change_after_they_were_hashed_are_not_published(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 8 * MIB
    changed: list[Path] = []

    def meddle(done: int, total: int) -> None:
        parts = list(store.hub_cache.rglob("*.part"))
        # Ranges arrive in any order: the start must be there, or it overwrites the change.
        if done > MIB and not changed and parts[0].read_bytes()[:MIB] == DATA[:MIB]:
            changed.extend(parts)
            with changed[0].open("r+b") as file:
                file.seek(100)
                file.write(b"changed")

    with pytest.raises(catalog.VerificationError):
        pull(hub, files, store, Callbacks(meddle))
    assert changed and not store.hub.blob_path(files[0]).exists()
    hub_server.throttle_bytes_per_s = 0
    assert pull(Hub(), files, store)[0].read_bytes() == DATA


@pytest.mark.parametrize("moment", ["fchmod", "fsync", "replace"])
@pytest.mark.parametrize("how", ["write", "swap"])
def test_what_changes_between_hashing_and_publishing_is_noticed(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, moment: str, how: str
) -> None:
    hub, files = remote(hub_server)
    original = getattr(os, moment)

    def meddle(*arguments: object, **more: object) -> object:
        for path in store.hub_cache.rglob("*.part"):
            path.chmod(0o644)
            if how == "swap":
                path.unlink()
                path.write_bytes(bytes(len(DATA)))
            else:
                with path.open("r+b") as file:
                    file.write(b"changed")
        return original(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, meddle)
        with pytest.raises(catalog.VerificationError):
            pull(hub, files, store)
    assert not store.hub.blob_path(files[0]).exists() and store.installed() == []
    assert pull(Hub(), files, store)[0].read_bytes() == DATA


def test_a_damaged_transfer_is_told_on_a_disk_without_times(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "utime", "EPERM")  # so the file is hashed twice
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("flip", at=MIB)]
    with pytest.raises(catalog.VerificationError):
        pull(hub, files, store)
    assert pull(hub, files, store)[0].read_bytes() == DATA


def test_another_container_of_this_machine_takes_over_at_once(tmp_path: Path) -> None:
    blob = tmp_path / sha256(DATA)
    with part_file.claim(blob, len(DATA)) as partial:
        partial.write(0, DATA[: 2 * MIB], 0)
        left = partial.path
        theirs = left.with_name(f"{blob.name}.0000abcd-1-0.part")
        for suffix in (".part", ".json"):
            left.with_suffix(suffix).rename(theirs.with_suffix(suffix))
        assert not part_file.is_abandoned(theirs)  # the lock shows that it is written
        with part_file.claim(blob, len(DATA)) as second:
            assert second.size_bytes == 0
        theirs.rename(left)
        theirs.with_suffix(".json").rename(left.with_suffix(".json"))
    for suffix in (".part", ".json"):
        left.with_suffix(suffix).rename(theirs.with_suffix(suffix))
    with part_file.claim(blob, len(DATA)) as third:
        assert third.size_bytes == 2 * MIB
