"""A client for the Hugging Face Hub: file listings, GGUF headers and byte ranges.

This is the only module that imports huggingface_hub. It uses that library's session and settings,
and raises BadSetting if they are invalid. It sends its own request headers, so no telemetry is
sent. The token is sent only to the endpoint, and redirects from https to http are refused. Nothing
here writes to disk.
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
from catalog.file_names import is_repository, is_safe
from catalog.files import parse_json
from catalog.hub.paths import COMMIT, SHA256
from catalog.resolve import Reference

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0  # the maximum wait for the next byte
MAX_REDIRECTS = 5
PROBE_BYTES = 4 * 2**20  # measure the speed over this many bytes
FAST_BYTES_PER_S = 40e6
READ_BYTES = 2**20
MAX_LISTING_BYTES = 64 * 2**20

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransientError(HubUnreachable):
    """A failure that a retry may fix. `retry_after_s` is the delay the server sent, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository at one commit. `revision` is the requested branch or tag."""

    repository: str
    name: str
    size_bytes: int
    sha256: str | None
    etag: str
    commit: str
    revision: str


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """A streamed response with the bytes [start, end) of a file.

    whole: True if the server ignored the range and sent the whole file.
    abort: a function that closes the connection; any thread may call it.
    """

    start: int
    end: int
    etag: str | None
    whole: bool
    chunks: Iterator[bytes]
    abort: Callable[[], None]


def cache_folder() -> Path:
    """Return huggingface_hub's cache folder."""
    return Path(_constants().HF_HUB_CACHE)


