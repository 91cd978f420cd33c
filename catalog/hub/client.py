"""A client for the Hugging Face Hub: file listings, GGUF headers and byte ranges.

It uses huggingface_hub's session and settings, and sends its own request headers, so no telemetry
is sent. The token is sent only to the endpoint, and redirects from https to http are refused.
`answers` checks every header and listing. Nothing here writes to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit

from catalog.errors import AccessDenied, BadSetting, CatalogError, HubUnreachable, ModelNotFound
from catalog.file_names import is_repository
from catalog.hub import answers, session
from catalog.hub.retry import RetryPolicy
from catalog.hub.session import NotConnected, TransientError, abort
from catalog.resolve import Reference

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS = 5
MAX_LOCATION_LENGTH = 2**14  # characters; signed URLs have a few thousand
PROBE_BYTES = 4 * 2**20  # measure the speed over this many bytes
FAST_BYTES_PER_S = 40e6
READ_BYTES = 2**20
MAX_LISTING_BYTES = 16 * 2**20
LISTING_TIMEOUT_S = 120.0  # for the whole body
LEAST_BYTES_PER_S = 8192  # the rate that sets the deadline of a range
RETRY_WITHIN_S = 60.0  # do not retry a listing or header read after this time

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_T = TypeVar("_T")


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
    chunks: Generator[bytes]
    abort: Callable[[], None]


def links_files() -> bool:
    """True unless HF_HUB_DISABLE_SYMLINKS asks for files instead of links in the cache."""
    return not session.constants().HF_HUB_DISABLE_SYMLINKS


def shows_progress() -> bool:
    """True unless HF_HUB_DISABLE_PROGRESS_BARS is set."""
    return not session.constants().HF_HUB_DISABLE_PROGRESS_BARS


def warns_of_links() -> bool:
    """True unless HF_HUB_DISABLE_SYMLINKS_WARNING is set."""
    return not session.constants().HF_HUB_DISABLE_SYMLINKS_WARNING


class Hub:
    """A client for one Hub. Endpoint and token default to huggingface_hub's settings.

    retry: the policy for listings and header reads. on_retry: receives (reason, seconds until the
    next attempt).
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool = False,
        retry: RetryPolicy | None = None,
        on_retry: Callable[[str, float], None] = lambda reason, wait_s: None,
    ) -> None:
        constants = session.constants()
        self.endpoint = _sound_endpoint(endpoint or constants.ENDPOINT)
        self.offline = offline or constants.is_offline_mode()
        implicit = not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and not self.offline
        self._token = token or (session.stored_token() if implicit else None)
        self._retry, self._on_retry = retry or RetryPolicy(), on_retry
        self._heads: dict[tuple[str, str, str], bytes] = {}
        self._listings: dict[tuple[str, str | None], tuple[RemoteFile, ...]] = {}

    def files(self, repository: str, revision: str | None = None) -> tuple[RemoteFile, ...]:
        """List a repository's files with sizes and LFS hashes. Each revision is fetched once.

        The files have the Hub's name for the repository, even if it has been renamed. Raises
        ModelNotFound, AccessDenied or HubUnreachable.
        """
        if not is_repository(repository):
            raise ModelNotFound(f"{repository!r} is not a valid repository name")
        key = (repository, revision)
        if key not in self._listings:
            self._listings[key] = self._retried(lambda: self._listed(repository, revision))
        return self._listings[key]

    def _listed(self, repository: str, revision: str | None) -> tuple[RemoteFile, ...]:
        url = f"{self.endpoint}/api/models/{repository}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        url += "?blobs=true"
        with self._get(url, repository, repository, {}) as response:
            renamed = response.url != url
            listing = answers.listing(_whole_body(response, repository))
        if listing is None:
            raise HubUnreachable(f"{repository}: the response is not a JSON file listing")
        if not listing.files:
            raise ModelNotFound(f"{repository} has no files")
        stated = listing.repository or repository
        name = stated if renamed or stated.lower() == repository.lower() else repository
        return tuple(
            RemoteFile(
                *(name, file.name, file.size_bytes, file.sha256, file.etag),
                *(listing.commit, revision or "main"),
            )
            for file in listing.files
        )

    def _retried(self, read: Callable[[], _T]) -> _T:
        """Repeat a read that failed halfway or at a busy server."""
        failures, started = 0, time.monotonic()
        while True:
            try:
                return read()
            except NotConnected:
                raise
            except TransientError as error:
                failures += 1
                wait_s = self._retry.delay_s(failures, error.retry_after_s)
                elapsed_s = time.monotonic() - started
                if failures > self._retry.retries:
                    raise
                if elapsed_s + wait_s > RETRY_WITHIN_S:
                    later = f"{error}; try again in {wait_s:,.0f} s"
                    raise TransientError(later, error.retry_after_s) from error
                self._on_retry(str(error), wait_s)
                time.sleep(wait_s)

    def find(self, reference: Reference) -> tuple[RemoteFile, ...]:
        """Return the model files that a reference selects, with all parts in order."""
        if reference.repository is None:
            raise ModelNotFound("this model is not available on the Hub")
        files = self.files(reference.repository, reference.revision)
        by_name = {file.name: file for file in files}
        return tuple(by_name[name] for name in reference.select(by_name).names)

    def header(self, file: RemoteFile, size_bytes: int) -> bytes:
        """Return up to the first `size_bytes` bytes of a file. Reuses bytes from earlier calls."""
        size_bytes = min(size_bytes, file.size_bytes)
        self._retried(lambda: self._extend_head(file, size_bytes))
        return self.head(file)[:size_bytes]

    def head(self, file: RemoteFile) -> bytes:
        """Return the bytes that `header` has read so far."""
        return self._heads.get(_head_key(file), b"")

    def _extend_head(self, file: RemoteFile, size_bytes: int) -> None:
        have = self.head(file)
        if len(have) >= size_bytes:
            return
        got = bytearray()
        with self.open(file, len(have), size_bytes) as response:
            skip = len(have) - response.start  # servers that ignore ranges start at 0
            try:
                for chunk in response.chunks:
                    got += chunk
                    if len(got) - skip >= size_bytes - len(have):
                        break
            finally:
                new = bytes(got[skip : skip + size_bytes - len(have)])
                self._heads[_head_key(file)] = have = have + new
        if len(have) < size_bytes:
            raise TransientError(f"{file.name}: the connection closed after {len(have):,} bytes")

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
            found = _range_response(response, file, start, end)
            with closing(found.chunks):
                yield found

    @contextmanager
    def _get(
        self, address: str, what: str, repository: str, headers: dict[str, str]
    ) -> Iterator[httpx2.Response]:
        """Send a GET request and follow redirects. Yields the response before its body is read."""
        if self.offline:
            raise HubUnreachable(f"{what}: offline mode is on")
        import httpx2

        url = httpx2.URL(address)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": "conifer", "Accept-Encoding": "identity", **headers}
            if self._token and self._owns(url):
                sent["Authorization"] = f"Bearer {self._token}"
            with session.get(url, sent, what) as response:
                if not response.has_redirect_location:
                    if response.status_code not in (200, 206):
                        page = f"{self.endpoint}/{repository}"
                        raise _error(response, what, page, self._owns(url), bool(self._token))
                    if answers.header(response.headers, "Content-Encoding") is None:
                        raise HubUnreachable(f"{what}: the server sent a compressed response")
                    yield response
                    return
                url = _next_url(url, response.headers["Location"], what)
        raise HubUnreachable(f"{what}: more than {MAX_REDIRECTS} redirects")

    def _owns(self, url: httpx2.URL) -> bool:
        """True if a URL belongs to the Hub itself, not to its storage servers."""
        import httpx2

        return _origin(url) == _origin(httpx2.URL(self.endpoint))


