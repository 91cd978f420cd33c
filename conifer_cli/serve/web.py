"""What all protocols share over HTTP: guards, errors, streams of events, and clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conifer_cli import errors
from conifer_cli.serve.fields import BadRequest
from engine.errors import ContextOverflow, DoesNotFit, EngineError, NumericError, ReadFailed
from engine.serving.scheduler import FAILURES

if TYPE_CHECKING:
    from starlette.requests import Request

    from conifer_cli.serve.answer import Answer
    from conifer_cli.serve.metrics import Metrics

MAX_BODY_BYTES = 32 << 20
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
OPEN_PATHS = ("/health",)  # need no key
STOPPING = "the server is shutting down"
T = TypeVar("T")
ErrorBody = Callable[[int, str, str | None, str | None], dict[str, Any]]


def status_of(error: BaseException) -> int:
    """Return the HTTP status for an exception."""
    if isinstance(error, BadRequest):
        return error.status
    if isinstance(error, errors.NoRoom | DoesNotFit | MemoryError):
        return 507
    if isinstance(error, NumericError | ReadFailed):
        return 500
    if isinstance(error, ContextOverflow | EngineError | errors.UsageError):
        return 400
    return 500


def words_of(error: BaseException) -> tuple[str, str | None, str | None]:
    """Return an exception's message, field and code."""
    if isinstance(error, BadRequest):
        return str(error), error.field, error.code
    if isinstance(error, errors.known_exceptions()):
        _, message, hint = errors.explain(error)
        return " ".join([message, *hint.splitlines()]), None, None
    return str(error) or type(error).__name__, None, None


def openai_error(status: int, message: str, field: str | None, code: str | None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def anthropic_error(
    status: int, message: str, field: str | None, code: str | None
) -> dict[str, Any]:
    """Return an error in Anthropic's form."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
    }
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_form(path: str) -> ErrorBody:
    """Return the form of errors for a path."""
    return anthropic_error if path.startswith("/v1/messages") else openai_error


def error_response(path: str, error: BaseException) -> JSONResponse:
    """Return an exception as a response in the form of the path's protocol."""
    status, (message, field, code) = status_of(error), words_of(error)
    return JSONResponse(error_form(path)(status, message, field, code), status)


class Guards:
    """Checks each request before it is read: the Host header, the key and the size of its body."""

    def __init__(self, app: ASGIApp, api_key: str, hosts: tuple[str, ...], metrics: Metrics):
        self.app, self.metrics, self.hosts = app, metrics, hosts
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path, left = scope["path"], MAX_BODY_BYTES

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise BadRequest(f"the body is larger than {MAX_BODY_BYTES:,} bytes", status=413)
            return message

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = path if path in KNOWN_PATHS else "other"
                self.metrics.requests[known, message["status"]] += 1
            await send(message)

        refused = self._refusal(scope, headers)
        if refused is not None:
            await error_response(path, refused)(scope, receive, counting)
            return
        await self.app(scope, limited, counting)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> BadRequest | None:
        """Return why a request is refused, or None."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if "*" not in self.hosts and name.lower() not in self.hosts:
            return BadRequest(f"the Host header {host[:80]!r} names another server", status=403)
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > MAX_BODY_BYTES:
            return BadRequest(f"the body is larger than {MAX_BODY_BYTES:,} bytes", status=413)
        if self._key and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
            given = given or headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self._key):
                return BadRequest("the API key is missing or wrong", status=401)
        return None


KNOWN_PATHS = frozenset(
    (
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/responses"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings", "/health", "/metrics"),
        *("/tokenize", "/apply-template"),
    )
)


def client_of(request: Request) -> str:
    """Return who sent a request, for the queue: an address and a program."""
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('user-agent', '')}"


class EventStream(StreamingResponse):
    """An answer as server-sent events. A client that leaves ends the answer."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, lines: AsyncIterator[str]) -> None:
        super().__init__(lines, headers=headers_of(answer) | {"cache-control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def headers_of(answer: Answer) -> dict[str, str]:
    """Return the headers that tell how many answers were before this one."""
    return {"x-conifer-queue-position": str(answer.position)}


def event(data: Any, name: str = "") -> str:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


PULSE = ": waiting\n\n"  # a comment, which clients ignore


async def whole(request: Request, answer: Answer, reply: Coroutine[Any, Any, T]) -> T | None:
    """Return a reply that is not streamed. None if the client has left, which ends the answer."""
    task: asyncio.Task[T] = asyncio.ensure_future(reply)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        answer.cancel()
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, *expected()):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def expected() -> tuple[type[BaseException], ...]:
    """Return the exceptions that become errors of a protocol. Any other is a bug."""
    return (*errors.known_exceptions(), *FAILURES, BadRequest)


Handler = Callable[["Request"], Awaitable[Response]]


def answering_errors(handler: Handler) -> Handler:
    """Turn the exceptions of a handler into responses in the form of its protocol."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:  # before the end of its body
            return Response(status_code=400)
        except expected() as error:
            return error_response(request.url.path, error)

    return handle
