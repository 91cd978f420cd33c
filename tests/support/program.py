"""Run the real `conifer` as a child process, with a home of its own and no network to speak of."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import conifer_cli
from engine.device import cores

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "fixtures"

# The machine has the memory it is told to have.
RESIZED = """
import sys
import engine.fit.machine
memory = int(sys.argv.pop(1))
engine.fit.machine.this_machine = lambda idle=False: engine.fit.machine.Machine(
    "test machine", "cpu", memory, memory, "available memory"
)
from conifer_cli.__main__ import main
main()
"""

# Any use of a socket ends this program at once, too.
UNPLUGGED = (
    """
import os, sys
def hook(event, _):
    if event.startswith("socket."):
        os.write(2, f"OPENED A SOCKET: {event}".encode())
        os._exit(99)
sys.addaudithook(hook)
"""
    + RESIZED
)

# The installer of wheels is another program than this interpreter's pip.
OTHER_PIP = """
import sys
sys.executable = sys.argv.pop(1)
from conifer_cli.__main__ import main
main()
"""

# Ctrl-C is pressed at the moment at which a module begins to be imported.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
from conifer_cli.__main__ import main
main()
"""


def command() -> list[str]:
    """Say how to start the program: the installed script, else the package in this tree."""
    script = Path(sys.executable).with_name("conifer")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "conifer_cli"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Make an environment in which nothing of the user's is seen and the hub cannot be reached."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "CONIFER_HOME": str(home / "conifer"),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(Path(conifer_cli.__file__).parents[1]),  # the code that the tests import
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def run_conifer(
    *arguments: str,
    home: Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    timeout_s: float = 60,
    **more: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run `conifer` with these arguments; `more` is added to its environment."""
    return subprocess.run(
        [*command(), *arguments],
        input=stdin,
        env=environment(home, **more),
        cwd=cwd or home,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


def run_unplugged(
    *arguments: str,
    home: Path,
    memory_bytes: int = 16 << 30,
    stdin: bytes = b"",
    timeout_s: float = 60,
    **more: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run `conifer` on a machine of `memory_bytes`; opening a socket ends it with exit code 99.

    How fast that machine reads memory, `fit` finds measured.
    """
    if arguments[:1] == ("fit",) or "--speeds" in arguments:
        know_bandwidth(home)
    return subprocess.run(
        [sys.executable, "-P", "-c", UNPLUGGED, str(memory_bytes), *arguments],
        input=stdin,
        env=environment(home, **more),
        cwd=home,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


def know_bandwidth(
    home: Path, bytes_per_s: int = 10 * 10**9, machine: str = "cpu: test machine"
) -> None:
    """Write into the ledger what `fit` would measure first, of memory and of the disk."""
    ledger = home / "conifer" / "ledger.jsonl"
    if not ledger.exists():
        ledger.parent.mkdir(parents=True, exist_ok=True)
        key = f"{machine}, {cores()} threads" if machine.startswith("cpu") else machine
        known = {"format": 1, "kind": "bandwidth", "machine": key, "bytes_per_s": bytes_per_s}
        device = os.stat(home).st_dev
        place = {"device": f"{os.major(device)}:{os.minor(device)}", "read_bytes": 1 << 20}
        disk = {**known, "kind": "disk", **place, "bytes_per_s": 10**9}
        lines = (json.dumps(line) + "\n" for line in (known, disk))
        ledger.write_text("".join(3 * line for line in lines))  # as often as it measures


def padded(path: Path, size_bytes: int) -> None:
    """Write the tiny qwen3moe model, made as large as that by four arrays of zeros in its metadata.

    The zeros are holes in the file. What is added is a multiple of the alignment long.
    """
    data = (MODELS / "qwen3moe" / "model.gguf").read_bytes()
    (keys,) = struct.unpack_from("<Q", data, 16)
    each = (size_bytes - len(data)) // 4 - 32  # a key's name, types and count take 32 bytes
    with path.open("wb") as file:
        file.write(data[:16] + struct.pack("<Q", keys + 4))
        for name in (b"padding0", b"padding1", b"padding2", b"padding3"):
            file.write(struct.pack("<Q8sIIQ", 8, name, 9, 10, each // 8))  # an array of u64
            file.seek(each, os.SEEK_CUR)
        file.write(data[24:])


def templated(folder: Path, template: str, model: str = "qwen3moe") -> str:
    """Write a tiny model with a chat template added; return its path.

    What is added is a multiple of the alignment long, so that all else keeps its padding.
    """
    data = (MODELS / model / "model.gguf").read_bytes()
    key = b"tokenizer.chat_template"
    text = template.encode() + b"{#"
    text += b" " * (-(8 + len(key) + 4 + 8 + len(text) + 2) % 32) + b"#}"
    added = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    (keys,) = struct.unpack_from("<Q", data, 16)
    path = folder / "templated.gguf"
    path.write_bytes(data[:16] + struct.pack("<Q", keys + 1) + added + data[24:])
    return str(path)