def _head_key(file: RemoteFile) -> tuple[str, str, str]:
    return file.repository, file.name, file.etag


def _sound_endpoint(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a URL, or an invalid port
        sound = False
    if not sound:
        raise BadSetting(f"HF_ENDPOINT must be an http or https URL, got {endpoint!r}")
    return endpoint.rstrip("/")


def _whole_body(response: httpx2.Response, what: str) -> bytes:
    got = bytearray()
    chunks = session.body(response, response.iter_raw(), what, LISTING_TIMEOUT_S)
    with closing(chunks):
        for chunk in chunks:
            got += chunk
            if len(got) > MAX_LISTING_BYTES:
                most = f"{MAX_LISTING_BYTES:,} bytes"
                raise HubUnreachable(f"{what}: the file listing is larger than {most}")
    return bytes(got)


def _range_response(
    response: httpx2.Response, file: RemoteFile, start: int, most: int
) -> RangeResponse:
    first, end, total = 0, file.size_bytes, file.size_bytes
    whole = response.status_code == 200
    if not whole:
        found = answers.header(response.headers, "Content-Range")
        first, last, total = map(int, found or (0, -1, 0))
        end = last + 1
        if not start == first < end <= most:
            raise TransientError(f"{file.name}: the server sent the wrong byte range")
    if total != file.size_bytes:
        raise HubUnreachable(
            f"{file.name}: expected {file.size_bytes:,} bytes, but the server has {total:,} bytes"
        )
    most_s = session.SLOW_WINDOW_S + (end - first) / LEAST_BYTES_PER_S
    chunks = session.body(response, _body(response), file.name, most_s)
    etag = answers.header(response.headers, "ETag")
    return RangeResponse(
        first, end, etag[0] if etag else None, whole, chunks, lambda: abort(response)
    )


def _body(response: httpx2.Response) -> Iterator[bytes]:
    """Yield a response body in chunks. Fast responses are read from the socket, 1 MiB at a time.

    httpx yields 64 KiB chunks, which limits throughput. It buffers nothing between chunks if the
    content length is known. A connection read directly cannot be reused, so this is only worth it
    for fast responses.
    """
    stream = response.extensions.get("network_stream")
    plain = response.http_version == "HTTP/1.1" and "Transfer-Encoding" not in response.headers
    length = answers.header(response.headers, "Content-Length")
    end = int(length[0]) if stream is not None and plain and length else 0
    at, start, fast = 0, time.monotonic(), False
    pieces = response.iter_raw()  # keep a reference: garbage collection closes the connection
    for chunk in pieces:
        at += len(chunk)
        yield chunk
        fast = at >= PROBE_BYTES and at > FAST_BYTES_PER_S * (time.monotonic() - start)
        if fast and end - at > PROBE_BYTES:
            break
    while stream is not None and fast and at < end:
        chunk = stream.read(min(READ_BYTES, end - at), session.stall_timeout_s())
        if not chunk:
            return
        at += len(chunk)
        yield chunk


def _error(
    response: httpx2.Response, what: str, page: str, to_hub: bool, token: bool
) -> CatalogError:
    status = response.status_code
    if status in _RETRYABLE or not to_hub:  # a storage URL may have expired
        who = "the Hub" if to_hub else "the Hub's storage server"
        delay_s = answers.retry_after_s(response.headers)
        return TransientError(f"{what}: {who} returned HTTP {status}", delay_s)
    code = (answers.header(response.headers, "X-Error-Code") or ("",))[0]
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


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _next_url(url: httpx2.URL, location: str, what: str) -> httpx2.URL:
    import httpx2

    try:
        target = url.join(location[:MAX_LOCATION_LENGTH])
        sound = bool(target.host) and target.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, ValueError):
        sound = False
    if not sound or len(location) > MAX_LOCATION_LENGTH:
        raise HubUnreachable(f"{what}: {url.host} sent an invalid redirect")
    if target.scheme not in ("https", url.scheme):
        raise HubUnreachable(f"{what}: refused a redirect from {url.scheme} to {target.scheme}")
    return target
