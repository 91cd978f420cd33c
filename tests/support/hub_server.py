"""A loopback Hub: the protocol of the real one, spoken to the real client, with scripted faults.

Two servers on two ports: the hub answers listings and redirects every `resolve` to the second, as
the real hub does to its storage. Requests are recorded; bytes of files are counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Request:
    """What a client sent. `host` is "hub" or "storage"."""

    host: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What storage does to one request instead of answering it properly; each is used once.

    kind: "cut" (close after `at` bytes), "flip" (damage byte `at`), "status" (answer `at`),
    "no-range" (200 from the start), "wrong-range", "stall" (silence after `at` bytes), "gzip",
    "short" (a whole answer that lacks bytes), "new-etag".
    """

    kind: str
    at: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class HubServer:
    """A running hub. `files`: repository/name -> bytes.

    gated: repositories that want `token`. private: those that nobody without it is told of.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    commit: str = COMMIT
    token: str = "hf_secret"
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    bytes_served: int = 0
    first_byte_at: float = 0.0  # time.perf_counter() when storage sent something; 0 before
    last_byte_at: float = 0.0
    most_at_once: int = 0  # bodies that storage was sending
    ranges: bool = True  # whether storage knows any
    etags: Iterator[str] | None = None  # what storage says instead of the same each time
    throttle_bytes_per_s: float = 0
    renamed: dict[str, str] = field(default_factory=dict)  # lower-case name -> the Hub's name
    redirect: str = "storage"  # or "loop", or an address to redirect to
    url: str = ""
    storage_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    sending: int = 0
    _digests: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def sent_to(self, host: str) -> list[Request]:
        """The requests that one of the two hosts received."""
        return [r for r in self.requests if r.host == host]

    def listing(self, repository: str) -> dict[str, Any] | None:
        """What `api/models/<repository>?blobs=true` answers."""
        names = [k.removeprefix(f"{repository}/") for k in self.files if k.startswith(repository)]
        if not names:
            return None
        return {
            "id": repository,
            "modelId": repository,
            "sha": self.commit,
            "siblings": [self._sibling(repository, name) for name in names],
        }

    def digest(self, path: str) -> str:
        """The SHA-256 of a file, computed once as long as its bytes stay the same object."""
        data = self.files[path]
        if self._digests.get(path, (None, ""))[0] is not data:
            self._digests[path] = (data, sha256(data))
        return self._digests[path][1]

    def _sibling(self, repository: str, name: str) -> dict[str, Any]:
        digest = self.digest(f"{repository}/{name}")
        size = len(self.files[f"{repository}/{name}"])
        lfs = {"sha256": digest, "size": size, "pointerSize": 134}
        small = not name.endswith(".gguf")
        return {
            "rfilename": name,
            "size": size,
            "blobId": hashlib.sha1(digest.encode()).hexdigest(),
            **({} if small else {"lfs": lfs}),
        }


def sha256(data: bytes) -> str:
    """The hex digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Run a hub on two ports of the loopback interface."""
    hub = HubServer()
    servers = [_Server(("127.0.0.1", 0), _handler(hub, n)) for n in ("hub", "storage")]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that is killed, or has seen enough, is nothing to speak of."""


