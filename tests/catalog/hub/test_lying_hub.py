"""A hub that answers anything at all: each answer is used, refused in one line, or retried."""

from __future__ import annotations

import gzip
import json
import random
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import catalog
import catalog.hub.client
import catalog.hub.session
from catalog.download.pull import pull
from catalog.hub.client import Hub
from catalog.hub.retry import RetryPolicy
from catalog.store.store import Store
from support.hub_server import COMMIT, sha256

DATA = b"GGUF" + random.Random(5).randbytes(60_000)
QUICK = RetryPolicy(retries=2, wait_s=0.001)
PATIENCE_S = 10.0
OURS = re.compile(r"[A-Za-z][^\n]{10,300}")
NOT_OURS = re.compile(
    r"Errno|Traceback|Exception|object|invalid literal|could not convert|NoneType|\bb'|<class|httpx"
)
LISTING = {
    "id": "org/repo",
    "sha": COMMIT,
    "siblings": [
        {
            "rfilename": "m-Q8_0.gguf",
            "size": len(DATA),
            "blobId": "0" * 40,
            "lfs": {"sha256": sha256(DATA), "size": len(DATA)},
        }
    ],
}
ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 2**63, 10**4000, "", "x", "\0", "../../x", "9" * 5000, "Infinity"),
    *([], [None], [[]], {}, {"a": {}}, ["m-Q8_0.gguf"], {"size": []}, "\ud800", "é" * 300),
]
NUMBERS = ["9" * 5000, "-1", "0x10", "1e9", "nan", "", "٣", "1, 2", " ", "18446744073709551616"]


class LyingHub:
    """A hub and its storage on two ports. `lies`: endpoint -> the raw answer, or its pieces."""

    def __init__(self) -> None:
        self.lies: dict[str, bytes | Callable[[], Iterable[bytes]]] = {}
        self.times = 10**6  # how many lies are told before the truth
        self.asked: list[tuple[str, str]] = []  # (host, the request)
        self.urls: dict[str, str] = {}

    def answer(self, host: str, request: str) -> Iterable[bytes]:
        self.asked.append((host, request))
        path = request.split()[1]
        endpoint = "storage" if host == "storage" else "api" if "/api/" in path else "resolve"
        if endpoint in self.lies and self.times > 0:
            self.times -= 1
            lie = self.lies[endpoint]
            return [lie] if isinstance(lie, bytes) else lie()
        return [self.truth(endpoint, request)]

    def truth(self, endpoint: str, request: str) -> bytes:
        if endpoint == "api":
            return raw(200, json.dumps(LISTING).encode())
        if endpoint == "resolve":
            return raw(302, Location=f"{self.urls['storage']}/file")
        found = re.search(r"(?i)range: bytes=(\d+)-(\d+)", request)
        assert found
        start, last = int(found[1]), min(int(found[2]), len(DATA) - 1)
        where = f"bytes {start}-{last}/{len(DATA)}"
        return raw(206, DATA[start : last + 1], Content_Range=where, ETag='"e"')


def raw(status: int, body: bytes = b"", **headers: str) -> bytes:
    headers = {"Content-Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status} X", *lines, "Connection: close", "", ""])
    return head.encode("utf-8", "surrogatepass") + body


