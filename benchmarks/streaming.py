"""Compare streamed experts with paging, Conifer's and llama.cpp's, in less memory than the file.

Every turn is a fresh process in a memory cgroup of its own, which counts the page cache too; before
it, the file leaves the page cache. A turn of Conifer with all of the file in memory, without a
limit, gives the time that a token takes without a disk, and a probe in each round the disk's rate.
From these follows the bound that streaming is held against:

    1 / (seconds of a resident token + bytes that a token misses / bytes the disk reads in a second)

Needs root, Linux, and cgroup v1 or v2. Everything goes to benchmarks/results/NAME.json.

    python benchmarks/streaming.py MODEL --name NAME --limit 2.5e9 --experts 1.6e9 --llama-python PY
"""

from __future__ import annotations

import argparse
import datetime
import json
import mmap
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
PAGE, DEPTH, PROBE_S = 4096, 8, 2.0
FAILED = {"figures": {}}
SETTINGS = ("limit", "experts", "threads", "rounds", "prompt", "tokens", "read_bytes", "only")

Turn = dict[str, Any]


def main() -> int:
    """Compare, and write the result."""
    options = parse()
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        rounds.append(one_round(options))
        say(f"round {number + 1} of {options.rounds}: {json.dumps(summary(options, rounds[-1:]))}")
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": options.model.name,
        "size_bytes": options.model.stat().st_size,
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "options": {name: getattr(options, name) for name in SETTINGS},
        "summary": summary(options, rounds),
        "rounds": rounds,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"{json.dumps(result['summary'], indent=1)}\n{out}")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    parser.add_argument("--limit", type=float, required=True, help="bytes of each cgroup")
    parser.add_argument("--experts", type=float, required=True, help="bytes for streamed experts")
    parser.add_argument("--llama-python", help="adds turns of llama.cpp")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--read-bytes", type=int, default=884_736, help="of the probe's reads")
    parser.add_argument("--only", help="turns to take, separated by commas")
    return parser.parse_args()


def one_round(options: argparse.Namespace) -> dict[str, Any]:
    """Take one turn of each program, and probe the disk before and after."""
    limit, experts = int(options.limit), int(options.experts)
    conifer = [sys.executable, str(HERE / "turn_streaming.py")]
    turns: dict[str, tuple[list[str], dict[str, Any], int | None]] = {
        "resident": (conifer, {"expert_bytes": None}, None),
        "everything": (conifer, {"expert_bytes": options.model.stat().st_size}, None),
        "streamed": (conifer, {"expert_bytes": experts}, limit),
        "forced": (conifer, {"expert_bytes": None}, limit),
    }
    if options.llama_python:
        llama = [options.llama_python, str(HERE / "turn_llama.py")]
        turns["llama"] = (llama, {"repack": False, "flash": True}, limit)
    wanted = options.only.split(",") if options.only else turns
    found: dict[str, Any] = {"disk_bytes_per_s": [probe(options)], "load": [os.getloadavg()[0]]}
    for name in wanted:
        found[name] = turn(options, *turns[name])
        say(f"  {name}: {found[name].get('figures')} {found[name].get('failed', '')}")
        found["load"].append(os.getloadavg()[0])
        found["disk_bytes_per_s"].append(probe(options))
    return found


def turn(
    options: argparse.Namespace, program: list[str], settings: dict[str, Any], limit: int | None
) -> Turn:
    """Run one turn in a cgroup, and add the most memory that it took with its page cache."""
    job = {
        "model": str(options.model),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "depths": [0],
        "threads": options.threads,
        "spawned": 0.0,
        "settings": settings,
    }
    forget(options.model)
    with cgroup(limit) as group:
        job["spawned"] = time.perf_counter()
        shell = f'echo $$ > {group / "cgroup.procs"}; exec "$@"'
        command = ["sh", "-c", shell, "sh", *program, json.dumps(job)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            return {**FAILED, "failed": f"exit {ran.returncode}: {ran.stderr[-400:]}"}
        found: Turn = json.loads(ran.stdout.splitlines()[-1])
        return {**found, "cgroup_peak_bytes": peak(group)}


@contextmanager
def cgroup(limit: int | None) -> Iterator[Path]:
    """Make a memory cgroup for one turn."""
    old = V1.exists()
    group = (V1 if old else V2) / f"conifer-{os.getpid()}"
    group.mkdir()
    try:
        if limit:
            (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        yield group
    finally:
        time.sleep(0.2)
        group.rmdir()


def peak(group: Path) -> int:
    """Return the most bytes that a cgroup held."""
    name = "memory.max_usage_in_bytes" if V1.exists() else "memory.peak"
    return int((group / name).read_text())


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def probe(options: argparse.Namespace) -> float:
    """Return the rate of random reads of the model's file past the page cache, in bytes/s."""
    size = -(-options.read_bytes // PAGE) * PAGE
    pages = (options.model.stat().st_size - size) // PAGE
    end, done = time.perf_counter() + PROBE_S, [0] * DEPTH

    def read(number: int) -> None:
        draw, memory = random.Random(number), mmap.mmap(-1, size)
        file = os.open(options.model, os.O_RDONLY | os.O_DIRECT)
        while time.perf_counter() < end:
            done[number] += os.preadv(file, [memory], draw.randrange(pages) * PAGE)
        os.close(file)

    started = time.perf_counter()
    threads = [threading.Thread(target=read, args=(number,)) for number in range(DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def summary(options: argparse.Namespace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over rounds, with the ratios that they are held against."""
    decode, prefill = "decode_0", f"prefill_{options.prompt}"

    def median(name: str, figure: str) -> float | None:
        values = [one[name]["figures"].get(figure) for one in rounds if name in one]
        known = [value for value in values if value]
        return statistics.median(known) if known else None

    rate = statistics.median(rate for one in rounds for rate in one["disk_bytes_per_s"])
    found: dict[str, Any] = {"disk_bytes_per_s": rate}
    for name in ("resident", "everything", "streamed", "forced", "llama"):
        found[name] = {figure: median(name, figure) for figure in (decode, prefill)}
        peaks = [one[name].get("cgroup_peak_bytes") for one in rounds if name in one]
        found[name]["cgroup_peak_bytes"] = max((size for size in peaks if size), default=None)
    stored = [
        one["streamed"]["about"]["store"][-1]
        for one in rounds
        if "about" in one.get("streamed", {})
    ]
    resident, streamed = found["resident"][decode], found["streamed"][decode]
    if stored and resident and streamed:
        read = [one["bytes_read"] - one["prompt_bytes_read"] for one in stored]
        missed = statistics.median(read) / options.tokens
        found["missed_bytes_per_token"] = missed
        found["hit_rate"] = statistics.median(
            one["hits"] / (one["hits"] + one["misses"]) for one in stored
        )
        found["bound"] = 1 / (1 / resident + missed / rate)
        found["of_bound"] = streamed / found["bound"]
    for other in ("resident", "forced", "llama"):
        for figure in (decode, prefill):
            ours, theirs = found["streamed"][figure], found[other][figure]
            if ours and theirs:
                found[f"streamed / {other}: {figure}"] = ours / theirs
    whole = found["everything"][decode]
    if whole and resident:
        found["everything / resident: decode_0"] = whole / resident
    return found


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
