"""Transfers that are cut, damaged, raced and refused, against a loopback hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, try_to_load_from_cache

import catalog
import catalog.hub.client
import catalog.hub.session
from catalog.download.part_file import PartFile, claim
from catalog.download.pull import pull, require_room
from catalog.download.transfer import Callbacks
from catalog.hub.client import Hub, RemoteFile
from catalog.hub.retry import RetryPolicy
from catalog.store.store import Store
from support.hub_server import COMMIT, Fault, HubServer, Request, sha256

MIB = 2**20
DATA = b"GGUF" + random.Random(1).randbytes(4 * MIB)
QUICK = RetryPolicy(retries=5, wait_s=0.001)


def remote(server: HubServer, data: bytes = DATA) -> tuple[Hub, tuple[RemoteFile, ...]]:
    server.files = {"org/repo/m-Q8_0.gguf": data}
    hub = Hub()
    return hub, hub.find(catalog.resolve("hf:org/repo:Q8_0"))


def first_byte(request: Request) -> int:
    """The first byte that a request asked for."""
    return int(request.headers["range"][6:].partition("-")[0])


def leftovers(store: Store) -> list[str]:
    """What lies in the cache beside blobs, snapshots and refs."""
    known = ("blobs", "snapshots", "refs", ".locks")
    files = [p for p in store.hub_cache.rglob("*") if not p.is_dir()]
    odd = [p for p in files if ".part" in p.name or ".json" in p.name or ".tmp" in p.name]
    return [str(p) for p in files if p in odd or not set(known) & set(p.parts)]


def test_pull_publishes_into_the_hubs_cache_layout(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    told: list[tuple[int, int]] = []
    (path,) = pull(hub, files, store, Callbacks(lambda done, total: told.append((done, total))))
    folder = store.hub_cache / "models--org--repo"
    assert path == folder / "snapshots" / COMMIT / "m-Q8_0.gguf"
    assert path.read_bytes() == DATA
    assert path.resolve() == (folder / "blobs" / sha256(DATA)).resolve()
    assert path.stat().st_mode & 0o777 == 0o444
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert leftovers(store) == []
    cached = try_to_load_from_cache("org/repo", "m-Q8_0.gguf", cache_dir=store.hub_cache)
    assert cached == str(path)


def test_pull_takes_every_part_into_its_folder(hub_server: HubServer, store: Store) -> None:
    names = [f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub_server.files = {f"org/repo/{n}": DATA[: i * MIB] for i, n in enumerate(names, 1)}
    hub = Hub()
    paths = pull(hub, hub.find(catalog.resolve("hf:org/repo:Q8_0")), store)
    assert [path.stat().st_size for path in paths] == [MIB, 2 * MIB]
    assert store.find(catalog.resolve("hf:org/repo:Q8_0")) == paths


def test_second_pull_fetches_nothing(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    pull(hub, files, store)
    served = hub_server.bytes_served
    pull(hub, files, store)
    assert hub_server.bytes_served == served == len(DATA)


def test_file_of_another_tool_is_used(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    theirs = hf_hub_download("org/repo", "m-Q8_0.gguf", cache_dir=store.hub_cache)
    served = hub_server.bytes_served
    assert [str(path) for path in pull(hub, files, store)] == [theirs]
    assert hub_server.bytes_served == served


def test_cut_connections_are_resumed_by_range(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("cut", at=MIB + 7), Fault("cut", at=MIB), Fault("cut", at=0)]
    (path,) = pull(hub, files, store, retry=QUICK)
    assert path.read_bytes() == DATA
    requests = hub_server.sent_to("storage")
    assert len(requests) == 4
    assert requests[1].headers["range"].startswith("bytes=1048583-")
    assert all("if-range" in request.headers for request in requests[1:])
    assert hub_server.bytes_served == len(DATA)


def test_interrupted_pull_is_resumed_by_the_next(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)

    def stop(done: int, total: int) -> None:
        if done > 2 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(hub, files, store, Callbacks(stop))
    hub_server.bytes_served = 0
    (path,) = pull(hub, files, store)
    assert path.read_bytes() == DATA
    assert hub_server.bytes_served <= len(DATA) - 2 * MIB
    assert leftovers(store) == []


PULL_IN_A_PROCESS = """
import sys
from pathlib import Path
from catalog import resolve
from catalog.download.pull import pull
from catalog.hub.client import Hub
from catalog.store.store import Store

