"""Output is complete, or the exit code says that it is not, however little a write takes."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess

import pytest

from support.program import MODELS, command, environment, run_conifer

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
ANSWER = ("run", QWEN, "hi", "--seed", "3", "--temperature", "2", "--max-tokens", "200")
PRINTING = [
    ("list", "--catalog", "--json"),
    ("show", QWEN),
    ("fit", QWEN, "--json", "--machine", "m4-max-64gb"),
    ("run", "--help"),
    ("completion", "bash"),
    ("--version",),
    ANSWER,
    (*ANSWER, "--raw", "--no-stream"),
]
BUFFERING = ("", "1")  # PYTHONUNBUFFERED; containers set it
F_SETPIPE_SZ = 1031  # of Linux


def start(home, arguments, stdout, unbuffered, **more):
    return subprocess.Popen(
        [*command(), *arguments],
        env=environment(home, PYTHONUNBUFFERED=unbuffered),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        **more,
    )


def received(program, read):
    """What a reader gets that begins late, and takes a little at a time."""
    assert program.stderr
    data = b""
    while piece := read(700):
        data += piece
    assert program.wait(60) == 0 and program.stderr.read() == b""
    program.stderr.close()
    return data


@pytest.mark.parametrize("unbuffered", BUFFERING)
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: " ".join(words[:2])[-30:])
def test_a_full_pipe_that_does_not_block_gets_everything(tmp_path, arguments, unbuffered):
    expected = run_conifer(*arguments, home=tmp_path).stdout
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    os.write(writer, b"." * 4000)
    program = start(tmp_path, arguments, writer, unbuffered)
    os.close(writer)
    with open(reader, "rb", buffering=0) as file:
        assert received(program, file.read) == b"." * 4000 + expected


def test_a_full_socket_that_does_not_block_gets_everything(tmp_path):
    arguments = PRINTING[0]
    expected = run_conifer(*arguments, home=tmp_path).stdout
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        program = start(tmp_path, arguments, theirs, "1")
        theirs.close()
        assert received(program, ours.recv) == expected


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: " ".join(words[:2])[-30:])
def test_a_file_that_may_not_grow_is_an_error(tmp_path, arguments):
    with (tmp_path / "out").open("wb") as file:
        program = start(
            tmp_path,
            arguments,
            file,
            "1",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5)),
        )
        _, err = program.communicate(timeout=60)
    assert program.returncode == 1
    assert err.decode().splitlines()[0].startswith("conifer: cannot write to standard output: ")


@pytest.mark.parametrize("target", ["/dev/full", None], ids=["full", "closed"])
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: " ".join(words[:2])[-30:])
def test_a_full_or_closed_output_is_an_error_without_buffering_too(tmp_path, arguments, target):
    redirected = f">{target}" if target else ">&-"
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", *command(), *arguments],
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr
