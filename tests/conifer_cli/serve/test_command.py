"""Starting, guarding and ending the server."""

import os
import signal
import socket
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from conifer_cli.serve.reports import status_line
from support.program import run_conifer, templated
from support.serving import CHATML, serving

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return templated(tmp_path_factory.mktemp("model"), CHATML)


def test_a_key(tmp_path, model):
    with serving(tmp_path, model, CONIFER_API_KEY="secret") as server:
        assert server.ask("/health").status == 200
        assert server.ask("/v1/models").status == 401
        wrong = server.ask("/v1/models", Authorization="Bearer no")
        assert (wrong.status, wrong.json["error"]["type"]) == (401, "authentication_error")
        assert server.ask("/v1/models", Authorization="Bearer secret").status == 200
        assert server.ask("/v1/models", x_api_key="secret").status == 200
        assert "secret" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_within_a_second(tmp_path, model, number):
    with serving(tmp_path, model) as server:
        found = []

        def ask():
            found.append(
                server.chat("Go on", max_tokens=1900, stream=True, logit_bias={"318": -100})
            )

        asking = threading.Thread(target=ask)
        asking.start()
        while server.ask("/health").json["running"] == 0:
            time.sleep(0.01)
        begun = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(10)
        assert time.monotonic() - begun < 1.5
        assert code == (130 if number == signal.SIGINT else 0)
        asking.join()
        events = found[0].events()
        assert "shutting down" in events[-2][1]["error"]["message"]
        assert "Traceback" not in server.log.read_text()


def test_a_taken_port(tmp_path, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_conifer("serve", model, "--port", port, home=tmp_path)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_public_host_needs_a_key(tmp_path, model):
    done = run_conifer("serve", model, "--host", "0.0.0.0", home=tmp_path)
    assert done.returncode == 2 and b"CONIFER_API_KEY" in done.stderr


def test_the_start_says_what_is_served(tmp_path, model):
    with serving(tmp_path, model, "-c", "1024", CONIFER_API_KEY="secret") as server:
        text = server.log.read_text()
        assert "templated.gguf" in text and server.url in text and "1,024 tokens" in text
        line = next(line for line in text.splitlines() if line.startswith("curl"))
        env = {**os.environ, "CONIFER_API_KEY": "secret"}
        done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, check=False)
        assert b"chat.completion" in done.stdout


def test_the_live_line_drops_what_does_not_fit():
    scheduler = SimpleNamespace(running=1, queued=2)
    metrics = SimpleNamespace(
        finishes={"stop": 3}, recent=[1], decode_per_s=48.75, prompt_tokens=10, cached_tokens=5
    )
    current = SimpleNamespace(name="a-model", experts=None)
    host = SimpleNamespace(scheduler=scheduler, metrics=metrics, current=current)
    whole = "a-model: 1 running, 2 waiting, 3 answered, 48.8 tokens/s, 50 % from the cache"
    assert status_line(host, 80) == whole
    assert status_line(host, 60) == "a-model: 1 running, 2 waiting, 3 answered, 48.8 tokens/s"
    assert status_line(host, 4) == "a-mo"


def test_cors_if_asked_for(tmp_path, model):
    with serving(tmp_path, model, "--cors", "https://example.org") as server:
        reply = server.ask("/health", Origin="https://example.org")
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        other = server.ask("/health", Origin="https://evil.example")
        assert "access-control-allow-origin" not in other.headers


def test_a_huge_body_is_refused(tmp_path, model):
    with serving(tmp_path, model) as server:
        reply = server.ask("/v1/chat/completions", b" ", Content_Length=str(1 << 30))
        assert reply.status == 413
        assert server.chat("Hi").status == 200


def test_a_request_must_name_a_model_that_is_here(tmp_path):
    with serving(tmp_path) as server:
        assert server.ask("/v1/models").json == {"object": "list", "data": []}
        reply = server.chat("Hi", model="qwen3-30b-a3b")
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
        assert server.chat("Hi").status == 400
