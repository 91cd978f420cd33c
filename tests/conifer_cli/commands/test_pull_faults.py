"""What befalls a pull: kills, rivals, a full or read-only disk, damage, strangers. Real processes.

The ordinary run has each of them in small; the nightly one has the numbers that are promised.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.gguf_writer import Tensor
from support.hub_server import HubServer, running_hub, sha256
from support.program import MODELS, command, environment, run_conifer, run_unplugged
from support.rewrite import all_tensors, rewrite
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

MIB = 2**20
TINY = MODELS / "qwen3moe" / "model.gguf"
NAME, FILE = "hf:org/big", "org/big/big-F32.gguf"


@pytest.fixture(scope="session")
def big(tmp_path_factory) -> bytes:
    """The tiny model with 64 MiB of other weights."""
    noise = np.frombuffer(np.random.default_rng(0).bytes(64 * MIB), np.float32).reshape(4096, 4096)
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    tensors = [*all_tensors(TINY), Tensor("noise.weight", noise.shape, "F32", noise.tobytes())]
    return rewrite(TINY, path, tensors).read_bytes()


@pytest.fixture
def hub(big) -> Iterator[HubServer]:
    with running_hub() as server:
        server.files[FILE] = big
        yield server


def start(hub: HubServer, home: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """Begin to pull the big model."""
    return subprocess.Popen(
        [*command(), "pull", NAME, *arguments],
        env=environment(home, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
    )


def pull(hub: HubServer, home: Path, *arguments: str, **more: str):
    return run_conifer(
        "pull", NAME, *arguments, home=home, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1", **more
    )


def blobs(home: Path) -> list[Path]:
    return sorted((home / "hf" / "hub").glob("models--*/blobs/*"))


def is_whole(home: Path, data: bytes) -> bool:
    """Whether the cache holds this one file and nothing half done."""
    found = blobs(home)
    return [path.name for path in found] == [sha256(data)] and found[0].read_bytes() == data


# Kills


def kill_and_resume(hub: HubServer, home: Path, big: bytes, at_bytes: int) -> tuple[float, bytes]:
    """Kill a pull once it was sent so much, and pull again.

    Returns how many times the file was sent in all, and what the second pull said.
    """
    hub.bytes_served = 0
    process = start(hub, home)
    while hub.bytes_served < at_bytes:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not [path for path in blobs(home) if path.name == sha256(big)]
    after = pull(hub, home)
    assert after.returncode == 0 and b"waiting" not in after.stderr  # its lock died with it
    assert is_whole(home, big)
    return hub.bytes_served / len(big), after.stderr


def test_a_killed_pull_goes_on_where_it_stopped(hub, tmp_path, big):
    hub.throttle_bytes_per_s = 24 * MIB
    sent, said = kill_and_resume(hub, tmp_path, big, 20 * MIB)
    assert sent <= 1.10 and re.search(rb"68\.0 MB, \d+\.\d MB already downloaded; licence", said)
    assert any("if-range" in request.headers for request in hub.sent_to("storage"))


@pytest.mark.nightly
def test_25_pulls_killed_at_random_end_identical_and_24_send_little_twice(hub, tmp_path, big):
    draw = random.Random()
    hub.throttle_bytes_per_s = 24 * MIB
    sent = []
    for number in range(25):
        home = tmp_path / str(number)
        home.mkdir()
        sent.append(kill_and_resume(hub, home, big, draw.randrange(1, len(big)))[0])
    print("times the file was sent:", *(f"{times:.3f}" for times in sorted(sent)))
    assert sum(times <= 1.10 for times in sent) >= 24


NIGHTLY = pytest.mark.nightly
SIGNALS = [
    signal.SIGINT,
    *(pytest.param(n, marks=NIGHTLY) for n in (signal.SIGTERM, signal.SIGHUP)),
]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_pull_at_once_and_keeps_what_came(hub, tmp_path, big, number):
    hub.throttle_bytes_per_s = 4 * MIB
    process = start(hub, tmp_path)
    while hub.bytes_served < 8 * MIB:
        assert process.poll() is None
        time.sleep(0.01)
    since = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate()
    assert time.monotonic() - since < 5
    assert process.returncode == 128 + number
    assert out == b"" and b"Traceback" not in err
    assert sum(path.stat().st_size for path in blobs(tmp_path)) >= 6 * MIB
    hub.throttle_bytes_per_s, hub.bytes_served = 0, 0
    assert pull(hub, tmp_path).returncode == 0
    assert is_whole(tmp_path, big) and hub.bytes_served <= len(big) - 6 * MIB


# Rivals

RIVAL = """
import fcntl, sys, time
from pathlib import Path
from catalog import resolve
from catalog.download.pull import pull
from catalog.hub.client import Hub
from catalog.store.store import Store
from catalog.download.transfer import Callbacks

