"""Many clients at once, half of them leaving early and some sending rubbish."""

import contextlib
import json
import random
import socket
import statistics
import threading
import time

import psutil
import pytest

from support.program import templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process
CLIENTS, NONCES = 16, 24
RUBBISH = (b"{", b"[]", b'{"messages": [{"role": "x"}]}', b"\xff" * 50, b'{"messages": 5}')


@pytest.fixture
def server(tmp_path):
    path = templated(tmp_path, CHATML, "granitehybrid")
    with serving(tmp_path, path, "-c", "2048", "--parallel", "4") as server:
        yield server


def prompt(nonce):
    return f"Repeat {nonce * 7919} " * (1 + nonce % 5 * 12)


class Client(threading.Thread):
    """Asks for answers until told to stop, and compares them with those alone."""

    def __init__(self, server, number, expected, until):
        super().__init__()
        self.server, self.chance = server, random.Random(number)
        self.expected, self.until = expected, until
        self.problems, self.answers = [], 0

    def run(self):
        while time.monotonic() < self.until and not self.problems:
            nonce = self.chance.randrange(NONCES)
            kind = self.chance.random()
            try:
                if kind < 0.1:
                    reply = self.server.ask("/v1/chat/completions", self.chance.choice(RUBBISH))
                    if reply.status != 400:
                        self.problems.append(f"rubbish: {reply.status}")
                elif kind < 0.55:
                    self.leave(nonce)
                else:
                    self.compare(nonce)
            except OSError as error:
                self.problems.append(repr(error))

    def compare(self, nonce):
        reply = self.server.chat(prompt(nonce), stream=nonce % 2 == 0)
        if nonce % 2:
            text = reply.json["choices"][0]["message"]["content"]
        else:
            deltas = [d["choices"][0]["delta"] for _, d in reply.events() if d != "[DONE]"]
            text = "".join(delta.get("content", "") for delta in deltas)
        self.answers += 1
        if text != self.expected[nonce]:
            self.problems.append(f"{nonce}: {text!r}, not {self.expected[nonce]!r}")

    def leave(self, nonce):
        body = {"messages": [{"role": "user", "content": prompt(nonce)}], "max_tokens": 200,
                "temperature": 0, "stream": self.chance.random() < 0.5}  # fmt: skip
        data = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", self.server.port)) as connection,
        ):
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            time.sleep(self.chance.random() * 0.2)


def load(server, seconds):
    """Run the clients. Returns (seconds of each /health, memory over time).

    Memory is what the process takes besides stored conversations, which have a budget.
    """
    expected = [server.chat(prompt(n)).json["choices"][0]["message"]["content"]
                for n in range(NONCES)]  # fmt: skip
    process, memory, waits = psutil.Process(server.process.pid), [], []
    begun = time.monotonic()
    clients = [Client(server, n, expected, begun + seconds) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    while time.monotonic() < begun + seconds:
        asked = time.monotonic()
        health = server.ask("/health")
        waits.append(time.monotonic() - asked)
        assert health.status == 200
        assert health.json["prefix_bytes"] <= health.json["prefix_budget_bytes"]
        memory.append((asked - begun, process.memory_info().rss - health.json["prefix_bytes"]))
        time.sleep(0.05)
    for client in clients:
        client.join(60)
    assert [client.problems for client in clients] == [[]] * CLIENTS
    assert sum(client.answers for client in clients) > CLIENTS
    until = time.monotonic() + 2
    while server.ask("/health").json["running"] or server.ask("/health").json["queued"]:
        assert time.monotonic() < until, "a place is stuck"
    return waits, memory


@pytest.mark.slow
def test_sixteen_clients_for_a_moment(server):
    waits, _ = load(server, 8)
    assert "Traceback" not in server.log.read_text()
    assert statistics.median(waits) < 0.5


@pytest.mark.nightly
@pytest.mark.alone
def test_sixteen_clients_for_ten_minutes(server):
    waits, memory = load(server, 600)
    first = max(size for at, size in memory if at < 60)
    last = statistics.median(size for at, size in memory if at > 570)
    assert last < 1.02 * first
    assert statistics.quantiles(waits, n=100)[98] < 0.1
    assert "Traceback" not in server.log.read_text()
