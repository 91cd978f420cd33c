"""Several ranges at once, and how failures are taken, against a loopback hub."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import catalog
import catalog.hub.client
import catalog.hub.session
from catalog.download import transfer
from catalog.download.part_file import PartFile
from catalog.download.pull import pull
from catalog.download.transfer import Callbacks
from catalog.hub.client import Hub, RemoteFile
from catalog.hub.retry import RetryPolicy
from catalog.store.store import Store
from support.hub_server import Fault, HubServer

MIB = 2**20
DATA = b"GGUF" + random.Random(3).randbytes(32 * MIB)
QUICK = RetryPolicy(retries=5, wait_s=0.001)


def remote(server: HubServer) -> tuple[Hub, tuple[RemoteFile, ...]]:
    server.files = {"org/repo/m-Q8_0.gguf": DATA}
    hub = Hub()
    return hub, hub.find(catalog.resolve("hf:org/repo:Q8_0"))


def ranges(server: HubServer) -> list[tuple[int, int]]:
    """What was asked of storage, [start, end), in the order in which it was."""
    asked = [request.headers["range"][6:].split("-") for request in server.sent_to("storage")]
    return [(int(first), int(last) + 1) for first, last in asked]


def test_ranges_are_fetched_at_once_each_byte_once(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 16 * MIB
    (path,) = pull(hub, files, store)
    assert path.read_bytes() == DATA
    asked = sorted(ranges(hub_server))
    assert asked[0][0] == 0 and asked[-1][1] == len(DATA)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(asked))
    assert len(asked) >= transfer.STREAMS
    assert hub_server.most_at_once == transfer.STREAMS


def test_fast_server_is_read_by_one_stream(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FAST_BYTES_PER_S", 1e6)
    hub, files = remote(hub_server)
    assert pull(hub, files, store)[0].read_bytes() == DATA
    assert hub_server.most_at_once == 1


def test_first_request_is_alone_until_it_brought_something(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("stall", at=1000, headers={"seconds": "1"})]
    thread = threading.Thread(target=lambda: pull(hub, files, store, retry=QUICK))
    thread.start()
    while not hub_server.sent_to("storage"):
        time.sleep(0.01)
    time.sleep(0.3)
    asked = len(hub_server.sent_to("storage"))
    thread.join()
    assert asked == 1


def test_header_that_was_read_is_not_fetched_again(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub.header(files[0], 4 * MIB)
    (path,) = pull(hub, files, store)
    assert path.read_bytes() == DATA
    assert hub_server.bytes_served == len(DATA)


def test_server_that_loses_its_ranges_midway_is_survived(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("none"), *(Fault("no-range") for _ in range(3))]
    assert pull(hub, files, store, retry=QUICK)[0].read_bytes() == DATA


def test_server_without_any_ranges_costs_one_file_and_little_more(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.ranges = False
    hub_server.throttle_bytes_per_s = 256 * MIB
    assert pull(hub, files, store, retry=QUICK)[0].read_bytes() == DATA
    assert len(hub_server.sent_to("storage")) == 1
    assert hub_server.bytes_served == len(DATA)


def test_server_whose_etags_differ_from_host_to_host_is_survived(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.etags = iter(f'"{i}"' for i in range(1000))
    assert pull(hub, files, store, retry=QUICK)[0].read_bytes() == DATA
    assert hub_server.bytes_served <= 2 * len(DATA)


def test_failures_of_all_streams_at_one_moment_count_once(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 16 * MIB
    hub_server.faults = [Fault("none"), *(Fault("cut", at=100_000) for _ in range(3))]
    told: list[str] = []
    observer = Callbacks(on_retry=lambda reason, wait_s: told.append(reason))
    pull(hub, files, store, observer, RetryPolicy(retries=1, wait_s=0.2))
    assert told


def test_ctrl_c_ends_a_silent_transfer_at_once(hub_server: HubServer, store: Store) -> None:
    hub, files = remote(hub_server)
    hub_server.faults = [Fault("stall", at=2 * MIB, headers={"seconds": "3"}) for _ in range(9)]

    def stop(done: int, total: int) -> None:
        if done >= 2 * MIB:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pull(hub, files, store, Callbacks(stop))
    assert time.monotonic() - start < 2
    streams = [t for t in threading.enumerate() if t.name.startswith("transfer")]
    for thread in streams:  # their work is done, they may still be on their way out
        thread.join(1)
    assert not [t for t in streams if t.is_alive()]


def test_signal_while_the_threads_begin_ends_those_that_did(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = itertools.count()

    class Pool(ThreadPoolExecutor):
        def submit(self, *task, **more):
            if next(begun) == 3:  # after the hash and two streams
                raise KeyboardInterrupt
            return super().submit(*task, **more)

    monkeypatch.setattr(transfer, "ThreadPoolExecutor", Pool)
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 4 * MIB
    with pytest.raises(KeyboardInterrupt):
        pull(hub, files, store)
    for thread in [t for t in threading.enumerate() if t.name.startswith("transfer")]:
        thread.join(2)
        assert not thread.is_alive()


def test_hash_that_takes_longer_than_the_bytes_is_told(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = transfer._hash

    def slowly(file: RemoteFile, partial: PartFile) -> str:
        time.sleep(1)
        return hashing(file, partial)

    monkeypatch.setattr(transfer, "_hash", slowly)
    monkeypatch.setattr(transfer, "CHECKING_S", 0.1)
    hub, files = remote(hub_server)
    told: list[str] = []
    pull(hub, files, store, Callbacks(on_hash=lambda: told.append("checking")))
    assert told == ["checking"]


def test_partial_file_that_someone_cuts_short_is_never_published(
    hub_server: HubServer, store: Store
) -> None:
    hub, files = remote(hub_server)
    hub_server.throttle_bytes_per_s = 16 * MIB

    def cut(done: int, total: int) -> None:
        if done > MIB:
            for path in store.hub_cache.rglob("*.part"):
                os.truncate(path, 0)

    with pytest.raises((catalog.StoreError, catalog.VerificationError)):  # as the moment has it
        pull(hub, files, store, Callbacks(cut))
    assert not list(store.hub_cache.rglob("*.gguf"))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer counts as fast: after 4 MiB it is read from the connection itself."""
    monkeypatch.setattr(catalog.hub.client, "FAST_BYTES_PER_S", 1.0)
    monkeypatch.setattr(catalog.hub.session, "STALL_TIMEOUT_S", 0.3)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault("cut", at=6 * MIB)],
        [Fault("stall", at=6 * MIB, headers={"seconds": "0.8"})],
        [Fault("short")],
        [Fault("no-range")],
    ],
    ids=lambda faults: str([fault.kind for fault in faults]),
)
def test_what_is_read_from_the_connection_itself_is_sound(
    hub_server: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch, fast, faults
) -> None:
    monkeypatch.setattr(transfer, "LEAST_BYTES", 16 * MIB)
    hub, files = remote(hub_server)
    hub_server.faults = faults
    assert pull(hub, files, store, retry=QUICK)[0].read_bytes() == DATA
    assert hub_server.bytes_served <= len(DATA) + 16 * MIB