class Hub:
    """A client for one Hub. Endpoint and token default to huggingface_hub's settings."""

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
        """List a repository's files with sizes and LFS hashes. Each revision is fetched once.

        Raises ModelNotFound, AccessDenied or HubUnreachable.
        """
        if not is_repository(repository):
            raise ModelNotFound(f"{repository!r} is not a valid repository name")
        key = (repository, revision)
        if key not in self._listings:
            self._listings[key] = self._listed(repository, revision)
        return self._listings[key]

    def _listed(self, repository: str, revision: str | None) -> tuple[RemoteFile, ...]:
        url = f"{self.endpoint}/api/models/{repository}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        listing = self._json(f"{url}?blobs=true", repository)
        commit, siblings = listing.get("sha"), listing.get("siblings")
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit)) or not siblings:
            raise ModelNotFound(f"{repository} has no files")
        found = (_remote_file(s, repository, commit, revision or "main") for s in siblings)
        return tuple(file for file in found if file is not None)

    def find(self, reference: Reference) -> tuple[RemoteFile, ...]:
        """Return the model files that a reference selects, with all parts in order."""
        if reference.repository is None:
            raise ModelNotFound("this model is not available on the Hub")
        files = self.files(reference.repository, reference.revision)
        by_name = {file.name: file for file in files}
        return tuple(by_name[name] for name in reference.select(by_name).names)

    def header(self, file: RemoteFile, size_bytes: int) -> bytes:
        """Return up to the first `size_bytes` bytes of a file. Reuses bytes from earlier calls."""
        key = (file.repository, file.etag)
        have = self._heads.get(key, b"")
        size_bytes = min(size_bytes, file.size_bytes)
        if len(have) < size_bytes:
            with self.open(file, len(have), size_bytes) as response:
                skip = len(have) - response.start  # servers that ignore ranges start at 0
                got = bytearray()
                for chunk in response.chunks:
                    got += chunk
                    if len(got) - skip >= size_bytes - len(have):
                        break
            have = self._heads[key] = have + bytes(got[skip : skip + size_bytes - len(have)])
        if len(have) < size_bytes:
            raise TransientError(f"{file.name}: the connection closed after {len(have):,} bytes")
        return have[:size_bytes]

    def head(self, file: RemoteFile) -> bytes:
        """Return the bytes that `header` has read so far."""
        return self._heads.get((file.repository, file.etag), b"")

    @contextmanager
    def open(
        self, file: RemoteFile, start: int, end: int, if_range: str | None = None
    ) -> Iterator[RangeResponse]:
        """Request bytes [start, end) of a file.

        The response starts at 0 if the server ignores ranges, or if the file has changed since an
        earlier response with the ETag `if_range`.
        """
        path = f"{quote(file.repository)}/resolve/{file.commit}/{quote(file.name)}"
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if if_range and not if_range.startswith("W/"):
            headers["If-Range"] = if_range
        with self._get(f"{self.endpoint}/{path}", file.name, file.repository, headers) as response:
            yield _range_response(response, file, start, end)

    def _json(self, url: str, what: str) -> dict[str, Any]:
        with self._get(url, what, what, {}) as response:
            body = bytearray()
            for chunk in _translated(response.iter_bytes(), what):
                body += chunk
                if len(body) > MAX_LISTING_BYTES:
                    most = f"{MAX_LISTING_BYTES:,} bytes"
                    raise HubUnreachable(f"{what}: the file listing is larger than {most}")
        listing = parse_json(bytes(body), dict)
        if listing is None:
            raise HubUnreachable(f"{what}: the response is not a JSON file listing")
        return listing

    @contextmanager
    def _get(
        self, url: str, what: str, repository: str, headers: dict[str, str]
    ) -> Iterator[httpx2.Response]:
        """Send a GET request and follow redirects. Yields the response before its body is read."""
        if self.offline:
            raise HubUnreachable(f"{what}: offline mode is on")
        import httpx2

        client = _client()
        timeout = httpx2.Timeout(STALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": "conifer", "Accept-Encoding": "identity", **headers}
            if self._token and self._owns(url):
                sent["Authorization"] = f"Bearer {self._token}"
            with (
                _failures(what),
                client.stream(
                    "GET", url, headers=sent, timeout=timeout, follow_redirects=False
                ) as response,
            ):
                if not response.has_redirect_location:
                    if response.status_code not in (200, 206):
                        page = f"{self.endpoint}/{repository}"
                        raise _error(response, what, page, self._owns(url), bool(self._token))
                    yield response
                    return
                url = _next_url(url, response.headers["Location"], what)
        raise HubUnreachable(f"{what}: more than {MAX_REDIRECTS} redirects")

    def _owns(self, url: str) -> bool:
        """True if a URL belongs to the Hub itself, not to its storage servers."""
        return _origin(url) == _origin(self.endpoint)


def _constants() -> ModuleType:
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise BadSetting(f"an HF_* environment variable has an invalid value: {error}") from error
    return constants


def _sound_endpoint(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a URL, or an invalid port
        sound = False
    if not sound:
        raise BadSetting(f"HF_ENDPOINT must be an http or https URL, got {endpoint!r}")
    return endpoint.rstrip("/")


def _stored_token() -> str | None:
    from huggingface_hub import get_token

    path = _constants().HF_TOKEN_PATH
    try:
        token = get_token()
    except OSError as error:
        raise BadSetting(
            f"cannot read HF_TOKEN_PATH ({path}): {error.strerror or error}"
        ) from error
    except UnicodeDecodeError as error:
        raise BadSetting(f"HF_TOKEN_PATH ({path}) does not contain a token") from error
    if token and not (token.isascii() and token.isprintable()):
        raise BadSetting(f"HF_TOKEN (or the file {path}) contains invalid characters")
    return token


def _client() -> httpx2.Client:
    import httpx2
    from huggingface_hub import get_session

    try:
        return get_session()
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        names = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or SSL_CERT_FILE"
        raise BadSetting(f"invalid network setting in {names}: {error}") from error


def _remote_file(sibling: Any, repository: str, commit: str, revision: str) -> RemoteFile | None:
    if not isinstance(sibling, dict):
        return None
    name, lfs = sibling.get("rfilename"), sibling.get("lfs") or {}
    size = lfs.get("size", sibling.get("size"))
    if not (isinstance(name, str) and is_safe(name) and type(size) is int and size >= 0):
        return None
    sha256 = lfs.get("sha256")
    if not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        sha256 = None
    etag = sha256 or str(sibling.get("blobId"))
    return RemoteFile(repository, name, size, sha256, etag, commit, revision)


def _range_response(
    response: httpx2.Response, file: RemoteFile, start: int, most: int
) -> RangeResponse:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise HubUnreachable(f"{file.name}: the server sent a compressed response")
    first, end, total = 0, file.size_bytes, file.size_bytes
    whole = response.status_code == 200
    if not whole:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or int(found[2]) >= most:
            raise TransientError(f"{file.name}: the server sent the wrong byte range")
        first, end, total = start, int(found[2]) + 1, int(found[3])
    if total != file.size_bytes:
        raise HubUnreachable(
            f"{file.name}: expected {file.size_bytes:,} bytes, but the server has {total:,} bytes"
        )
    chunks = _translated(_body(response), file.name)
    etag = response.headers.get("ETag")
    return RangeResponse(first, end, etag, whole, chunks, lambda: _abort(response))


def _body(response: httpx2.Response) -> Iterator[bytes]:
    """Yield a response body in chunks. Fast responses are read from the socket, 1 MiB at a time.

    httpx yields 64 KiB chunks, which limits throughput. It buffers nothing between chunks if the
    content length is known. A connection read directly cannot be reused, so this is only worth it
    for fast responses.
    """
    stream = response.extensions.get("network_stream")
    plain = response.http_version == "HTTP/1.1" and "Transfer-Encoding" not in response.headers
    length = response.headers.get("Content-Length", "")
    end = int(length) if stream is not None and plain and length.isdecimal() else 0
    at, start, fast = 0, time.monotonic(), False
    pieces = response.iter_raw()  # keep a reference: garbage collection closes the connection
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
    """Shut down the connection, which wakes up a blocked reader."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with suppress(OSError):  # already closed
            connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _failures(what: str) -> Iterator[None]:
    import httpcore2
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(f"{what}: offline mode is on") from error
    except (httpx2.TimeoutException, httpcore2.TimeoutException) as error:
        raise TransientError(f"{what}: the connection timed out") from error
    except (httpx2.TransportError, httpcore2.NetworkError) as error:
        raise TransientError(f"{what}: {error or type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise HubUnreachable(f"{what}: {error}") from error


def _translated(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    with _failures(what):
        yield from chunks


def _error(
    response: httpx2.Response, what: str, page: str, to_hub: bool, token: bool
) -> CatalogError:
    status = response.status_code
    if status in _RETRYABLE or not to_hub:  # a storage URL may have expired
        who = "the Hub" if to_hub else "the Hub's storage server"
        return TransientError(f"{what}: {who} returned HTTP {status}", _retry_after(response))
    code = response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return AccessDenied(
            f"{what} is gated, and the token's account has no access; request access at {page}"
            if token
            else f"{what} is gated; accept its terms at {page}, then set HF_TOKEN to a token "
            "from that account"
        )
    absent = ModelNotFound(f"{what}: no such repository, revision or file on the Hub")
    hidden = ModelNotFound(  # without a token, private repositories look absent
        f"{what}: not found on the Hub; if the repository is private or gated, set HF_TOKEN to a "
        "token that has access"
    )
    if status != 401 and code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound"):
        return absent
    failures: dict[int, CatalogError] = {
        401: AccessDenied(f"{what}: the Hub rejected the token") if token else hidden,
        403: AccessDenied(f"{what}: the token does not have access"),
        404: absent,
        416: TransientError(f"{what}: the server does not have the requested byte range"),
    }
    return failures.get(status, HubUnreachable(f"{what}: the Hub returned HTTP {status}"))


def _retry_after(response: httpx2.Response) -> float | None:
    """Parse a Retry-After header, a number or a date, into a delay in seconds."""
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
