"""Run untrusted chat templates in a child process, `engine/text/sandbox_worker.py`.

Starting the child takes as long as loading a small model, so a chat starts the child before it
loads the model. The child runs as long as its Sandbox exists. If the child is killed, the Sandbox
starts a new one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.errors import BackendError, TemplateError, TemplateRefusal

# The only environment variables that the child receives. Python may need these library paths.
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
PROGRAM = Path(__file__).with_name("sandbox_worker.py")
START_S = 30.0
ANSWER_S = 10.0  # wall time; the child's limit on its own CPU time is much lower
POLL_S = 0.02
MEMORY_BYTES = 256 << 20
ANSWER_BYTES = 64 << 20
# A larger request gets a child with higher limits: text with one emoji takes 4 bytes per letter.
SMALL_REQUEST_BYTES, COPIES = 4 << 20, 32
ANSWER_S_PER_BYTE = 4e-6


class Sandbox:
    """A child process that renders one template at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[..., Sandbox] | None = None
        self._ready = False
        self._memory_bytes = MEMORY_BYTES

    def start(self) -> None:
        """Start the child without waiting for it. `render` also starts it if necessary."""
        with self._lock:
            self._running()

    def render(self, source: str, context: Mapping[str, Any], now: datetime) -> str:
        """Render a jinja2 template with plain data.

        Raises TemplateRefusal if the template raises an exception, or TemplateError if it does not
        compile or exceeds the time or memory limit.
        """
        request = {"source": source, "context": context, "now": now.isoformat()}
        line = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            needed = COPIES * len(line) if len(line) > SMALL_REQUEST_BYTES else 0
            if MEMORY_BYTES + needed > self._memory_bytes:
                self._end()
                self._memory_bytes = MEMORY_BYTES + needed
            answer = self._ask(line + b"\n")
        if "refusal" in answer:
            raise TemplateRefusal(f"the chat template failed: {answer['refusal']}")
        if "error" in answer:
            raise TemplateError(f"the chat template failed: {answer['error']}")
        return answer["text"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        self._child = _start(self._memory_bytes)
        self._stop = weakref.finalize(self, _end, self._child)
        self._ready = False
        return self._child

    def _ask(self, line: bytes) -> dict[str, str]:
        """Send a request and return the answer. Kill the child if there is no answer."""
        child = self._running()
        answer: dict[str, str] = {}
        try:
            if not self._ready:
                answer = _answer(child, START_S, self._memory_bytes)
                self._ready = "error" not in answer
            if self._ready:
                answer = {}
                _send(child, line)
                patience_s = ANSWER_S + ANSWER_S_PER_BYTE * len(line)
                answer = _answer(child, patience_s, self._memory_bytes)
        finally:
            if not answer or not self._ready:
                self._end()
        return answer

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._child = None


def _start(memory_bytes: int) -> subprocess.Popen[bytes]:
    # `-I` and `-S` hide installed packages, so pass the paths to the two that the child needs.
    found = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    places = [str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin]
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), str(memory_bytes), *dict.fromkeys(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: value for name, value in os.environ.items() if name in KEPT_VARIABLES},
        )
    except OSError as error:
        problem = f"cannot start the process that renders chat templates: {error.strerror}"
        raise BackendError(problem) from error


def _send(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    view = memoryview(line)
    try:
        while view:
            view = view[child.stdin.write(view) :]
    except BrokenPipeError as error:
        raise TemplateError("the chat template process exited unexpectedly") from error


def _answer(child: subprocess.Popen[bytes], patience_s: float, memory_bytes: int) -> dict[str, str]:
    """Read one line. Raises TemplateError if the child exits or exceeds a limit."""
    assert child.stdout is not None
    deadline = time.monotonic() + patience_s
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if selector.select(POLL_S):
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise TemplateError(_epitaph(child))
                line += chunk
            elif sys.platform == "darwin" and _resident_bytes(child) > memory_bytes:
                raise TemplateError("the chat template failed: it ran out of memory")
            if time.monotonic() > deadline or len(line) > max(ANSWER_BYTES, memory_bytes):
                raise TemplateError(
                    "the chat template failed: it took too long or its output is too large"
                )
    answer: dict[str, str] = json.loads(line)
    return answer


def _resident_bytes(child: subprocess.Popen[bytes]) -> int:
    """Return the child's resident memory, for systems that do not enforce the memory limit."""
    import psutil

    try:
        return int(psutil.Process(child.pid).memory_info().rss)
    except psutil.Error:  # the child has just exited, which closes the pipe
        return 0


def _epitaph(child: subprocess.Popen[bytes]) -> str:
    if child.wait() == -signal.SIGPROF:
        return "the chat template failed: it used too much CPU time"
    return f"the chat template process crashed (exit status {child.returncode})"


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
