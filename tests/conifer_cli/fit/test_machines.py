"""Forty machines and every model of the catalog: what no verdict may ever say."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from catalog import CatalogFile, Entry, entries
from conifer_cli.fit.alternatives import estimate_of
from engine.fit.estimate import estimate_needs, estimate_weights, judge_estimate
from engine.fit.machine import Machine, cuda_machine, linux_cpu, metal_machine
from engine.fit.machine_specs import resized, simulate
from engine.fit.memory import MARGIN, judge_size, kind_of, reserve_bytes
from engine.kernels.sizes import loaded_bytes

GIB = 1 << 30
ORDER = ["too_large", "streams", "tight", "fits"]
KERNELS = {"cpu": "native", "metal": "blocks", "cuda": "blocks"}

# Memory, available memory, and the limit, the usage and the file cache of a cgroup, in GiB.
LINUX = {
    "4": (4, 3, None),
    "8": (8, 6.5, None),
    "8 busy": (8, 0.5, None),
    "16": (16, 14, None),
    "16 half": (16, 8, None),
    "24": (24, 22, None),
    "32": (32, 30, None),
    "32 cgroup 8": (32, 30, (8, 1, 0)),
    "32 cgroup 8 used": (32, 30, (8, 7.5, 0.5)),
    "32 cgroup 24 cached": (32, 30, (24, 20, 18)),
    "64": (64, 60, None),
    "64 cgroup 16": (64, 60, (16, 0.25, 0.125)),
    "64 cgroup over": (64, 40, (128, 3, 0)),
    "96": (96, 90, None),
    "128": (128, 120, None),
    "256": (256, 240, None),
    "512": (512, 500, None),
    "768": (768, 700, None),
    "1024": (1024, 1000, None),
}
NAMES = (
    *("m1-8gb", "m1-16gb", "m1-pro-32gb", "m1-max-64gb", "m1-ultra-128gb", "m2-24gb"),
    *("m2-ultra-192gb", "m3-pro-36gb", "m3-max-30core-96gb", "m3-ultra-512gb", "m4-16gb"),
    *("m4-pro-48gb", "m4-max-36gb", "m4-max-64gb", "rtx-3090", "rtx-4090", "gb10", "h200"),
)


def machines(folder: Path) -> list[Machine]:
    made = [_linux(folder / str(i), *facts) for i, facts in enumerate(LINUX.values())]
    made += [simulate(name)[0] for name in NAMES]
    made.append(metal_machine("busy Mac", 32 * GIB, 22 * GIB, 5 * GIB))
    made.append(metal_machine("macOS that grants nearly all", 128 * GIB, 120 * GIB, 126 * GIB))
    made.append(cuda_machine("shared card", 80 * GIB, 20 * GIB))
    return made


def _linux(root: Path, memory: float, available: float, cgroup: tuple | None) -> Machine:
    facts = {"MemTotal": memory, "MemFree": available / 2, "MemAvailable": available}
    files = {"proc/meminfo": "".join(f"{k}: {int(v * GIB) // 1024} kB\n" for k, v in facts.items())}
    if cgroup is not None:
        limit, usage, cache = (int(value * GIB) for value in cgroup)
        version_2 = memory != 64  # the others speak version 1
        files["proc/self/cgroup"] = "0::/job\n" if version_2 else "4:memory:/job\n"
        folder = "sys/fs/cgroup/job" if version_2 else "sys/fs/cgroup/memory/job"
        names = ("memory.max", "memory.current", "active_file")
        if not version_2:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file")
        files |= {f"{folder}/{names[0]}": str(limit), f"{folder}/{names[1]}": str(usage)}
        files[f"{folder}/memory.stat"] = f"{names[2]} {cache}\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return linux_cpu(root)


FILES = [
    (entry, facts)
    for entry in entries().values()
    for facts in entry.files
    if facts.size_bytes is not None
]


@functools.cache
def needs_of(id: str, quant: str, backend: str, kv_type: str = "f16"):
    entry = entries()[id]
    estimate = estimate_of(entry, entry.file(quant))
    return estimate_needs(estimate, backend, kv_type, KERNELS[backend])


def test_there_are_forty_machines(tmp_path):
    made = machines(tmp_path)
    assert len(made) == 40
    budgets = {machine.name: machine.budget_bytes for machine in made}
    assert all(0 < machine.budget_bytes <= machine.memory_bytes for machine in made)
    assert budgets["shared card"] == 20 * GIB
    cgroups = [m.budget_bytes for m in made if m.limited_by == "cgroup limit"]
    assert cgroups == [7 * GIB, 1 * GIB, 22 * GIB, int(15.875 * GIB)]


def test_no_verdict_is_above_the_budget(tmp_path):
    for machine, (entry, facts) in itertools.product(machines(tmp_path), FILES):
        estimate = estimate_of(entry, facts)
        verdict = judge_estimate(estimate, machine, kernels=KERNELS[machine.backend])
        need, budget = verdict.need.total_bytes, machine.budget_bytes
        where = (machine, entry.id, facts.quant)
        assert verdict.need.weights_bytes >= facts.size_bytes, where
        if verdict.kind == "fits":
            assert MARGIN * need + reserve_bytes(machine) <= budget, where
        assert (verdict.kind in ("streams", "too_large")) == (need > budget), where
        if verdict.kind != "too_large":
            assert 0 < verdict.context <= verdict.largest_context, where
            assert verdict.context <= min(32_768, entry.context or 32_768), where
        if verdict.plan is not None:
            assert verdict.plan.resident_bytes + verdict.plan.store_bytes <= budget, where
        elif verdict.largest_context:
            assert judge_size(facts.size_bytes, machine).kind != "too_large", where
            most = needs_of(entry.id, facts.quant, machine.backend)(verdict.largest_context)
            assert kind_of(most, machine) != "too_large", where


@pytest.mark.parametrize("backend", ["cpu", "metal", "cuda"])
@pytest.mark.parametrize("kv_type", ["f16", "q8", "f32"])
def test_verdicts_are_monotone_in_memory_and_context(backend: str, kv_type: str):
    base = {"cpu": "m1-8gb", "metal": "m1-8gb", "cuda": "rtx-3090"}[backend]
    machine = Machine("", "cpu", 1, 1, "") if backend == "cpu" else simulate(base)[0]
    sizes = [resized(machine, gib * GIB) for gib in (4, 8, 16, 24, 32, 48, 64, 128, 512, 1024)]
    for entry, facts in FILES:
        need = needs_of(entry.id, facts.quant, backend, kv_type)
        at = [need(context) for context in (256, 4096, 32_768, 131_072)]
        assert all(a.total_bytes <= b.total_bytes for a, b in itertools.pairwise(at))
        kinds = [[ORDER.index(kind_of(n, there)) for n in at] for there in sizes]
        assert all(row == sorted(row, reverse=True) for row in kinds), entry.id
        assert all(list(column) == sorted(column) for column in zip(*kinds, strict=True)), entry.id


@pytest.mark.parametrize("backend", ["cpu", "metal", "cuda"])
def test_verdicts_are_monotone_in_what_a_quantisation_takes(backend: str):
    for entry in entries().values():
        files = [facts for facts in entry.files if facts.size_bytes is not None]
        held = {facts.quant: _held(entry, facts, backend) for facts in files}
        files.sort(key=lambda facts: held[facts.quant])
        for context in (4096, 32_768):
            totals = [needs_of(entry.id, f.quant, backend)(context).total_bytes for f in files]
            assert totals == sorted(totals)
        if backend == "cpu":  # the native kernels hold the file as it is
            assert [f.size_bytes for f in files] == sorted(f.size_bytes for f in files)


def test_a_smaller_cache_type_never_needs_more():
    for entry, facts in FILES:
        for context in (4096, 131_072):
            totals = [
                needs_of(entry.id, facts.quant, "cpu", kv_type)(context).total_bytes
                for kv_type in ("q8", "f16", "f32")
            ]
            assert totals == sorted(totals)


def _held(entry: Entry, facts: CatalogFile, backend: str) -> int:
    held = estimate_weights(estimate_of(entry, facts), backend, KERNELS[backend])
    sizes = (facts.size_bytes, entry.total_parameters)
    assert held == loaded_bytes(facts.quant, *sizes, backend, KERNELS[backend])
    return held
