"""Send requests with huggingface_hub's session, settings and token.

This is the only module that imports huggingface_hub. It raises BadSetting if a setting is invalid.
Every wait has an end: for the connection, for the headers, for each byte, and for the whole body.
Errors of the HTTP library become the catalog's own exceptions and messages.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from catalog.errors import BadSetting, HubUnreachable, why

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0  # the maximum wait for the next byte
ANSWER_TIMEOUT_S = 45.0  # from the request to the last byte of the response's headers
SLOW_WINDOW_S = 30.0  # the time in which a body must bring at least SLOW_BYTES
SLOW_BYTES = 2**14


class TransientError(HubUnreachable):
    """A failure that a retry may fix. `retry_after_s` is the delay the server sent, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotConnected(TransientError):
    """No connection to the server could be opened."""


def constants() -> ModuleType:
    """Return huggingface_hub's settings."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about obsolete variables
            from huggingface_hub import constants
    except ValueError as error:
        value = str(error).rpartition(": ")[2]
        raise BadSetting(f"an HF_* environment variable must be a number, got {value}") from error
    return constants


def cache_folder() -> Path:
    """Return huggingface_hub's cache folder."""
    return Path(constants().HF_HUB_CACHE)


def stall_timeout_s() -> float:
    """Return the longest wait for the next byte; HF_HUB_DOWNLOAD_TIMEOUT changes it."""
    known = constants()
    asked, default = known.HF_HUB_DOWNLOAD_TIMEOUT, known.DEFAULT_DOWNLOAD_TIMEOUT
    return STALL_TIMEOUT_S if asked == default or asked < 0 else float(asked)


def connect_timeout_s() -> float:
    """Return the longest wait for a connection; HF_HUB_ETAG_TIMEOUT changes it."""
    known = constants()
    asked, default = known.HF_HUB_ETAG_TIMEOUT, known.DEFAULT_ETAG_TIMEOUT
    return CONNECT_TIMEOUT_S if asked == default or asked < 0 else float(asked)


def stored_token() -> str | None:
    """Return the user's token, from HF_TOKEN or a file."""
    from huggingface_hub import get_token

    path = constants().HF_TOKEN_PATH
    try:
        token = get_token()
    except OSError as error:
        raise BadSetting(f"cannot read HF_TOKEN_PATH ({path}): {why(error)}") from error
    except UnicodeDecodeError as error:
        raise BadSetting(f"HF_TOKEN_PATH ({path}) does not contain a token") from error
    token = token and token.removeprefix("\ufeff")  # a byte-order mark in the file
    if token and not (token.isascii() and token.isprintable()):
        raise BadSetting(f"HF_TOKEN (or the file {path}) contains invalid characters")
    return token


def client() -> httpx2.Client:
    """Return huggingface_hub's HTTP client."""
    import httpx2
    from huggingface_hub import get_session

    try:
        return get_session()
    except ImportError as error:
        names = "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"
        problem = "a SOCKS proxy needs the Python package socksio, which is not installed"
        raise BadSetting(f"{names}: {problem}") from error
    except (ValueError, OSError, httpx2.InvalidURL) as error:
        names = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or SSL_CERT_FILE"
        raise BadSetting(f"invalid network setting in {names}: {why(error)}") from error


@contextmanager
def get(url: httpx2.URL, headers: dict[str, str], what: str) -> Iterator[httpx2.Response]:
    """Send one GET request. Yields the response before its body is read; no redirects."""
    import httpx2

    http = client()
    timeout = httpx2.Timeout(stall_timeout_s(), connect=connect_timeout_s())
    with _failures(what, url):
        response = _answer(http, http.build_request("GET", url, headers=headers, timeout=timeout))
    try:
        yield response
    finally:
        with suppress(*_library_errors()):  # a broken connection may fail to close
            response.close()


