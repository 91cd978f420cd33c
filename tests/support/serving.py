"""Run `conifer serve` as a child process, and talk to it as a client would."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.program import environment

START_S = 60
PROGRAM = ("-m", "conifer_cli")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Reply:
    """A response: its status, its headers and its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """The server-sent events: (name, data), without comments."""
        found = []
        for block in self.body.decode().split("\n\n"):
            rows = [line.partition(": ") for line in block.split("\n") if line]
            fields = {name: value for name, _, value in rows if name}
            if "data" in fields:
                data = fields["data"]
                found.append(
                    (fields.get("event", ""), data if data == "[DONE]" else json.loads(data))
                )
        return found


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: Any = None, method: str = "", timeout_s: float = 60, **headers: str
    ) -> Reply:
        """Send a request: POST if it has a body, else GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, data, names)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def chat(self, text: str, **fields: Any) -> Reply:
        """Ask for a short answer at temperature 0."""
        messages = [{"role": "user", "content": text}]
        given = {"messages": messages, "max_tokens": 8, "temperature": 0, **fields}
        return self.ask("/v1/chat/completions", given)


@contextmanager
def serving(
    home: Path, *arguments: str, program: tuple[str, ...] = PROGRAM, **more: str
) -> Iterator[Server]:
    """Start a server, wait until it answers, and end it. program: what Python runs."""
    port, log = free_port(), home / "serve.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", *program, "serve", *arguments, "--port", str(port)],
            env=environment(home, **more),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    server = Server(port, process, log)
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                if server.ask("/health", timeout_s=5).status == 200:
                    break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


def snapshot(home: Path, repository: str) -> Path:
    """The folder where the Hub's client keeps a repository's files."""
    folder = home / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    place = folder / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return place
