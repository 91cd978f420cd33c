"""Measure what decoding costs a core for each block type, apart from waiting for memory.

Runs `core_bench` of the C++ core with one thread and weights that stay in its cache, and prints the
table of engine/fit/decode_cost.py: nanoseconds for a kilobyte of blocks and one token.

    python benchmarks/decode_cost.py build/core_bench --out benchmarks/results/decode-cost.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

from compare import commit
from fit_accuracy import cpu

LINE = re.compile(r"(\w+) +decode +([\d.]+) GB/s")
ROUNDS = 3  # the fastest counts: other programs can only slow one down
FLOATS = ("F32", "F16", "BF16")


def main() -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("core_bench", type=Path)
    parser.add_argument("--isa", default="avx512,avx2,portable")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = {isa: measure(options.core_bench, isa) for isa in options.isa.split(",")}
    for isa, costs in table.items():
        print(f'    "{isa}": {{')
        for name, cost in costs.items():
            print(f'        "{name}": {cost},')
        print("    },")
    if options.out:
        write(options.out, table)
    return 0


def write(out: Path, table: dict[str, dict[str, float]]) -> None:
    """Write the costs, and keep those of instruction sets that were not measured this time."""
    known = json.loads(out.read_text()) if out.exists() else {"measured": {}, "ns_per_kb": {}}
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    run = {"commit": commit(), "date": date}
    measured = known["measured"] | dict.fromkeys(table, run)
    document = {"cpu": cpu(), "measured": measured, "ns_per_kb": known["ns_per_kb"] | table}
    out.write_text(json.dumps(document, indent=1) + "\n")


def measure(core_bench: Path, isa: str) -> dict[str, float]:
    """Return the cost of each type with an instruction set, in nanoseconds for 1,000 bytes."""
    command = [str(core_bench), "--threads", "1", "--mib", "1", "--tokens", "1", "--isa", isa]
    costs: dict[str, float] = {}
    for _ in range(ROUNDS):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for name, rate in LINE.findall(done.stdout):
            if name not in FLOATS:
                costs[name] = min(costs.get(name, 1e9), round(1000 / float(rate), 1))
    return costs


if __name__ == "__main__":
    sys.exit(main())
