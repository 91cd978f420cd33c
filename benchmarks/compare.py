"""Compare Conifer with llama.cpp on one file, in turns: A, B, A, B.

Every turn is a fresh process; before it the file is read once, so that all of it is in the page
cache. llama.cpp is first tried with repacking and flash attention on and off, and for each figure
the better way is held against Conifer. The figure of a pair is Conifer's divided by llama.cpp's, so
that above 1 is faster. Everything measured goes to benchmarks/results/NAME.json.

    python benchmarks/compare.py MODEL --name NAME --conifer-python PY --llama-python PY
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHUNK_BYTES = 16 << 20
CRASHES = 4  # of a turn, until it counts as failed: llama.cpp's AMX path crashes now and then
VARIANTS = [{"repack": r, "flash": f} for r in (True, False) for f in (True, False)]

Turn = dict[str, Any]  # what turns.finish prints, or {"failed": why}


def main() -> int:
    """Compare, and write the result."""
    options = parse()
    path = options.model.resolve()
    result = circumstances(options, path)
    say(f"{path.name}: trying llama.cpp's variants")
    probes = probe(options, path)
    chosen = choose(probes)
    result["llama_probes"], result["llama_chosen"] = probes, chosen
    pairs: list[dict[str, Any]] = []
    for number in range(options.pairs):
        pairs.append(pair(options, path, chosen))
        say(f"pair {number + 1} of {options.pairs}: {line(ratios(pairs[-1:], chosen))}")
    result["pairs"] = pairs
    result["medians"] = medians(pairs, chosen)
    result["ratios"] = ratios(pairs, chosen)
    out = HERE / "results" / f"{options.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"{line(result['ratios'])}\n{out}")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    parser.add_argument("--conifer-python", default=sys.executable)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--mlx-lm-python", help="adds turns of mlx-lm; for the starter only")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--isa", help="Conifer's instruction set; build llama.cpp for the same")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--probes", type=int, default=2, help="tries of each llama.cpp variant")
    parser.add_argument(
        "--no-repack", action="store_true", help="where copies of the weights do not fit the memory"
    )
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--depth", type=lambda text: [int(n) for n in text.split(",")], default=[0])
    options = parser.parse_args()
    if options.pairs < 5:
        parser.error("--pairs takes at least 5")
    return options


# Turns


def take_turn(
    options: argparse.Namespace, path: Path, program: str, settings: dict[str, Any]
) -> Turn:
    """Run one program once; again if it crashes, up to `CRASHES` times, which is recorded."""
    crashes, done = 0, start(options, path, program, settings)
    while done.returncode == -signal.SIGSEGV and crashes < CRASHES:
        crashes, done = crashes + 1, start(options, path, program, settings)
    about = {"settings": settings, "crashes": crashes, "load_average": os.getloadavg()[0]}
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [""]
        return {**about, "failed": f"exit {done.returncode}: {why[0]}"}
    turn: Turn = json.loads(done.stdout.splitlines()[-1])
    return {**about, **turn}


def start(
    options: argparse.Namespace, path: Path, program: str, settings: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Warm the page cache, and run a program to its end."""
    read_through(path)
    python = getattr(options, f"{program}_python")
    job = {
        "model": str(path),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "depths": options.depth,
        "threads": options.threads,
        "settings": settings,
        "spawned": time.perf_counter(),
    }
    return subprocess.run(
        [python, str(HERE / f"turn_{program}.py"), json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )


def probe(options: argparse.Namespace, path: Path) -> list[Turn]:
    """Try every variant of llama.cpp. One that fails, for lack of memory, is kept as failed."""
    variants = [way for way in VARIANTS if not (options.no_repack and way["repack"])]
    turns = [
        take_turn(options, path, "llama", settings)
        for _ in range(options.probes)
        for settings in variants
    ]
    if all("failed" in turn for turn in turns):
        raise SystemExit(f"llama.cpp: {turns[0]['failed']}")
    return turns


def pair(
    options: argparse.Namespace, path: Path, chosen: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Run Conifer, then llama.cpp in every way that was the better one for some figure."""
    settings = {"kernels": options.kernels, "isa": options.isa}
    conifer = take_turn(options, path, "conifer", settings)
    if "failed" in conifer:
        raise SystemExit(f"Conifer: {conifer['failed']}")
    ways = [way for way in VARIANTS if way in chosen.values()]
    taken: dict[str, Any] = {
        "conifer": conifer,
        "llama": [take_turn(options, path, "llama", way) for way in ways],
    }
    if options.mlx_lm_python:
        taken["mlx_lm"] = take_turn(options, path, "mlx_lm", {})
    return taken


def read_through(path: Path) -> str:
    """Read a file to its end; gives back its SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


# Figures


def choose(probes: list[Turn]) -> dict[str, dict[str, Any]]:
    """Choose for each figure the variant that did best in any try.

    For the start, only among those that were chosen for a rate.
    """
    sound = [turn for turn in probes if "failed" not in turn]
    rates = [name for name in sound[0]["figures"] if name != "start_s"]
    chosen = {
        name: max(sound, key=lambda turn: turn["figures"][name])["settings"] for name in rates
    }
    quick = [turn for turn in sound if turn["settings"] in chosen.values()]
    best = min(quick, key=lambda turn: turn["figures"]["start_s"])
    return {"start_s": best["settings"], **chosen}


def figure(turns: list[Turn], settings: dict[str, Any], name: str) -> float | None:
    """Find a figure among the turns of a pair; None where that turn failed."""
    turn = next(turn for turn in turns if turn["settings"] == settings)
    return None if "failed" in turn else float(turn["figures"][name])


def ratios(
    pairs: list[dict[str, Any]], chosen: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Divide pair by pair: how many times as fast as llama.cpp Conifer is."""
    found = {}
    for name, settings in chosen.items():
        runs = []
        for taken in pairs:
            ours, theirs = taken["conifer"]["figures"][name], figure(taken["llama"], settings, name)
            if theirs is not None:
                runs.append(theirs / ours if name == "start_s" else ours / theirs)
        found[name] = spread(runs)
    return found


def medians(
    pairs: list[dict[str, Any]], chosen: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Sum up every program by itself."""
    turns = [taken["conifer"] for taken in pairs]
    found = {"conifer": {n: spread([t["figures"][n] for t in turns]) for n in turns[0]["figures"]}}
    moved = turns[0]["about"]["moved_bytes"]
    if "decode_0" in chosen:
        shares = [
            t["figures"]["decode_0"] * moved / t["figures"]["read_bytes_per_s"] for t in turns
        ]
        found["conifer"]["bandwidth_share_0"] = spread(shares)
    found["llama"] = {
        name: spread([f for taken in pairs if (f := figure(taken["llama"], way, name)) is not None])
        for name, way in chosen.items()
    }
    others = [taken["mlx_lm"] for taken in pairs if "figures" in taken.get("mlx_lm", {})]
    if others:
        names = others[0]["figures"]
        found["mlx_lm"] = {n: spread([t["figures"][n] for t in others]) for n in names}
    return found


def spread(runs: list[float]) -> dict[str, Any]:
    """Sum up runs: median, lowest, highest; and how many there are."""
    if not runs:
        return {"median": None, "count": 0}
    rounded = [float(f"{run:.5g}") for run in runs]
    median = statistics.median(rounded)
    return {"median": median, "low": min(rounded), "high": max(rounded), "count": len(runs)}


def line(figures: dict[str, dict[str, Any]]) -> str:
    """Write ratios in one line."""
    return ", ".join(
        f"{name} {sums['median']:.2f} x" for name, sums in figures.items() if sums["median"]
    )


def circumstances(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Say what is measured, on what, and when."""
    return {
        "name": options.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "file": {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "sha256": read_through(path),
        },
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "system": platform.platform(),
        "commit": commit(),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "depths": options.depth,
        "kv_type": "f16",
        "repack_tried": not options.no_repack,
    }


def cpu_name() -> str:
    """Read the name of the CPU."""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """Say which commit this tree is at, and whether it has changes on top other than results."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HERE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return git("rev-parse", "HEAD") + ("+changes" if changed else "")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