url, folder, lock, at = sys.argv[1:]
if lock == "no lock":
    fcntl.flock = lambda handle, how: None
hub = Hub(endpoint=url)
files = hub.find(resolve("hf:org/big"))
time.sleep(max(float(at) - time.time(), 0))  # all of them at one moment
[path] = pull(hub, files, Store(Path(folder, "home"), Path(folder, "hf", "hub")))
print(path)
"""


def race(hub: HubServer, home: Path, lock: str) -> list[subprocess.Popen[bytes]]:
    """Let four processes pull the same file into the same cache; they have all ended."""
    arguments = [hub.url, str(home), lock, str(time.time() + 2)]
    rivals = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", RIVAL, *arguments],
            env=environment(home, NO_PROXY="127.0.0.1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for rival in rivals:
        rival.wait(120)
    return rivals


def check_race(hub: HubServer, home: Path, lock: str, data: bytes) -> None:
    hub.bytes_served = 0
    rivals = race(hub, home, lock)
    outcomes = [(rival.returncode, *rival.communicate()) for rival in rivals]
    assert len(set(outcomes)) == 1 and outcomes[0][0] == 0, outcomes
    assert is_whole(home, data)
    if lock == "lock":
        assert hub.bytes_served == len(data)


def test_four_processes_end_with_one_sound_file(hub, tmp_path):
    data = hub.files[FILE] = b"GGUF" + os.urandom(8 * MIB)
    check_race(hub, tmp_path, "lock", data)


@pytest.mark.nightly
@pytest.mark.parametrize("lock", ["lock", "no lock"])
def test_ten_rounds_of_four_processes(hub, tmp_path, lock, big):
    for number in range(10):
        home = tmp_path / str(number)
        home.mkdir()
        check_race(hub, home, lock, big)


def test_a_second_pull_waits_and_says_so(hub, tmp_path, big):
    hub.throttle_bytes_per_s = 8 * MIB
    first = start(hub, tmp_path)
    while hub.bytes_served < 6 * MIB:
        time.sleep(0.01)
    second = pull(hub, tmp_path)
    assert (first.wait(), second.returncode) == (0, 0)
    assert b"another process is downloading this file; waiting for it" in second.stderr
    assert first.communicate()[0] == second.stdout
    assert hub.bytes_served == len(big) and is_whole(tmp_path, big)


# Disks


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[None]:
    """Have a file system of that size in memory at a folder; skip where that is not allowed."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "conifer-test", str(folder)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` program: a disk that fills up cannot be made")
    if done.returncode:
        reason = done.stderr.decode().strip()
        pytest.skip(f"no permission to mount a disk that fills up: {reason}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_what_came_and_goes_on_once_there_is_room(hub, tmp_path):
    data = hub.files[FILE] = small_model(tmp_path)
    with mounted(tmp_path / "hf", 32 * MIB):
        filler = tmp_path / "hf" / "filler"
        filler.write_bytes(bytes(20 * MIB))
        refused = pull(hub, tmp_path)
        assert refused.returncode == 4 and b"leave 1 GiB free" in refused.stderr
        assert blobs(tmp_path) == []
        filled = pull(hub, tmp_path, "--force")
        assert filled.returncode == 5 and b"the disk is full" in filled.stderr
        assert b"Traceback" not in filled.stderr and filled.stdout == b""
        assert sum(path.stat().st_blocks * 512 for path in blobs(tmp_path)) >= 8 * MIB
        filler.unlink()
        hub.bytes_served = 0
        assert pull(hub, tmp_path, "--force").returncode == 0
        assert is_whole(tmp_path, data) and hub.bytes_served <= len(data) - 8 * MIB


def small_model(folder: Path) -> bytes:
    """The tiny model with 20 MiB of other weights."""
    noise = np.zeros((20 * MIB // 4096, 1024), np.float32)
    tensors = [*all_tensors(TINY), Tensor("noise.weight", noise.shape, "F32", noise.tobytes())]
    return rewrite(TINY, folder / "small.gguf", tensors).read_bytes()


def test_a_read_only_cache_runs_and_says_why_it_takes_nothing(hub, tmp_path):
    hub.files[FILE] = TINY.read_bytes()
    with mounted(tmp_path / "hf", 2**31):
        assert pull(hub, tmp_path).returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "hf")], check=True)
        ran = run_unplugged("run", NAME, "hi", "--max-tokens", "2", home=tmp_path)
        assert ran.returncode == 0
        hub.files["org/more/more-F32.gguf"] = hub.files[FILE]
        more = run_conifer("pull", "hf:org/more", home=tmp_path, HF_ENDPOINT=hub.url)
        assert more.returncode == 5
        assert str(tmp_path / "hf").encode() in more.stderr and b"CONIFER_HOME" in more.stderr