url, home, hub_cache = sys.argv[1:]
hub = Hub(endpoint=url)
files = hub.find(resolve("hf:org/repo:Q8_0"))
pull(hub, files, Store(Path(home), Path(hub_cache)))
"""


@pytest.mark.process
def test_killed_pull_is_resumed_by_another_process(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 8 * MIB
    arguments = (hub_server.url, store.home, store.hub_cache)
    process = subprocess.Popen([sys.executable, "-P", "-c", PULL_IN_A_PROCESS, *arguments])
    while hub_server.bytes_served < 2.5 * MIB:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    hub_server.throttle_bytes_per_s = 0
    served = hub_server.bytes_served
    (path,) = pull(hub, files, store)
    assert path.read_bytes() == DATA
    assert hub_server.bytes_served - served <= len(DATA) - MIB  # what is recorded is believed
    assert leftovers(store) == []


def test_flipped_bits_are_never_published_and_the_next_pull_repairs(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    draw = random.Random(4)
    for at in (0, 3, 4, MIB, len(DATA) - 1, *(draw.randrange(len(DATA)) for _ in range(15))):
        hub_server.faults = [Fault("flip", at=at)]
        with pytest.raises(catalog.CatalogError) as caught:
            pull(hub, files, store, retry=QUICK)
        assert not list(store.hub_cache.rglob("*.gguf"))
        assert leftovers(store) == []
        if at >= 4:  # else it is not even GGUF
            assert isinstance(caught.value, catalog.VerificationError)
            assert caught.value.want == sha256(DATA)
            assert sha256(DATA) in str(caught.value)
            assert caught.value.got in str(caught.value)
    assert pull(hub, files, store)[0].read_bytes() == DATA


def test_damaged_partial_file_is_not_trusted(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    blob = store.hub.blob_path(files[0])
    blob.parent.mkdir(parents=True)
    with claim(blob, len(DATA)) as partial:
        partial.write(0, b"GGUF" + bytes(2 * MIB), 0)
    with pytest.raises(catalog.VerificationError):
        pull(hub, files, store)
    assert pull(hub, files, store)[0].read_bytes() == DATA


@pytest.mark.parametrize(
    "fault",
    [
        Fault("no-range"),
        Fault("wrong-range"),
        Fault("status", 416),
        Fault("status", 429, {"Retry_After": "0"}),
        Fault("status", 503),
        Fault("short"),
        Fault("new-etag"),
    ],
    ids=lambda f: f"{f.kind}-{f.at}",
)
def test_misbehaving_server_is_survived(hub_server: HubServer, store: Store, fault: Fault) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("cut", at=MIB), fault]
    (path,) = pull(hub, files, store, retry=QUICK)
    assert path.read_bytes() == DATA
    assert leftovers(store) == []


def test_silent_server_is_given_up_and_asked_again(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.hub.session, "STALL_TIMEOUT_S", 0.2)
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("stall", at=MIB, headers={"seconds": "0.6"})]
    assert pull(hub, files, store, retry=QUICK)[0].read_bytes() == DATA


def test_redirect_loop_is_refused(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.redirect = "loop"
    with pytest.raises(catalog.HubUnreachable, match="more than 5 redirects"):
        pull(hub, files, store, retry=QUICK)
    assert leftovers(store) == []


def test_compressed_answer_is_refused(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("gzip")]
    with pytest.raises(catalog.HubUnreachable, match="compressed"):
        pull(hub, files, store, retry=QUICK)


def test_patience_ends_after_five_retries(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("status", 500) for _ in range(9)]
    with pytest.raises(catalog.HubUnreachable, match="returned HTTP 500"):
        pull(hub, files, store, retry=QUICK)
    assert len(hub_server.sent_to("storage")) == 6


def test_progress_resets_the_failure_count(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("cut", at=MIB + 1) for _ in range(3)]
    assert pull(hub, files, store, retry=RetryPolicy(1, 0.001))[0].read_bytes() == DATA


def test_retry_after_is_waited_for_and_told(hub_server: HubServer, store: Store) -> None:
    told: list[tuple[str, float]] = []
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("status", 429, {"Retry_After": "1"}), Fault("status", 503)]
    start = time.monotonic()
    observer = Callbacks(on_retry=lambda reason, wait_s: told.append((reason, wait_s)))
    pull(hub, files, store, observer, RetryPolicy(wait_s=0.01))
    assert time.monotonic() - start >= 1
    assert [reason[-3:] for reason, _ in told] == ["429", "503"]
    assert told[0][1] == 1
    assert 0.02 <= told[1][1] <= 0.025


def test_other_than_gguf_is_refused_at_its_first_bytes(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server, b"PK\3\4" + DATA)
    with pytest.raises(catalog.CatalogError, match="not a GGUF file"):
        pull(hub, files, store)
    assert not [p for p in store.hub_cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_file_without_a_hash_is_refused(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    bare = RemoteFile("org/repo", "m-Q8_0.gguf", len(DATA), None, "x", COMMIT, "main")
    with pytest.raises(catalog.StoreError, match="does not list a SHA-256"):
        pull(hub, [bare], store)
    assert hub_server.sent_to("storage") == []
    assert files


def test_full_disk_is_refused_before_the_first_byte(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = remote(hub_server)
    usage = shutil.disk_usage(store.home.parent)._replace(free=2**30 + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(catalog.NoSpace, match=f"free up {len(DATA) - 100:,} more bytes"):
        require_room(files, store)
    assert not store.hub_cache.exists()


def test_disk_that_fills_up_keeps_what_came(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, files = remote(hub_server)
    write = PartFile.write

    def fill(partial: PartFile, start: int, chunk: bytes, version: int) -> bool:
        if partial.size_bytes >= 2 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(partial, start, chunk, version)

    monkeypatch.setattr(PartFile, "write", fill)
    with pytest.raises(catalog.StoreError, match="the disk is full"):
        pull(hub, files, store)
    monkeypatch.setattr(PartFile, "write", write)
    assert pull(hub, files, store)[0].read_bytes() == DATA
    assert first_byte(hub_server.sent_to("storage")[-1]) >= 2 * MIB


def test_file_where_the_cache_should_be_is_a_store_error(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    store.hub_cache.write_bytes(b"")
    with pytest.raises(catalog.StoreError, match=str(store.hub_cache)):
        pull(hub, files, store)


@pytest.mark.parametrize("lock_works", [True, False])
def test_concurrent_pulls_end_with_one_sound_blob(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, lock_works: bool
) -> None:
    if not lock_works:
        monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)
    hub, files = remote(hub_server)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            pull(hub, files, store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.hub.snapshot_link(files[0]).read_bytes() == DATA
    assert leftovers(store) == []
    if lock_works:
        assert hub_server.bytes_served == len(DATA)


HOSTILE = [
    *("../evil.gguf", "../../../evil.gguf", "a/../../evil.gguf", "a/../evil.gguf", "..", "."),
    *("./evil.gguf", "a/./evil.gguf", "a//evil.gguf", "/evil.gguf", "//evil.gguf", "a/", "/", ""),
    *("/etc/passwd", "/etc/evil.gguf", "///etc/evil.gguf", "../" * 40 + "etc/evil.gguf"),
    *("..\\evil.gguf", "..\\..\\evil.gguf", "a\\..\\..\\evil.gguf", "\\evil.gguf", "a\\b.gguf"),
    *(
        "\\\\host\\share\\evil.gguf",
        "//host/share/evil.gguf",
        "\\\\?\\C:\\evil.gguf",
        "\\\\.\\pipe\\x",
    ),
    *("C:evil.gguf", "C:/evil.gguf", "C:\\evil.gguf", "file:///etc/evil.gguf", "a:b.gguf"),
    *("evil.gguf::$DATA", "con:", "a/C:/evil.gguf", "http://a/evil.gguf"),
    *("a\0.gguf", "\0", "a.gguf\0.txt", "../\0evil.gguf", "a\n.gguf", "a\r.gguf", "\x1b[2J.gguf"),
    *("a\t.gguf", "\x7f.gguf", "a\x01.gguf", "\ud800.gguf", "a/\udfff/b.gguf"),
    *("x" * 400 + ".gguf", "x" * 201, "é" * 120 + ".gguf", "a/" * 600 + "b.gguf", "x/" * 520),
    *("a/../b/../../c.gguf", "a/b/../../../c.gguf", ".../../evil.gguf", "~/../../evil.gguf"),
    *("a/..", "../.", "./..", "..//evil.gguf", "a/ /../../evil.gguf", "../~root/.ssh/id.gguf"),
]


def test_there_are_sixty_hostile_names() -> None:
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_name_never_becomes_a_path(hub_server: HubServer, store: Store, name: str) -> None:
    evil = RemoteFile("org/repo", name, len(DATA), sha256(DATA), "x", COMMIT, "main")
    with pytest.raises(catalog.StoreError, match="not a safe path"):
        pull(Hub(), [evil], store)
    assert hub_server.requests == []
    assert not store.hub_cache.exists()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_generated_names_never_leave_the_store(store: Store, count: int) -> None:
    draw = random.Random(5)
    pieces = ["..", ".", "/", "\\", "\0", "%2e%2e", "%2f", "a", "~", ":", "C:", " ", "\u2024"]
    root, accepted = store.hub_cache.resolve(), 0
    for _ in range(count):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 9)))
        facts = {"repository": "org/repo", "name": "m.gguf", "commit": COMMIT, "revision": "main"}
        facts[draw.choice(sorted(facts))] = text
        file = RemoteFile(size_bytes=9, sha256=sha256(DATA), etag="x", **facts)
        for place in (store.hub.blob_path, store.hub.snapshot_link, store.hub.ref_path):
            with contextlib.suppress(catalog.StoreError):
                assert place(file).resolve().is_relative_to(root)
                accepted += 1
    assert accepted > count  # those that are sound become paths


@pytest.mark.parametrize(
    "change",
    [
        {"repository": "../.."},
        {"repository": "org/.."},
        {"commit": "../../x"},
        {"sha256": "../" * 20 + "abcd"},
        {"sha256": "A" * 64},
        {"revision": "../../x"},
    ],
    ids=str,
)
def test_hostile_listing_never_becomes_a_path(store: Store, change: dict[str, str]) -> None:
    facts = {"repository": "org/repo", "name": "m.gguf", "size_bytes": 9, "sha256": sha256(DATA)}
    facts |= {"etag": "x", "commit": COMMIT, "revision": "main"}
    file = RemoteFile(**{**facts, **change})  # type: ignore[arg-type]
    with pytest.raises(catalog.StoreError):
        for path in (
            store.hub.blob_path(file),
            store.hub.snapshot_link(file),
            store.hub.ref_path(file),
        ):
            assert path
    assert not store.hub_cache.exists()


def test_link_inside_the_store_leads_nowhere(
    hub_server: HubServer, store: Store, tmp_path: Path
) -> None:
    hub, files = remote(hub_server)
    outside = tmp_path / "outside"
    outside.mkdir()
    store.hub_cache.mkdir()
    (store.hub_cache / "models--org--repo").symlink_to(outside)
    with pytest.raises(catalog.StoreError, match="leads outside"):
        pull(hub, files, store)
    assert list(outside.iterdir()) == []


def test_gone_watcher_is_not_taken_for_the_disk(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)

    def gone(done: int, total: int) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError):
        pull(hub, files, store, Callbacks(gone))


def test_another_process_that_fetches_is_waited_for_and_that_is_told(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    folder = store.hub_cache / ".locks" / "models--org--repo"
    folder.mkdir(parents=True)
    told: list[str] = []
    with (folder / f"{sha256(DATA)}.lock").open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)

        def finished() -> None:
            told.append("waiting")
            fcntl.flock(theirs, fcntl.LOCK_UN)

        pull(hub, files, store, Callbacks(on_wait=finished))
    pull(hub, files, store, Callbacks(on_wait=finished))
    assert told == ["waiting"]
