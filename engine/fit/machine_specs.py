"""Known machines by name, for `fit --machine`: memory size, budget and published bandwidth.

`machine_specs.toml` lists what manufacturers publish. `engine.fit.machine` measures this machine.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from engine.fit.decode_cost import core_seconds
from engine.fit.machine import UNIFIED_LIMIT, Machine, cuda_machine, idle_bytes, metal_machine
from engine.fit.prefill import GPU_SHARE, core_flops, flops_here
from engine.fit.speed import PRIOR, Bandwidth

GB, GIB = 10**9, 1 << 30
AMPERE = ("rtx-3", "rtx-a", "a")  # how the names of NVIDIA cards of that generation begin
REACHED = 0.8  # of a CPU's theoretical bandwidth, by plain reads
FEW_CORES = 64  # more wait for each other in every layer, by the square of their number
USUAL_GB = (8, 16, 32, 64, 128, 256, 512, 1024)  # of a PC or a server
NEAR = 0.08  # GB and GiB are closer than that, and so is what a driver keeps
# What people write around a name: words, and inches before an Apple chip.
_WORDS = re.compile(
    r"\b(apple|silicon|macbook|mac|studio|mini|imac|pro(?=.*\bm\d)|air|nvidia|geforce|amd|intel|core"
    r"(?=\W*i\d)|radeon|chip|gpu|laptop|desktop|with|ram|memory|1[3-6](?=\W.*\bm\d))\b"
)
_SIZE = re.compile(r"(?<!\d)(\d{1,4})[ -]?gi?b\b")
_CORES = re.compile(r"(?<!\d)(\d{1,3})[ -]?cores?\b")
# Shares of memory that macOS lets the GPU use, up to so many GiB: llama.cpp's logs of 2025 and 2026
# (docs/fit.md). 96 GiB is interpolated; of 512 GiB there is one log.
_WORKING_SETS = ((31, 0.74), (48, 0.78), (64, 0.81), (96, 0.82), (256, 0.84))
_LARGEST_SHARE = 0.906


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A chip, graphics card or CPU listed in `machine_specs.toml`.

    memory_gb: the only sizes that it is sold with; empty if any size may be. usable_gib: what is
    left of each. sold_gb: usual sizes. costs: a key of DECODE_COSTS. gpu_cores: of the smaller
    part and of the full one.
    """

    name: str
    backend: str
    gb_per_s: float
    costs: str
    tflops: float | None = None
    memory_gb: tuple[int, ...] = ()
    usable_gib: tuple[float, ...] = ()
    sold_gb: tuple[int, ...] = ()
    gpu_cores: tuple[int, ...] = ()
    slower: Mapping[str, Any] | None = None
    unified: bool = False
    cores: int = 0
    isa: str = ""


class UnknownMachine(ValueError):
    """The name is not in the table, or it needs a memory size."""


@cache
def machine_specs() -> dict[str, MachineSpec]:
    """Read `machine_specs.toml`. Keys are machine names."""
    tables = _tables()
    found = {key: _apple(key, row) for key, row in tables["apple"].items()}
    found |= {key: _nvidia(key, row) for key, row in tables["nvidia"].items()}
    return found | {key: _cpu(row) for key, row in tables["cpu"].items()}


@dataclass(frozen=True, slots=True)
class Choice:
    """A machine picked by name, and the size and core count that the name gives."""

    key: str
    spec: MachineSpec
    size_gb: int | None
    gpu_cores: int | None


def choose(text: str) -> Choice:
    """Find a machine by what people type, such as "MacBook Pro M3 32GB", m4-max-64gb or "RTX 4090".

    Raises UnknownMachine, whose message suggests valid names.
    """
    words = text.strip().lower().replace("_", "-")
    sizes, counts = _SIZE.findall(words), _CORES.findall(words)
    bare = _WORDS.sub(" ", _CORES.sub(" ", _SIZE.sub(" ", words)))
    known, names = _squash(bare), _names()
    if known not in names or len(sizes) > 1 or len(counts) > 1:
        raise UnknownMachine(_unknown(text, known))
    key = names[known]
    size, count = int(sizes[0]) if sizes else None, int(counts[0]) if counts else None
    return Choice(key, machine_specs()[key], size or None, count)


