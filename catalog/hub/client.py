"""The Hugging Face Hub: listings, header bytes, and byte ranges of a file.

The only importer of huggingface_hub, and only inside functions: its client brings proxies and
certificates, its settings the endpoint, the token, offline mode and the cache's place. Headers are
our own, so that nothing but the request itself is sent. Settings that its client cannot use are
BadSetting, whatever the client makes of them. A token goes to the endpoint and to no
other host, and no redirect leads from https to http. Nothing here writes to the disk.
"""

from __future__ import annotations

import email.utils
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from catalog.errors import AccessDenied, BadSetting, CatalogError, HubUnreachable, ModelNotFound
from catalog.names import is_repository, is_safe, select
from catalog.resolve import Reference

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0  # silence for so long ends a transfer
MAX_REDIRECTS = 5
PROBE_BYTES = 4 * 2**20  # over so much it shows whether an answer is fast
FAST_BYTES_PER_S = 40e6
READ_BYTES = 2**20
MAX_LISTING_BYTES = 64 * 2**20

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Interrupted(HubUnreachable):
    """A failure that may pass. `retry_after_s` is what the server asked for, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit. `revision` is the branch or tag that was asked for."""

    repository: str
    name: str
    size_bytes: int
    sha256: str | None
    etag: str
    commit: str
    revision: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An opened range [start, end) of a file, and its bytes as they come.

    whole: the file from its start, whatever was asked for.
    abort: breaks it off from any thread, also while another waits for bytes.
    """

    start: int
    end: int
    etag: str | None
    whole: bool
    chunks: Iterator[bytes]
    abort: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who was asked: the hub itself or its storage, with a token or not, about which page."""

    of_hub: bool
    token: bool
    page: str


def cache_folder() -> Path:
    """Return the folder that huggingface_hub caches repositories in."""
    return Path(_constants().HF_HUB_CACHE)


