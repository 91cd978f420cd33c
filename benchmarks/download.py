"""Compare `conifer pull` with `hf download` on one file from a Hub on the loopback interface.

Turns A, B, A, B, each a fresh process into an empty cache. A turn is timed from its start to its
end (`wall_s`), and from the first request for the file to the last byte sent (`transfer_s`).
Conifer reads the header, judges the fit, hashes every byte and syncs the file to the disk; hf does
not. Everything measured goes to benchmarks/results/NAME.json.

    python benchmarks/download.py MODEL.gguf --name download
"""

from __future__ import annotations

import argparse
import datetime
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compare import HERE, commit, cpu_name, spread

sys.path.insert(0, str(HERE.parent / "tests"))
from support.hub_server import HubServer, running_hub

REPOSITORY, FILE = "bench/moe", "moe-Q4_K_M.gguf"


def main() -> int:
    """Compare, and write the result."""
    options = parse()
    with running_hub() as hub, options.model.open("rb") as file:
        hub.files[f"{REPOSITORY}/{FILE}"] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[assignment]
        result = circumstances(options, hub)
        pairs = []
        for number in range(options.pairs):
            pairs.append({who: turn(options, hub, who) for who in COMMANDS})
            print(f"pair {number + 1} of {options.pairs}: {ratios(pairs[-1:])}", file=sys.stderr)
        hub.files.clear()
    result |= {"pairs": pairs, "medians": medians(pairs), "ratios": ratios(pairs)}
    (HERE / "results" / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"]))
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    parser.add_argument("--python", default=sys.executable, help="that has both programs")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    if options.pairs < 5:
        parser.error("--pairs takes at least 5")
    return options


# What is typed after the interpreter.
COMMANDS = {
    "conifer": ("-P", "-m", "conifer_cli", "pull", f"hf:{REPOSITORY}/{FILE}", "--yes"),
    "hf": ("-P", "-m", "huggingface_hub.cli.hf", "download", REPOSITORY, FILE),
}


def turn(options: argparse.Namespace, hub: HubServer, who: str) -> dict[str, Any]:
    """Fetch the file once, into a cache that is empty before and deleted afterwards."""
    home = Path(tempfile.mkdtemp(prefix="download-", dir=options.cache))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "CONIFER_HOME": str(home / "conifer"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(HERE.parent),
    }
    before = hub.bytes_served
    hub.first_byte_at = hub.last_byte_at = 0.0
    try:
        start = time.perf_counter()
        done = subprocess.run(
            [options.python, *COMMANDS[who]], env=environment, capture_output=True, check=False
        )
        wall_s = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{who}: exit {done.returncode}: {done.stderr[-500:]!r}")
    finally:
        shutil.rmtree(home)
    size = len(hub.files[f"{REPOSITORY}/{FILE}"])
    transfer_s = hub.last_byte_at - hub.first_byte_at
    return {
        "wall_s": round(wall_s, 4),
        "transfer_s": round(transfer_s, 4),
        "wall_bytes_per_s": round(size / wall_s),
        "transfer_bytes_per_s": round(size / transfer_s),
        "bytes_served": hub.bytes_served - before,
    }


def ratios(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Divide pair by pair: how many times as fast as hf Conifer is."""
    return {
        name: spread([pair["conifer"][name] / pair["hf"][name] for pair in pairs])
        for name in ("wall_bytes_per_s", "transfer_bytes_per_s")
    }


def medians(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up either program by itself."""
    return {
        who: {name: spread([pair[who][name] for pair in pairs]) for name in pairs[0][who]}
        for who in COMMANDS
    }


def circumstances(options: argparse.Namespace, hub: HubServer) -> dict[str, Any]:
    """Say what is measured, on what, and when."""
    path = f"{REPOSITORY}/{FILE}"
    return {
        "name": options.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "file": {"size_bytes": len(hub.files[path]), "sha256": hub.digest(path)},
        "cache_is_in_memory": str(options.cache.resolve()).startswith("/dev/shm"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "huggingface_hub": version("huggingface_hub"),
        "commit": commit(),
    }


if __name__ == "__main__":
    sys.exit(main())
