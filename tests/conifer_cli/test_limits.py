"""Limits on threads, memory and files: what can go on goes on; what cannot says so in one line."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest

import engine
from conifer_cli import app
from engine.errors import BackendError
from engine.kernels import native
from engine.limits import enough_memory
from engine.text import sandbox
from support.program import MODELS, command, environment, templated

MODEL = MODELS / "qwen3moe" / "model.gguf"
# pthread_create() fails from the given call on, as it does at a limit of processes.
NO_THREADS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
typedef int create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static int made;
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    create *real = (create *)dlsym(RTLD_NEXT, "pthread_create");
    if (__sync_fetch_and_add(&made, 1) >= atoi(getenv("MOST_THREADS"))) return EAGAIN;
    return real(t, a, f, x);
}
"""
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler on Linux"
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shim")
    (folder / "threads.c").write_text(NO_THREADS)
    built = folder / "threads.so"
    source = str(folder / "threads.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


@pytest.mark.process
@needs_compiler
@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("flags", [(), ("--kernels", "stock"), ("--format", "json")])
def test_without_threads_it_is_one_line_or_an_answer(shim, tmp_path, most, flags):
    model = templated(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    words = ["run", model, "-p", "hi", "--max-tokens", "4", "--seed", "1", *flags]
    more = {"LD_PRELOAD": str(shim), "MOST_THREADS": str(most)}
    done = subprocess.run(
        [*command(), *words],
        env=environment(tmp_path, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"conifer: cannot start a thread: ")
        assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr and b"OpenBLAS" not in done.stderr


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="Linux enforces this limit")
@pytest.mark.parametrize("megabytes", [200, 300, 400, 500])
def test_with_little_address_space_it_is_one_line_or_an_answer(tmp_path, megabytes):
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    done = subprocess.run(
        [*command(), "run", str(MODEL), "-p", "hi", "--max-tokens", "4"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode in (0, 1, 4) and b"Traceback" not in done.stderr
    assert not done.returncode or done.stderr.startswith(b"conifer: ")


def test_the_pool_takes_as_many_threads_as_there_are():
    tried = []

    def set_threads(count: int) -> None:
        tried.append(count)
        if count > 3:
            raise RuntimeError(os.strerror(errno.EAGAIN))

    native._start_threads(SimpleNamespace(set_threads=set_threads), 16)
    assert tried == [16, 8, 4, 2]


@pytest.mark.parametrize("words", [os.strerror(errno.EAGAIN), "can't start new thread"])
def test_what_mlx_and_python_raise_is_an_error_of_ours(words):
    with pytest.raises(BackendError, match="cannot start a thread"), enough_memory():
        raise RuntimeError(words)


def test_python_without_threads_is_one_line(monkeypatch, capsys):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(app, "_run", lambda _: threading.Thread().start())
    assert app._outcome([]) == 1
    assert capsys.readouterr().err.startswith("conifer: cannot start a thread: ")


def test_a_process_that_cannot_start_is_told_by_what_it_does(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(sandbox.subprocess, "Popen", refuse)
    with pytest.raises(BackendError, match="the process that renders chat templates: Resource"):
        sandbox.Sandbox().start()
    assert engine.load(MODEL).template is None
