"""Fit what a token costs where Conifer has not run, to published rates of other programs.

reports/decode.csv has a rate, its machine, model, depth and source in each row. The bytes of a
token are those that `fit` counts, in the file's own form. A source weighs once for each of its
machines, however many rows it has. There are few parameters, each with a starting value that comes
from elsewhere and a width that says how sure it is: a chip with two reports stays near its start.
Each source is then left out, the rest is fitted again, and its own rows are predicted: that is what
results/fit-speed.json records as `left_out`.

    PYTHONPATH=. python benchmarks/fit_speed.py --out benchmarks/results/fit-speed.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catalog import entries
from conifer_cli.fit.alternatives import estimate_of
from engine.fit.estimate import ModelEstimate, estimate_bytes_per_token, part_bits
from engine.fit.machine_specs import simulate
from engine.fit.speed import DECODE_COSTS, Bandwidth, BytesPerToken, DecodeCost, seconds
from engine.nn.cache.spec import CacheSpec

REPORTS = Path(__file__).with_name("reports") / "decode.csv"
TURN = 0.15  # errors in the logarithm above this count linearly, not squared
SMALLEST_STEP = 0.002
BACKENDS = {"metal": "stock", "cuda": "stock", "cpu": "native"}
# Models of reports that the catalog does not have: layers, weights of attention in a layer, width,
# vocabulary, width of the feed-forward layer, and values that a layer keeps of a token.
OTHERS = {
    "llama-2-7b": (32, 67_108_864, 4096, 32_000, 11_008, 8192),
    "qwen2.5-14b": (48, 62_914_560, 5120, 152_064, 13_824, 2048),
}


@dataclass(frozen=True)
class Report:
    """One published rate: how long a token took, and what it read on which machine."""

    source: str
    machine: str
    model: str
    taken_s: float
    moved: BytesPerToken
    layers: int
    bandwidth: Bandwidth
    backend: str

    @property
    def family(self) -> str:
        assert self.bandwidth.costs is not None
        return self.bandwidth.costs

    def predicted_s(self, cost: DecodeCost) -> float:
        """Predict the time of a token with costs other than the program's."""
        with_cost = replace(self.bandwidth, costs=TRIED)
        DECODE_COSTS[TRIED] = cost
        return seconds(self.moved, self.layers, with_cost, self.backend, BACKENDS[self.backend])


TRIED = "tried"
Values = Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Kinds of machines that are fitted together.

    start: parameters, each with its starting value and how far off it may be, as the standard
    deviation of its logarithm. costs: makes the costs of a kind from the parameters.
    """

    families: tuple[str, ...]
    start: Mapping[str, tuple[float, float]]
    costs: Callable[[str, Values], DecodeCost]


def by_chip(family: str, p: Values) -> DecodeCost:
    """A layer costs less on newer chips; one with experts costs `routed` times as much."""
    layer_s = 1e-3 * p["layer_ms " + {"m3": "m2", "m5": "m4"}.get(family, family)]
    routed_s = (p["routed"] - 1) * layer_s
    return DecodeCost(p["weights"], p["kv"], 0, layer_s, routed_s, p["reuse"])


def plain(_family: str, p: Values) -> DecodeCost:
    """The bytes and a cost per layer."""
    return DecodeCost(p["weights"], p["kv"], 0, 1e-3 * p["layer_ms"], 0, p["reuse"])


# The starts of Apple's weights and of M4's layers are mlx-lm's own rates of one model at four to
# seven precisions on one M4 Max; those of older layers, of cards and of CPUs are what their reports
# give with these weights. A card's layer with experts costs as much more as Apple's.
GROUPS = {
    "apple": Group(
        ("m1", "m2", "m3", "m4", "m5"),
        {
            "weights": (1.1, 0.08),
            "kv": (1.3, 0.15),
            "layer_ms m1": (0.28, 0.3),
            "layer_ms m2": (0.13, 0.3),
            "layer_ms m4": (0.08, 0.3),
            "routed": (1.7, 0.2),
            "reuse": (0.3, 0.5),
        },
        by_chip,
    ),
    "cards": Group(
        ("ampere", "ada"),
        {
            "weights": (1.15, 0.03),
            "kv": (1.3, 0.05),
            "layer_ms ampere": (0.073, 0.3),
            "layer_ms ada": (0.062, 0.3),
            "routed": (1.7, 0.2),
            "reuse": (0.1, 0.1),
        },
        by_chip,
    ),
    "gb10": Group(
        ("gb10",),
        {"weights": (1.2, 0.05), "kv": (1.4, 0.1), "layer_ms": (0.06, 0.2), "reuse": (0.1, 0.1)},
        plain,
    ),
    "cpu": Group(
        ("cpu, others",),
        {"weights": (1.21, 0.05), "kv": (1.22, 0.05), "layer_ms": (0.13, 0.3), "reuse": (0.1, 0.1)},
        plain,
    ),
}


def main() -> int:
    """Fit every group and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    reports = read_reports()
    found = {name: fitted(group, reports) for name, group in GROUPS.items()}
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)
    return 0