def test_a_file_where_the_cache_should_be_exits_5(hub, tmp_path):
    (tmp_path / "hf").write_bytes(b"")
    done = pull(hub, tmp_path)
    assert done.returncode == 5 and str(tmp_path / "hf").encode() in done.stderr


# Damage and strangers


def test_the_token_reaches_the_hub_and_nobody_else(hub, tmp_path):
    hub.files[FILE] = TINY.read_bytes()
    hub.gated.add("org/big")
    done = pull(hub, tmp_path, HF_TOKEN=hub.token)
    assert done.returncode == 0
    assert hub.sent_to("storage") and hub.token not in str(hub.sent_to("storage"))
    assert all(hub.token in str(request.headers) for request in hub.sent_to("hub"))
    assert hub.token.encode() not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if hub.token.encode() in path.read_bytes()]


def test_a_cached_model_needs_no_socket(hub, tmp_path):
    hub.files[FILE] = TINY.read_bytes()
    pull(hub, tmp_path)
    short = ("--max-tokens", "2", "--temperature", "0")
    done = run_unplugged("run", NAME, "hi", *short, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_proxy_is_used(hub, tmp_path):
    hub.files[FILE] = TINY.read_bytes()
    more = {"HF_ENDPOINT": "http://hub.example", "HTTP_PROXY": hub.url, "NO_PROXY": "127.0.0.1"}
    done = run_conifer("pull", NAME, home=tmp_path, **more)
    assert done.returncode == 0, done.stderr
    assert all(request.path.startswith("http://hub.example/") for request in hub.sent_to("hub"))


def test_hf_hub_cache_is_where_it_says(hub, tmp_path):
    hub.files[FILE] = TINY.read_bytes()
    done = pull(hub, tmp_path, "--json", HF_HUB_CACHE=str(tmp_path / "elsewhere"))
    [file] = json.loads(done.stdout)["files"]
    assert file["path"].startswith(f"{tmp_path}/elsewhere/models--org--big/snapshots/")


def test_on_a_terminal_one_live_line_tells_rate_and_time_left(hub, tmp_path):
    hub.throttle_bytes_per_s = 2 * MIB
    where = environment(tmp_path, HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1", TERM="xterm")
    with TerminalSession([*command(), "pull", NAME], where) as session:
        session.expect("downloading big-F32.gguf (68.0 MB; licence: not stated) from 127.0.0.1")
        line = session.expect(" left").rpartition("\r")[2]
        rates = r"hf:org/big: \d+\.\d MB of 68\.0 MB, \d+\.\d MB/s, \d+ s"
        assert re.fullmatch(rf"(\[#*\.*\] +\d+ % )?{rates}", line), line
        session.expect(" left")  # it is drawn anew
        assert "\n" not in session.screen
        session.type("\x03")
        session.expect("stopped; run the same command again to resume")
        assert session.wait() == 130


@pytest.mark.nightly
def test_without_a_terminal_progress_is_a_line_now_and_then(hub, tmp_path):
    hub.throttle_bytes_per_s = 1.4 * MIB
    process = start(hub, tmp_path)
    _, err = process.communicate()
    said = err.decode().splitlines()
    lines = [line for line in said if " left" in line]
    assert process.returncode == 0 and 1 <= len(lines) <= 2, said
    assert "of 68.0 MB" in lines[0] and "/s, " in lines[0]
    assert b"\x1b" not in err and b"\r" not in err