def simulate(
    text: str, memory_bytes: int | None = None, bytes_per_s: float | None = None
) -> tuple[Machine, Bandwidth]:
    """Return the idle machine with this name, and its published bandwidth.

    memory_bytes: overrides the size in the name. bytes_per_s: overrides the bandwidth. Raises
    UnknownMachine.
    """
    found = choose(text)
    spec = _variant(found, memory_bytes)
    if memory_bytes is None:
        memory_bytes = _named_memory(found)
    elif spec.memory_gb:
        memory_bytes = _usable(spec, memory_bytes / GB)
    return _machine(spec, memory_bytes), _bandwidth(spec, found.key, bytes_per_s)


def known_here(machine: Machine) -> tuple[str | None, float | None]:
    """Return what is known of a machine that is here: a key of DECODE_COSTS, and its flops.

    The key is None if the backend says enough; the flops are None if the GPU is not in the table. A
    chip that is sold with fewer GPU cores counts as the full one.
    """
    if machine.backend == "cpu":
        return None, flops_here("cpu")
    try:
        spec = choose(machine.name).spec
    except UnknownMachine:
        return None, None
    return spec.costs, _flops(spec)


def models_of(key: str) -> list[str]:
    """Return the names of a machine with each of its usual memory sizes, the smallest first."""
    spec = machine_specs()[key]
    sizes = spec.memory_gb or spec.sold_gb or USUAL_GB
    return [f"{key}-{size}gb" for size in sizes]


def resized(machine: Machine, memory_bytes: int) -> Machine:
    """Return the same machine, idle, with a different memory size."""
    name = f"{machine.name} (simulated)"
    if machine.backend == "cuda":
        return cuda_machine(name, memory_bytes)
    if machine.backend == "metal":
        return metal_machine(name, memory_bytes, working_set_bytes(memory_bytes))
    return _idle_cpu(name, memory_bytes)


def working_set_bytes(memory_bytes: int) -> int:
    """Return how much memory current versions of macOS let the GPU use."""
    shares = (share for most, share in _WORKING_SETS if memory_bytes <= most * GIB)
    return int(memory_bytes * next(shares, _LARGEST_SHARE))


def raised_limit(machine: Machine) -> tuple[int, Machine] | None:
    """Return the value of iogpu.wired_limit_mb that leaves a Mac's system its share, and the Mac.

    Returns None if the working set is not what limits the machine.
    """
    if machine.backend != "metal" or machine.limited_by != "Metal working set":
        return None
    limit_mb = idle_bytes(machine.memory_bytes, "metal") >> 20
    raised = metal_machine(machine.name, machine.memory_bytes, limit_mb << 20)
    return (limit_mb, raised) if raised.budget_bytes > machine.budget_bytes else None


@cache
def _tables() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@cache
def _names() -> dict[str, str]:
    """Return the keys by every spelling, without dashes; cards also without "rtx"."""
    keys = {key: key for key in machine_specs()} | _tables()["aliases"]
    found = {_squash(name): key for name, key in keys.items()}
    short = {name.removeprefix("rtx"): key for name, key in found.items()}
    return short | found


def _squash(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text)


def _unknown(text: str, squashed: str) -> str:
    names = _names()
    near = difflib.get_close_matches(squashed, names, n=1)
    examples = "m4-max-64gb, rtx-4090, ryzen-7950x-64gb or cpu-64gb"
    hint = f"did you mean {names[near[0]]}?" if near else f"the names are such as {examples}"
    return f"unknown machine {text!r}; {hint}"


def _apple(key: str, row: dict[str, Any]) -> MachineSpec:
    cores, sizes = tuple(row.pop("gpu_cores")), tuple(row.pop("sold_gb"))
    return MachineSpec(
        **row, backend="metal", costs=key.split("-")[0], gpu_cores=cores, sold_gb=sizes
    )


def _nvidia(key: str, row: dict[str, Any]) -> MachineSpec:
    sizes = {name: tuple(row.pop(name, ())) for name in ("memory_gb", "usable_gib")}
    costs = "ampere" if key.startswith(AMPERE) else "ada"
    filled: dict[str, Any] = {"costs": costs, **row, **sizes}
    return MachineSpec(**filled, backend="cuda")