@pytest.fixture
def lying(hub_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingHub]:
    """A lying hub instead of the truthful one, with the settings of `hub_server`."""
    hub = LyingHub()

    def handler(host: str) -> type[socketserver.BaseRequestHandler]:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                request = b""
                while b"\r\n\r\n" not in request and (got := self.request.recv(65536)):
                    request += got
                try:
                    for piece in hub.answer(host, request.decode("latin-1")):
                        self.request.sendall(piece)
                except OSError:
                    pass  # the client has seen enough

        return Handler

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    servers = {host: Server(("127.0.0.1", 0), handler(host)) for host in ("hub", "storage")}
    hub.urls = {host: f"http://127.0.0.1:{s.server_address[1]}" for host, s in servers.items()}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(catalog.hub.session, "STALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(catalog.hub.session, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(catalog.hub.session, "SLOW_WINDOW_S", 0.3)
    monkeypatch.setattr(catalog.hub.client, "LISTING_TIMEOUT_S", 0.7)
    monkeypatch.setattr(catalog.hub.client, "RETRY_WITHIN_S", 1.0)
    yield hub
    for server in servers.values():
        server.shutdown()
        server.server_close()


def outcome(lying: LyingHub, store: Store) -> str:
    """List, read a header and pull. Return "" or the error, and check what must always hold."""
    start, message = time.monotonic(), ""
    try:
        hub = Hub(endpoint=lying.urls["hub"], token="hf_secret", retry=QUICK)
        files = hub.find(catalog.resolve("hf:org/repo"))
        hub.header(files[0], 5000)
        (path,) = pull(hub, files, store, retry=QUICK)
        assert path.read_bytes() == DATA
    except catalog.CatalogError as error:
        message = str(error)
        assert OURS.fullmatch(message) and not NOT_OURS.search(message), message
    assert time.monotonic() - start < PATIENCE_S
    published = [p for p in store.hub_cache.rglob("*") if p.parent.name == "blobs" and not p.suffix]
    assert all(sha256(path.read_bytes()) == path.name for path in published)
    for host, request in lying.asked:
        assert host == "hub" or "hf_secret" not in request
    return message


def listings() -> Iterator[tuple[str, bytes]]:
    yield "nested lists", b"[" * 200_000
    yield "nested objects", b'{"a":' * 200_000
    yield "nested in a value", json.dumps(LISTING).encode()[:-1] + b',"x":' + b"[" * 100_000
    yield "not text", b"\xff\xfe\x00{"
    yield "UTF-16", json.dumps(LISTING).encode("utf-16")
    yield "a long number", b'{"sha":' + b"9" * 100_000 + b"}"
    yield "a page", b"<!DOCTYPE html><title>Log in</title>"
    yield "nothing", b""
    yield "a constant", b"NaN"
    for odd in ODD:
        yield f"{odd!r:.20} for the listing", json.dumps(odd).encode()
        for key in LISTING:
            yield f"{odd!r:.20} for {key}", json.dumps({**LISTING, key: odd}).encode()
        (sibling,) = LISTING["siblings"]
        for key in sibling:
            value = {**LISTING, "siblings": [{**sibling, key: odd}]}
            yield f"{odd!r:.20} for a file's {key}", json.dumps(value).encode()
        for key in ("sha256", "size"):
            lfs = {**sibling["lfs"], key: odd}
            value = {**LISTING, "siblings": [{**sibling, "lfs": lfs}]}
            yield f"{odd!r:.20} for {key} in lfs", json.dumps(value).encode()


def test_any_listing_is_used_or_refused(lying: LyingHub, store: Store, tmp_path: Path) -> None:
    for number, (name, body) in enumerate(listings()):
        lying.lies = {"api": raw(200, body)}
        fresh = Store(home=tmp_path / f"{number}", hub_cache=tmp_path / f"hub{number}")
        try:
            outcome(lying, fresh)
        except Exception as error:
            raise AssertionError(name) from error


HEADERS = {
    "Content_Range": [
        *(f"bytes {n}-{n}/{n}" for n in NUMBERS),
        *("bytes 5-4/9", "bytes */60004", "bytes 0-4999/*", "none", "bytes 0-99999999/60004"),
    ],
    "Content_Length": NUMBERS,
    "ETag": ['"' + "9" * 5000 + '"', '"\x01"', "é", "W/", '"\u2028"', "", '"a" "b"'],
    "Retry_After": [*NUMBERS, "Thu, 99 Foo 99999 99:99:99 GMT", "Mon, 01 Jan 0001 00:00:00 +2359"],
    "Content_Encoding": ["gzip", "br", "zstd", "x" * 5000, "gzip, gzip"],
    "Transfer_Encoding": ["chunked", "gzip, chunked", "x"],
    "Set_Cookie": ["a=b; expires=99999999999999", "x" * 20_000],
    "X_Error_Code": ["GatedRepo", "9" * 5000, "\x01"],
    "Content_Type": ["text/html; charset=utf-7", "x" * 5000, "application/json; charset=nonsense"],
}


@pytest.mark.parametrize("status", [206, 503])
@pytest.mark.parametrize("endpoint", ["api", "storage"])
def test_any_header_is_used_or_refused(
    lying: LyingHub, tmp_path: Path, endpoint: str, status: int
) -> None:
    body = json.dumps(LISTING).encode() if endpoint == "api" else DATA[:5000]
    honest = {} if endpoint == "api" else {"Content_Range": f"bytes 0-4999/{len(DATA)}"}
    number = 0
    for name, values in HEADERS.items():
        for value in values:
            number += 1
            lying.times, lying.lies = 1, {endpoint: raw(status, body, **{**honest, name: value})}
            fresh = Store(home=tmp_path / f"{number}", hub_cache=tmp_path / f"hub{number}")
            try:
                outcome(lying, fresh)
            except Exception as error:
                raise AssertionError(f"{name}: {value:.40}") from error


@pytest.mark.parametrize(
    "location",
    [
        *("", " ", "http://", "http:///x", "http://[::1", "http://a:99999/", "http://a:b/"),
        *("file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://\x7f/", "x" * 100_000),
        *("http://" + "a" * 300 + ".example/", "http://xn--/", "http://a\\b@c/", "javascript:0"),
        *("http://user:hf@127.0.0.1:9/", "http://127.0.0.1:9/", "http://٣/", "/same", "?", "#"),
    ],
)
@pytest.mark.parametrize("endpoint", ["api", "resolve", "storage"])
def test_any_redirect_is_followed_or_refused(
    lying: LyingHub, store: Store, endpoint: str, location: str
) -> None:
    lying.lies = {endpoint: raw(302, Location=location)}
    outcome(lying, store)


STATUS_LINES = [
    *(
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"\0" * 9000,
    ),
    *(
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 999 X\r\n\r\n",
        b"SSH-2.0\r\n",
    ),
    *(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 304 X\r\n\r\n", b"HTTP/1.1 300 X\r\n\r\n"),
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"9" * 5000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut",
    b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    *(raw(status) for status in (204, 400, 401, 403, 404, 410, 416, 418, 429, 451, 500, 502)),
    raw(200, gzip.compress(b" " * 10**8), Content_Encoding="gzip"),
    b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200_000)) + b"\r\n",
]