def _handler(hub: HubServer, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.requests.append(Request(host, self.path, headers))
            path = unquote(urlsplit(self.path).path).lstrip("/")
            answer = _api if path.startswith("api/") else _resolve
            (_storage if host == "storage" else answer)(self, hub, path)

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _authorized(handler: Any, hub: HubServer) -> bool:
    return handler.headers.get("Authorization") == f"Bearer {hub.token}"


def _denied(handler: Any, hub: HubServer, repository: str) -> bool:
    if repository in hub.gated and not _authorized(handler, hub):
        handler.answer(403, b"{}", X_Error_Code="GatedRepo")
        return True
    return False


def _api(handler: Any, hub: HubServer, path: str) -> None:
    repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
    if (name := hub.renamed.get(repository.lower(), repository)) != repository:
        handler.answer(307, Location=handler.path.replace(repository, name))
        return
    listing = hub.listing(repository)
    hidden = repository in hub.private and not _authorized(handler, hub)
    if listing is None or hidden:  # which of the two, somebody with a token is told
        status = 404 if "Authorization" in handler.headers else 401
        handler.answer(status, b"{}", X_Error_Code="RepoNotFound")
    elif revision not in ("", "main", hub.commit):
        handler.answer(404, b"{}", X_Error_Code="RevisionNotFound")
    elif not _denied(handler, hub, repository):
        handler.answer(200, json.dumps(listing).encode(), Content_Type="application/json")


def _resolve(handler: Any, hub: HubServer, path: str) -> None:
    repository, _, rest = path.partition("/resolve/")
    name = rest.partition("/")[2]
    data = hub.files.get(f"{repository}/{name}")
    if data is None:
        handler.answer(404, X_Error_Code="EntryNotFound")
    elif not _denied(handler, hub, repository):
        targets = {"storage": f"{hub.storage_url}/{repository}/{name}", "loop": handler.path}
        handler.answer(
            302,
            Location=targets.get(hub.redirect, hub.redirect),
            X_Repo_Commit=hub.commit,
            X_Linked_Size=str(len(data)),
            X_Linked_ETag=f'"{hub.digest(f"{repository}/{name}")}"',
            ETag=f'"{hub.digest(f"{repository}/{name}")}"',
        )


def _storage(handler: Any, hub: HubServer, path: str) -> None:
    data = hub.files[path]
    fault = hub.faults.pop(0) if hub.faults else Fault("none")
    if fault.kind == "status":
        handler.answer(fault.at, **fault.headers)
        return
    etag = '"other"' if fault.kind == "new-etag" else f'"storage-{hub.digest(path)[:16]}"'
    etag = next(hub.etags) if hub.etags else etag
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    fresh = handler.headers.get("If-Range", etag) == etag
    start, end = 0, len(data)
    if found and fresh and hub.ranges and fault.kind != "no-range":
        start, end = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        shown = start + 1 if fault.kind == "wrong-range" else start
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {shown}-{end - 1}/{len(data)}")
    else:
        handler.send_response(200)
    if fault.kind == "flip":
        data = data[: fault.at] + bytes([data[fault.at] ^ 1]) + data[fault.at + 1 :]
    if fault.kind == "short":
        end -= 1
    if fault.kind == "gzip":
        handler.send_header("Content-Encoding", "gzip")
    handler.send_header("ETag", etag)
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    if handler.command != "HEAD":
        with hub.lock:
            hub.sending += 1
            hub.most_at_once = max(hub.most_at_once, hub.sending)
        try:
            _send(handler, hub, memoryview(data)[start:end], fault)
        finally:
            with hub.lock:
                hub.sending -= 1


def _send(handler: Any, hub: HubServer, body: memoryview, fault: Fault) -> None:
    """Send a body, at the throttled rate, up to where the fault says."""
    broken = fault.kind in ("cut", "stall")
    body = body[: fault.at] if broken else body
    step = 2**20
    if hub.throttle_bytes_per_s:  # little that is sent may be unread
        step = 2**16
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
    for i in range(0, len(body), step):
        piece = body[i : i + step]
        with hub.lock:
            hub.bytes_served += len(piece)
            hub.first_byte_at = hub.first_byte_at or time.perf_counter()
        try:
            handler.wfile.write(piece)
            hub.last_byte_at = time.perf_counter()
        except OSError:  # the client has seen enough
            handler.close_connection = True
            return
        if hub.throttle_bytes_per_s:
            time.sleep(len(piece) / hub.throttle_bytes_per_s)
    if fault.kind == "stall":
        handler.wfile.flush()
        time.sleep(float(fault.headers["seconds"]))
    if broken:
        handler.close_connection = True