def read_reports() -> list[Report]:
    """Read reports/decode.csv."""
    with REPORTS.open(newline="") as file:
        return [report(row) for row in csv.DictReader(file)]


def report(row: Mapping[str, str]) -> Report:
    """Make a report of a row."""
    machine, bandwidth = simulate(row["machine"])
    model = estimate(row["model"], row["quant"])
    moved = estimate_bytes_per_token(model, "cpu", "native", int(row["depth"]), "f16")
    assert moved is not None and model.layers is not None
    return Report(
        row["source"],
        row["machine"],
        row["model"],
        1 / float(row["tokens_per_s"]),
        moved,
        model.layers,
        bandwidth,
        machine.backend,
    )


def estimate(name: str, quant: str) -> ModelEstimate:
    """Return a model in a quantisation: the catalog's file, or one of its usual size."""
    entry = entries().get(name)
    if entry is None:
        layers, attention, width, vocabulary, hidden, values = OTHERS[name]
        parts = {
            "routed": 0,
            "attention": layers * attention,
            "shared": 3 * layers * width * hidden,
            "head": width * vocabulary,
            "embedding": width * vocabulary,
        }
        specs = (CacheSpec(buffers=((1, values),)),) * layers
        return ModelEstimate(
            usual_size(parts, quant), quant, None, layers, None, None, specs, parts
        )
    known = estimate_of(entry, entry.file(quant))
    if known is not None:
        return known
    default = estimate_of(entry, entry.file())
    assert default is not None
    return replace(default, quant=quant, size_bytes=usual_size(entry.parts, quant))


def usual_size(parts: Mapping[str, int], quant: str) -> int:
    """Return the size of a file in which every part has its usual bits."""
    most, head, embedding = part_bits(quant)
    bits = {"head": head, "embedding": embedding}
    return int(sum(weights * bits.get(part, most) / 8 for part, weights in parts.items()))


def fitted(group: Group, reports: Sequence[Report]) -> dict[str, Any]:
    """Fit a group's parameters, and measure them on sources that were left out."""
    mine = [report for report in reports if report.family in group.families]
    values = fit(group, mine)
    sources = sorted({report.source for report in mine})
    ratios = []  # predicted rate : reported rate
    for source in sources:
        rest = fit(group, [report for report in mine if report.source != source])
        left_out = (report for report in mine if report.source == source)
        ratios += [(report, ratio(group, rest, report)) for report in left_out]
    kinds = {"dense": False, "mixtures": True} if group.families[0] == "m1" else {"all": None}
    return {
        "reports": len(mine),
        "sources": len(sources),
        "chips": dict(Counter(report.family for report in mine)),
        "values": {name: round(value, 3) for name, value in values.items()},
        "left_out": {
            kind: summary(
                [r for report, r in ratios if routed in (None, report.moved.routed_layers > 0)],
                DECODE_COSTS[group.families[0]],
            )
            for kind, routed in kinds.items()
        },
    }


def summary(ratios: Sequence[float], cost: DecodeCost) -> dict[str, float]:
    """Return the median of predicted : reported, its spread, and the share inside the range."""
    inside = [cost.low <= 1 / ratio <= cost.high for ratio in ratios]
    return {
        "reports": len(ratios),
        "median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "inside": round(sum(inside) / len(inside), 2),
    }


def ratio(group: Group, values: Values, report: Report) -> float:
    """Return predicted : reported tokens per second."""
    return report.taken_s / report.predicted_s(group.costs(report.family, values))


def fit(group: Group, reports: Sequence[Report]) -> dict[str, float]:
    """Return the parameters with the least error: steps up and down one of them, then smaller."""
    counts = Counter((report.source, report.machine) for report in reports)
    weights = [1 / counts[report.source, report.machine] for report in reports]

    def loss(logs: Values) -> float:
        values = {name: math.exp(log) for name, log in logs.items()}
        errors = (math.log(ratio(group, values, report)) for report in reports)
        off = (
            (logs[name] - math.log(value)) / width for name, (value, width) in group.start.items()
        )
        return sum(w * _huber(e) for w, e in zip(weights, errors, strict=True)) + sum(
            o * o / 2 for o in off
        )

    logs = {name: math.log(value) for name, (value, _) in group.start.items()}
    least, step = loss(logs), 0.2
    while step > SMALLEST_STEP:
        tries = [{**logs, name: logs[name] + by} for name in logs for by in (step, -step)]
        losses = [loss(tried) for tried in tries]
        if min(losses) < least:
            least, logs = min(losses), tries[losses.index(min(losses))]
        else:
            step /= 2
    return {name: math.exp(log) for name, log in logs.items()}


def _huber(error: float) -> float:
    size = abs(error) / TURN
    return size * size / 2 if size <= 1 else size - 0.5


if __name__ == "__main__":
    raise SystemExit(main())