class Hub:
    """One hub; by default the one, and with the token, that huggingface_hub is set up for."""

    def __init__(
        self, endpoint: str | None = None, token: str | None = None, offline: bool = False
    ) -> None:
        constants = _constants()
        self.endpoint = _sound_endpoint(endpoint or constants.ENDPOINT)
        self.offline = offline or constants.is_offline_mode()
        implicit = not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and not self.offline
        self._token = token or (_stored_token() if implicit else None)
        self._heads: dict[tuple[str, str], bytes] = {}
        self._listings: dict[tuple[str, str | None], tuple[RemoteFile, ...]] = {}

    def files(self, repository: str, revision: str | None = None) -> tuple[RemoteFile, ...]:
        """List a repository's files with their sizes and LFS hashes; a revision is asked for once.

        Raises ModelNotFound, AccessDenied or HubUnreachable.
        """
        if not is_repository(repository):
            raise ModelNotFound(f"{repository!r} is not the name of a repository")
        key = (repository, revision)
        if key not in self._listings:
            self._listings[key] = self._listed(repository, revision)
        return self._listings[key]

    def _listed(self, repository: str, revision: str | None) -> tuple[RemoteFile, ...]:
        url = f"{self.endpoint}/api/models/{repository}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        listing = self._json(f"{url}?blobs=true", repository)
        commit = listing.get("sha")
        siblings = listing.get("siblings")
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)) or not siblings:
            raise ModelNotFound(f"{repository} has no files")
        found = (_remote_file(s, repository, commit, revision or "main") for s in siblings)
        return tuple(file for file in found if file is not None)

    def find(self, reference: Reference) -> tuple[RemoteFile, ...]:
        """List the repository of a reference and return the parts of the model that it means."""
        if reference.repository is None:
            raise ModelNotFound("this model does not come from the hub")
        files = self.files(reference.repository, reference.revision)
        by_name = {file.name: file for file in files}
        facts = reference.facts
        chosen = select(
            by_name,
            reference.repository,
            quant=reference.wanted_quant,
            file=reference.file,
            known=facts.names if facts else (),
        )
        return tuple(by_name[name] for name in chosen.names)

    def header(self, file: RemoteFile, size_bytes: int) -> bytes:
        """Return the first `size_bytes` of a file (fewer if it ends) by HTTP Range.

        What an earlier call fetched is not fetched again.
        """
        key = (file.repository, file.etag)
        have = self._heads.get(key, b"")
        size_bytes = min(size_bytes, file.size_bytes)
        if len(have) < size_bytes:
            with self.open(file, len(have), size_bytes) as answer:
                skip = len(have) - answer.start  # a server without ranges starts at 0
                got = bytearray()
                for chunk in answer.chunks:
                    got += chunk
                    if len(got) - skip >= size_bytes - len(have):
                        break
            have = self._heads[key] = have + bytes(got[skip : skip + size_bytes - len(have)])
        if len(have) < size_bytes:
            raise Interrupted(f"{file.name}: the answer ended after {len(have):,} bytes")
        return have[:size_bytes]

    def head(self, file: RemoteFile) -> bytes:
        """Return the first bytes of a file as far as `header` has read them."""
        return self._heads.get((file.repository, file.etag), b"")

    @contextmanager
    def open(
        self, file: RemoteFile, start: int, end: int, if_range: str | None = None
    ) -> Iterator[Answer]:
        """Open bytes [start, end) of a file; the answer may start at 0 if ranges aren't honoured.

        if_range: the ETag that an earlier answer carried; another one makes the answer start at 0.
        """
        path = f"{quote(file.repository)}/resolve/{file.commit}/{quote(file.name)}"
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if if_range and not if_range.startswith("W/"):
            headers["If-Range"] = if_range
        with self._get(f"{self.endpoint}/{path}", file.name, file.repository, headers) as response:
            yield _answer(response, file, start, end)

    def _json(self, url: str, what: str) -> dict[str, Any]:
        import json

        with self._get(url, what, what, {}) as response:
            body = bytearray()
            for chunk in _translated(response.iter_bytes(), what):
                body += chunk
                if len(body) > MAX_LISTING_BYTES:
                    raise HubUnreachable(f"{what}: the listing is larger than any real one")
        try:
            listing = json.loads(body)
        except ValueError as error:
            raise HubUnreachable(f"{what}: the answer is not the hub's: {error}") from error
        if not isinstance(listing, dict):
            raise HubUnreachable(f"{what}: the answer is not a listing")
        return listing

    @contextmanager
    def _get(
        self, url: str, what: str, repository: str, headers: dict[str, str]
    ) -> Iterator[httpx2.Response]:
        """GET, following redirects by hand. Yields a successful response, its body unread."""
        if self.offline:
            raise HubUnreachable(f"{what}: offline mode is on")
        import httpx2

        client, page = _client(), f"{self.endpoint}/{repository}"
        timeout = httpx2.Timeout(STALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": "conifer", "Accept-Encoding": "identity", **headers}
            if self._token and _origin(url) == _origin(self.endpoint):
                sent["Authorization"] = f"Bearer {self._token}"
            with (
                _failures(what),
                client.stream(
                    "GET", url, headers=sent, timeout=timeout, follow_redirects=False
                ) as response,
            ):
                if not response.has_redirect_location:
                    of_hub = _origin(url) == _origin(self.endpoint)
                    _check_status(response, what, _Asked(of_hub, bool(self._token), page))
                    yield response
                    return
                url = _next_url(url, response.headers["Location"], what)
        raise HubUnreachable(f"{what}: more than {MAX_REDIRECTS} redirects")


def _constants() -> ModuleType:
    """Load the client's settings. Raises BadSetting for a number that is none."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise BadSetting(
            f"a variable HF_... of the environment has a bad value: {error}"
        ) from error
    return constants


def _sound_endpoint(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no address, or no port
        sound = False
    if not sound:
        raise BadSetting(f"HF_ENDPOINT: {endpoint!r} is not the address of a hub")
    return endpoint.rstrip("/")


def _stored_token() -> str | None:
    """Return the token that the client is set up with. Raises BadSetting if it cannot be one."""
    from huggingface_hub import get_token

    path = _constants().HF_TOKEN_PATH
    try:
        token = get_token()
    except OSError as error:
        raise BadSetting(f"HF_TOKEN_PATH: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadSetting(f"HF_TOKEN_PATH: {path} holds no token") from error
    if token and not (token.isascii() and token.isprintable()):
        raise BadSetting(f"HF_TOKEN (or the file {path}) holds characters that no token has")
    return token


def _client() -> httpx2.Client:
    """Return the client's session. Raises BadSetting for a proxy or certificates it cannot use."""
    import httpx2
    from huggingface_hub import get_session

    try:
        return get_session()
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise BadSetting(
            "the network client cannot be set up by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or "
            f"SSL_CERT_FILE: {error}"
        ) from error


def _remote_file(sibling: Any, repository: str, commit: str, revision: str) -> RemoteFile | None:
    """Read one file of a listing; None if its name may not become a path or it has no size."""
    if not isinstance(sibling, dict):
        return None
    name, lfs = sibling.get("rfilename"), sibling.get("lfs") or {}
    size = lfs.get("size", sibling.get("size"))
    if not (isinstance(name, str) and is_safe(name) and type(size) is int and size >= 0):
        return None
    sha256 = lfs.get("sha256")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        sha256 = None
    etag = sha256 or str(sibling.get("blobId"))
    return RemoteFile(repository, name, size, sha256, etag, commit, revision)


def _answer(response: httpx2.Response, file: RemoteFile, start: int, most: int) -> Answer:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise HubUnreachable(f"{file.name}: the server compresses what must come as it is")
    first, end, total = 0, file.size_bytes, file.size_bytes
    whole = response.status_code == 200
    if not whole:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or int(found[2]) >= most:
            raise Interrupted(f"{file.name}: the server answered with another range")
        first, end, total = start, int(found[2]) + 1, int(found[3])
    if total != file.size_bytes:
        raise HubUnreachable(
            f"{file.name}: the server has {total:,} bytes, the listing says {file.size_bytes:,}"
        )
    chunks = _translated(_body(response), file.name)  # as they come: a cut loses none
    etag = response.headers.get("ETag")
    return Answer(first, end, etag, whole, chunks, lambda: _abort(response))


def _body(response: httpx2.Response) -> Iterator[bytes]:
    """Yield a body; what comes fast is read from the connection itself, a MiB at a time.

    The HTTP client hands on 64 KiB at a time, at a cost that then is the limit. Between two of its
    pieces it holds back none of a body of known length. Such a connection is not used again, which
    is why a slow one, where a new one costs more, is left to the client.
    """
    stream = response.extensions.get("network_stream")
    plain = response.http_version == "HTTP/1.1" and "Transfer-Encoding" not in response.headers
    length = response.headers.get("Content-Length", "")
    end = int(length) if stream is not None and plain and length.isdecimal() else 0
    at, start, fast = 0, time.monotonic(), False
    pieces = response.iter_raw()  # kept: its end would close the connection
    for chunk in pieces:
        at += len(chunk)
        yield chunk
        fast = at >= PROBE_BYTES and at > FAST_BYTES_PER_S * (time.monotonic() - start)
        if fast and end - at > PROBE_BYTES:
            break
    while stream is not None and fast and at < end:
        chunk = stream.read(min(READ_BYTES, end - at), STALL_TIMEOUT_S)
        if not chunk:
            return
        at += len(chunk)
        yield chunk


def _abort(response: httpx2.Response) -> None:
    """Shut the connection: whoever reads from it is woken by its end."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the HTTP client's failures into ours."""
    import httpcore2
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(f"{what}: offline mode is on") from error
    except (httpx2.TimeoutException, httpcore2.TimeoutException) as error:
        raise Interrupted(f"{what}: no answer in time") from error
    except (httpx2.TransportError, httpcore2.NetworkError) as error:
        raise Interrupted(f"{what}: {error or type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise HubUnreachable(f"{what}: {error}") from error


def _translated(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    with _failures(what):
        yield from chunks


def _check_status(response: httpx2.Response, what: str, asked: _Asked) -> None:
    """Raise what a status other than success means."""
    status = response.status_code
    if status in (200, 206):
        return
    if status in _WORTH_RETRYING or not asked.of_hub:  # a link to storage may have run out
        who = "the hub" if asked.of_hub else "its storage"
        raise Interrupted(f"{what}: {who} answered {status}", _retry_after(response))
    code = response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        raise AccessDenied(
            f"{what} is gated, and this token's account has not been let in: see {asked.page}"
            if asked.token
            else f"{what} is gated: its publisher's terms must be accepted at {asked.page}, "
            "and a token of that account be sent"
        )
    absent = ModelNotFound(f"{what}: the hub has no such repository, revision or file")
    hidden = ModelNotFound(  # who sends no token is told the same of what is private
        f"{what}: the hub has no such repository, or it is private or gated: HF_TOKEN must then be "
        "set to a token that may read it"
    )
    if status != 401 and code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        raise absent
    failures: dict[int, CatalogError] = {
        401: AccessDenied(f"{what}: the hub does not accept this token") if asked.token else hidden,
        403: AccessDenied(f"{what}: the hub refuses it to this token"),
        404: absent,
        416: Interrupted(f"{what}: the server has not the range that was asked for"),
    }
    raise failures.get(status, HubUnreachable(f"{what}: the hub answered {status}"))


def _retry_after(response: httpx2.Response) -> float | None:
    """Read how many seconds, or until what date, the server asks to wait."""
    text = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,6}", text):
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(until.timestamp() - time.time(), 0.0)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _next_url(url: str, location: str, what: str) -> str:
    target = urljoin(url, location)
    if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
        raise HubUnreachable(f"{what}: refused a redirect from https to {target.split(':')[0]}")
    return target