def _answer(http: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    """Send a request in another thread, so that the caller can give up on slow headers."""
    from concurrent.futures import Future

    import httpx2

    answer: Future[httpx2.Response] = Future()

    def send() -> None:
        try:
            response = http.send(request, stream=True, follow_redirects=False)
        except _library_errors() as error:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        else:
            if answer.set_running_or_notify_cancel():
                answer.set_result(response)
            else:
                response.close()

    threading.Thread(target=send, name="request", daemon=True).start()
    try:
        return answer.result(ANSWER_TIMEOUT_S)
    except TimeoutError:
        if answer.cancel():
            raise httpx2.ReadTimeout("the headers did not end", request=request) from None
        return answer.result()
    finally:
        answer.cancel()


def body(
    response: httpx2.Response, chunks: Iterator[bytes], what: str, most_s: float
) -> Generator[bytes]:
    """Yield a body's chunks. Raises TransientError if it is slow, or not complete in `most_s`."""
    slow = threading.Event()

    def end() -> None:
        slow.set()
        abort(response)

    timer = threading.Timer(most_s, end)
    timer.daemon = True
    timer.start()
    since, brought = time.monotonic(), 0
    try:
        with _failures(what, response.url):
            for chunk in chunks:
                yield chunk
                brought += len(chunk)
                if time.monotonic() - since > SLOW_WINDOW_S:
                    if brought < SLOW_BYTES:
                        slow.set()
                        break
                    since, brought = time.monotonic(), 0
    except TransientError:
        if not slow.is_set():
            raise
    finally:
        timer.cancel()
    if slow.is_set():
        raise TransientError(f"{what}: {response.url.host} sends too slowly")


def abort(response: httpx2.Response) -> None:
    """Shut down the connection, which wakes up a blocked reader."""
    import socket

    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with suppress(OSError):  # already closed
            connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _failures(what: str, url: httpx2.URL) -> Iterator[None]:
    """Convert every failure of the HTTP library; the block must call nothing else."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:  # a ConnectionError
        raise HubUnreachable(f"{what}: offline mode is on") from error
    except _library_errors() as error:
        connected, problem = _problem(error, url)
        kind = TransientError if connected else NotConnected
        raise kind(f"{what}: {problem}") from error


@cache
def _library_errors() -> tuple[type[Exception], ...]:
    """Return the HTTP library's exceptions, including those caused by malformed responses."""
    import httpcore2
    import httpx2

    return (
        *(httpx2.HTTPError, httpx2.InvalidURL, httpcore2.ProtocolError, httpcore2.NetworkError),
        *(httpcore2.TimeoutException, httpcore2.ProxyError, httpcore2.UnsupportedProtocol),
        *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    )


def _problem(error: BaseException, url: httpx2.URL) -> tuple[bool, str]:
    """Return whether the host was reached, and what went wrong."""
    import socket
    import ssl

    import httpcore2
    import httpx2

    unreached, chain = f"cannot reach {url.host}{_proxy(url)}: ", [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 20:
        chain.append(cause)
    for cause in chain:
        match cause:
            case socket.gaierror():
                return False, f"{unreached}name lookup failed"
            case ssl.SSLCertVerificationError():
                return False, f"{unreached}TLS certificate problem: {cause.verify_message}"
            case ssl.SSLError():
                return False, f"{unreached}TLS connection failed"
            case httpx2.ProxyError():
                return False, f"{unreached}the proxy refused: {cause}"
            case httpx2.ConnectTimeout() | httpcore2.ConnectTimeout():
                return False, f"{unreached}timed out"
            case httpx2.TimeoutException() | httpcore2.TimeoutException():
                return True, f"the connection to {url.host} timed out"
            case ConnectionRefusedError():
                return False, f"{unreached}connection refused"
            case ConnectionError():
                return True, f"{url.host} closed the connection"
            case OSError() if cause.errno:
                return False, f"{unreached}{os.strerror(cause.errno).lower()}"
    if isinstance(error, httpx2.ConnectError):
        return False, f"{unreached}connection failed"
    if isinstance(error, httpx2.RemoteProtocolError) and "closed" in str(error):
        return True, f"{url.host} closed the connection"
    if isinstance(error, httpx2.RemoteProtocolError) and "disconnected" in str(error):
        return True, f"{url.host} closed the connection without a response"
    if isinstance(error, (httpx2.NetworkError, httpcore2.NetworkError)):
        return True, f"the connection to {url.host} failed"
    return True, f"{url.host} sent an invalid HTTP response"


def _proxy(url: httpx2.URL) -> str:
    """Name the proxy in use, in parentheses, because the failure may be the proxy's."""
    import urllib.request

    with suppress(ValueError, OSError):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        if proxy and not urllib.request.proxy_bypass(url.host):
            return f" through the proxy {proxy.rpartition('@')[2]}"
    return ""