@pytest.mark.parametrize("answer", STATUS_LINES, ids=lambda answer: repr(answer[:40]))
@pytest.mark.parametrize("endpoint", ["api", "resolve", "storage"])
def test_any_answer_is_used_or_refused(
    lying: LyingHub, store: Store, endpoint: str, answer: bytes
) -> None:
    lying.lies = {endpoint: answer}
    assert outcome(lying, store)


def trickle(start: bytes, piece: bytes, pause_s: float = 0.05) -> Iterator[bytes]:
    yield start
    while True:
        time.sleep(pause_s)
        yield piece


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "headers": (HEAD, b"x"),
    "informational answers": (b"", b"HTTP/1.1 103 Early\r\n\r\n"),
    "a body": (HEAD + b"Content-Length: 60004\r\n\r\n", b" "),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "an extension of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "silence": (b"", b""),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("endpoint", ["api", "storage"])
def test_an_answer_that_trickles_has_an_end(
    lying: LyingHub, store: Store, monkeypatch: pytest.MonkeyPatch, endpoint: str, kind: str
) -> None:
    monkeypatch.setattr(catalog.hub.client, "LEAST_BYTES_PER_S", 10**6)
    lying.lies = {endpoint: lambda: trickle(*ENDLESS[kind])}
    assert re.search("timed out|too slowly", outcome(lying, store))


def test_an_endless_listing_is_refused(
    lying: LyingHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.hub.client, "MAX_LISTING_BYTES", 10**6)
    lying.lies = {"api": lambda: trickle(HEAD + b"\r\n", b" " * 10**5, pause_s=0)}
    assert "larger than 1,000,000 bytes" in outcome(lying, store)


@pytest.mark.parametrize("endpoint", ["api", "storage"])
@pytest.mark.parametrize(
    "answer",
    [
        *(raw(status) for status in (429, 500, 502, 503, 504)),
        HEAD + b"Content-Length: 60004\r\n\r\nGGUF",
    ],
)
def test_a_busy_hub_and_a_cut_are_retried(
    lying: LyingHub, store: Store, endpoint: str, answer: bytes
) -> None:
    lying.times, lying.lies = 2, {endpoint: answer}
    assert outcome(lying, store) == ""


def test_a_listing_waits_as_long_as_the_hub_asks(lying: LyingHub) -> None:
    told: list[float] = []
    lying.times, lying.lies = 1, {"api": raw(429, Retry_After="1")}
    hub = Hub(lying.urls["hub"], retry=QUICK, on_retry=lambda reason, wait_s: told.append(wait_s))
    catalog.hub.client.RETRY_WITHIN_S = 2.0
    assert hub.files("org/repo")
    assert told == [1.0]
    lying.times, lying.lies = 1, {"api": raw(429, Retry_After="3600")}
    with pytest.raises(catalog.HubUnreachable, match="HTTP 429; try again in 300 s"):
        Hub(lying.urls["hub"]).files("org/repo")


def test_a_header_goes_on_from_where_it_was_cut(lying: LyingHub) -> None:
    head = (
        f"HTTP/1.1 206 X\r\nContent-Range: bytes 0-4999/{len(DATA)}\r\nContent-Length: 5000\r\n\r\n"
    )
    lying.times, lying.lies = 1, {"storage": head.encode() + DATA[:2000]}
    hub = Hub(lying.urls["hub"], retry=QUICK)
    (file,) = hub.files("org/repo")
    assert hub.header(file, 5000) == DATA[:5000]
    assert "range: bytes=2000-4999" in lying.asked[-1][1].lower()