def _cpu(row: dict[str, Any]) -> MachineSpec:
    channels, rate = row.pop("channels", 0), row.pop("mt_per_s", 0)
    sizes = tuple(row.pop("memory_gb", ()))
    gb_per_s = REACHED * channels * 8 * rate / 1000
    return MachineSpec(
        **row, backend="cpu", costs="cpu, others", gb_per_s=gb_per_s, memory_gb=sizes
    )


def _named_memory(found: Choice) -> int:
    """Return the memory in bytes that a name gives, or the only size that is sold."""
    sizes = found.spec.memory_gb
    size_gb = found.size_gb or (sizes[0] if len(sizes) == 1 else None)
    if size_gb is None:
        wanted = f"{found.key}-{sizes[-1] if sizes else 64}gb"
        raise UnknownMachine(f"add the memory size: {wanted}, or pass --memory 64GB")
    return _usable(found.spec, size_gb) if sizes else size_gb * GIB


def _usable(spec: MachineSpec, size_gb: float) -> int:
    """Return how many bytes are usable of a size that is sold. Raises UnknownMachine for others."""
    for number, sold_gb in enumerate(spec.memory_gb):
        usable_bytes = int((spec.usable_gib or spec.memory_gb)[number] * GIB)
        if (1 - NEAR) * usable_bytes / GIB <= size_gb <= (1 + NEAR) * sold_gb:
            return usable_bytes
    sizes = " or ".join(f"{size} GB" for size in spec.memory_gb)
    more = "; for the memory of the PC, pass --ram 64GB" if spec.backend == "cuda" else ""
    raise UnknownMachine(f"{spec.name} is sold with {sizes}, not {size_gb:.0f} GB{more}")


def _machine(spec: MachineSpec, memory_bytes: int) -> Machine:
    name = f"{spec.name} (simulated)"
    if spec.unified:
        budget = idle_bytes(memory_bytes, "metal")
        return Machine(name, spec.backend, memory_bytes, budget, UNIFIED_LIMIT)
    if spec.backend == "cpu":
        return _idle_cpu(name, memory_bytes)
    if spec.backend == "cuda":
        return cuda_machine(name, memory_bytes)
    return metal_machine(name, memory_bytes, working_set_bytes(memory_bytes))


def _idle_cpu(name: str, memory_bytes: int) -> Machine:
    return Machine(name, "cpu", memory_bytes, idle_bytes(memory_bytes, "cpu"), "memory when idle")


def _bandwidth(spec: MachineSpec, key: str, bytes_per_s: float | None) -> Bandwidth:
    if bytes_per_s is None and not spec.gb_per_s:
        raise UnknownMachine(f"{key} needs a memory bandwidth in GB/s: pass --bandwidth 80")
    return Bandwidth(
        bytes_per_s or spec.gb_per_s * GB,
        PRIOR,
        core_seconds(spec.isa, spec.cores) if spec.cores else {},
        costs=spec.costs,
        barrier=max(1.0, (spec.cores / FEW_CORES) ** 2),
        flops=_flops(spec),
    )


def _flops(spec: MachineSpec) -> float | None:
    """Return the operations a second that a machine reaches in products of matrices."""
    if spec.tflops is not None:
        return GPU_SHARE[spec.backend] * spec.tflops * 1e12
    return core_flops(spec.isa, spec.cores) if spec.cores else None


def _variant(found: Choice, memory_bytes: int | None) -> MachineSpec:
    """Return the part with these GPU cores, or with a memory size that only the smaller one has."""
    spec, cores = found.spec, found.gpu_cores
    if cores is not None and not spec.gpu_cores:
        raise UnknownMachine(f"leave out the core count: {found.key} comes in only one version")
    only = spec.slower["memory_gb"] if spec.slower and memory_bytes is None else ()
    few, all_cores = spec.gpu_cores or (0, 0)
    if cores is None:
        cores = few if found.size_gb in only else all_cores
    if cores not in (few, all_cores):
        raise UnknownMachine(f"{spec.name} has {few} or {all_cores} GPU cores, not {cores}")
    if not spec.gpu_cores or cores == all_cores:
        return spec
    slower = spec.slower or {"gb_per_s": spec.gb_per_s}
    return replace(
        spec,
        name=f"{spec.name}, {cores} GPU cores",
        gb_per_s=slower["gb_per_s"],
        tflops=(spec.tflops or 0) * few / all_cores,
    )
