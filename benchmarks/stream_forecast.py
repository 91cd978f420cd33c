"""Compare what `conifer fit` forecasts of streaming with what `conifer run` then measures.

For each budget: `fit --budget`, then `run --budget` with a prompt of random words in a memory
cgroup of 1.25 times the budget, which counts the page cache too. The ledger is a new one: the first
budget is forecast from published hit rates and a probe of the disk, the others also from the runs
before. Needs root and Linux.

    python benchmarks/stream_forecast.py MODEL --name NAME --budget 1.0 1.2 1.5 1.8
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from streaming import cgroup, forget, peak

HERE = Path(__file__).resolve().parent
CONIFER = [sys.executable, "-P", "-m", "conifer_cli"]
LETTERS = 400  # of the prompt, at random: repeated words would make the routers repeat themselves
ROOM = 1.25  # of the budget; the peak must stay below the budget itself


def main() -> int:
    """Forecast and run at each budget, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    parser.add_argument("--budget", type=float, nargs="+", required=True, help="GB")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        turns = [
            turn(options.model, budget, options.tokens, Path(home))
            for _ in range(options.rounds)
            for budget in options.budget
        ]
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": options.model.name,
        "size_bytes": options.model.stat().st_size,
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "turns": turns,
    }
    out = HERE / "results" / f"{options.name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)
    return 0


def turn(model: Path, budget_gb: float, tokens: int, home: Path) -> dict[str, Any]:
    """Forecast one budget, then run it."""
    budget = ["--budget", f"{budget_gb}GB"]
    fit = json.loads(_output(["fit", str(model), *budget, "--json"], home))
    streaming = fit["streaming"]
    prompt = "".join(random.Random(budget_gb).choices(string.ascii_lowercase + " ", k=LETTERS))
    forget(model)
    with cgroup(int(ROOM * budget_gb * 1e9)) as group:
        answer = ["run", str(model), "-p", prompt, *budget, "-n", str(tokens), "--json"]
        ran = json.loads(_output([*answer, "--seed", "1"], home, group))
        peak_bytes = peak(group)
    measured = ran["rates"]["completion_tokens_per_s"]
    found = {
        "budget_bytes": fit["machine"]["budget_bytes"],
        "verdict": fit["verdict"],
        "cached_experts": streaming["cached_experts"],
        "experts": streaming["experts"],
        "forecast": {
            "per_s": streaming["speed"],
            "hit_rate": streaming["hit_rate"],
            "source": streaming["hit_rate_source"],
            "disk_bytes_per_s": streaming["disk"]["bytes_per_s"],
        },
        "measured": {"per_s": measured, "peak_bytes": peak_bytes, **ran["experts_from_disk"]},
        "forecast_of_measured": round(streaming["speed"]["per_s"] / measured, 3),
    }
    print(json.dumps(found), file=sys.stderr)
    return found


def _output(arguments: list[str], home: Path, group: Path | None = None) -> str:
    """Run Conifer with a home of its own. The exit code of `fit` does not matter."""
    variables = {**os.environ, "CONIFER_HOME": str(home), "CONIFER_NOHISTORY": "1"}
    join = "" if group is None else f"echo $$ > {group / 'cgroup.procs'}; "
    command = ["sh", "-c", f'{join}exec "$@"', "sh", *CONIFER, *arguments]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
