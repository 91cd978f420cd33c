"""`conifer serve`: load the model, open the port and serve until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate
from conifer_cli.errors import UsageError, why
from conifer_cli.serve.host import Host, ServeOptions
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_S = 0.6  # for streams to end
JOIN_S = 0.3  # for the scheduler's current step
BACKLOG = 256


def serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM. Return the exit code."""
    if options.host not in LOOPBACK and not options.api_key:
        raise UsageError(
            f"refusing to serve {options.host} without a key: other machines could use this one",
            "Set CONIFER_API_KEY, or omit --host.",
        )
    target = None if options.model is None else locate(options.model)
    listener = _listen(options)
    if listener is None:
        return errors.FAILURE
    with contextlib.closing(listener):
        return asyncio.run(_serve(options, target, listener))


def _listen(options: ServeOptions) -> socket.socket | None:
    """Open the port before the model is loaded. Logs why that fails."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        console.log(
            f"conifer: cannot open port {options.port} on {options.host}: {why(error)}; "
            "pass --port with another number"
        )
        return None
    listener.listen(BACKLOG)
    return listener


async def _serve(
    options: ServeOptions, target: RequestedModel | None, listener: socket.socket
) -> int:
    from conifer_cli.serve.app import build
    from conifer_cli.serve.reports import show_status

    host = Host(options)
    signals: list[int] = []
    with _until_signal(signals) as ended:
        if target is not None:
            failures = (*errors.known_exceptions(), *_failures())
            asks = console.can_ask()
            loaded = host.scheduler.call(lambda: host.load(target, asks), failures)
            loading = asyncio.wrap_future(loaded)
            stopped = asyncio.ensure_future(ended.wait())
            tasks: list[asyncio.Future[Any]] = [loading, stopped]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if signals:
                return 128 + signals[0]
            loading.result()
        _announce(host, listener)
        server = _server(build(host))
        serving = asyncio.ensure_future(server.serve([listener]))
        showing = asyncio.ensure_future(show_status(host))
        stopping = asyncio.ensure_future(ended.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        showing.cancel()
        server.should_exit = True
        await asyncio.to_thread(host.close, JOIN_S)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving, GRACE_S)
    console.log("conifer: stopped")
    return 128 + signals[0] if signals and signals[0] == signal.SIGINT else errors.OK


def _failures() -> tuple[type[BaseException], ...]:
    from engine.serving.scheduler import FAILURES

    return FAILURES


@contextlib.contextmanager
def _until_signal(signals: list[int]) -> Iterator[asyncio.Event]:
    """Set an event on SIGINT, SIGTERM or SIGHUP. A second signal ends the program at once."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def note(number: int) -> None:
        if signals:
            os._exit(128 + number)
        signals.append(number)
        ended.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, note, number)
    try:
        yield ended
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


def _server(app: Starlette) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """A server that leaves signals to its caller."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
        server_header=False,
    )
    return Server(config)


def _announce(host: Host, listener: socket.socket) -> None:
    """Print what is served, where, and how to try it."""
    options, served = host.options, host.current
    port = listener.getsockname()[1]
    name = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{name}:{port}"
    if served is None:
        console.log(f"conifer: serving the models on this machine at {url}/v1")
        model = "MODEL"
    else:
        context = counted(served.context, "token")
        at_once = counted(served.lanes, "answer")
        console.log(
            f"conifer: serving {served.name} at {url}/v1 ({context} of context, {at_once} at once)"
        )
        model = served.name
    key = ' -H "Authorization: Bearer $CONIFER_API_KEY"' if options.api_key else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    # Not wrapped, so that it can be copied.
    console.write_stderr(f"curl {url}/v1/chat/completions{key} -d {shlex.quote(body)}\n")
