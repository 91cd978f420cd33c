"""Known machines by name, for `fit --machine`: memory size, budget and published bandwidth.

`machine_specs.toml` lists the bandwidths that manufacturers publish. Working sets are the sizes
that macOS usually allows. `engine.fit.machine` measures the current machine.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engine.fit.machine import UNIFIED_LIMIT, Machine, cuda_machine, idle_bytes, metal_machine
from engine.fit.speed import PRIOR, Bandwidth

GB, GIB = 10**9, 1 << 30
_NAME = re.compile(r"([a-z0-9-]+?)(?:-(\d{1,3})core)?(?:-(\d{1,4})gb)?")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A chip or graphics card listed in `machine_specs.toml`."""

    name: str
    backend: str
    gb_per_s: int
    memory_gib: int | None = None
    slower: dict[str, Any] | None = None
    unified: bool = False


class UnknownMachine(ValueError):
    """The name is not in the table, or it needs a memory size."""


@cache
def machine_specs() -> dict[str, MachineSpec]:
    """Read `machine_specs.toml`. Keys are machine names."""
    import tomllib

    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return {key: MachineSpec(**row) for key, row in tomllib.loads(text).items()}


def simulate(text: str, memory_bytes: int | None = None) -> tuple[Machine, Bandwidth]:
    """Return the idle machine with this name, such as m4-max-64gb, m4-max-32core-36gb or rtx-4090.

    memory_bytes: overrides the size in the name. Raises UnknownMachine, whose
    message suggests valid names.
    """
    specs = machine_specs()
    found = _NAME.fullmatch(text.strip().lower())
    key, cores, gib = found.groups() if found else (text, None, None)
    spec = specs.get(key)
    if spec is None:
        near = difflib.get_close_matches(key, specs, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of " + ", ".join(specs)
        raise UnknownMachine(f"unknown machine {text!r}; {hint}")
    size_gib = int(gib) if gib else spec.memory_gib
    if memory_bytes is None:
        if not size_gib:
            raise UnknownMachine(f"add the memory size: {key}-64gb, or pass --memory 64GB")
        memory_bytes = size_gib * (GB if gib and spec.unified else GIB)
    gb_per_s, suffix = _variant(spec, key, int(cores) if cores else None, size_gib)
    bandwidth = Bandwidth(gb_per_s * GB, PRIOR)
    name = f"{spec.name}{suffix} (simulated)"
    if spec.unified:
        budget = idle_bytes(memory_bytes, "metal")
        return Machine(name, spec.backend, memory_bytes, budget, UNIFIED_LIMIT), bandwidth
    return _idle_gpu(name, spec.backend, memory_bytes), bandwidth


def resized(machine: Machine, memory_bytes: int) -> Machine:
    """Return the same machine, idle, with a different memory size."""
    name = f"{machine.name} (simulated)"
    if machine.backend != "cpu":
        return _idle_gpu(name, machine.backend, memory_bytes)
    budget = idle_bytes(memory_bytes, "cpu")
    return Machine(name, "cpu", memory_bytes, budget, "memory when idle")


def working_set_bytes(memory_bytes: int) -> int:
    """Return how much memory macOS usually lets the GPU use: 2/3 up to 36 GiB, else 3/4."""
    return memory_bytes * 2 // 3 if memory_bytes <= 36 * GIB else memory_bytes * 3 // 4


def _idle_gpu(name: str, backend: str, memory_bytes: int) -> Machine:
    if backend == "cuda":
        return cuda_machine(name, memory_bytes)
    return metal_machine(name, memory_bytes, working_set_bytes(memory_bytes))


def _variant(spec: MachineSpec, key: str, cores: int | None, gib: int | None) -> tuple[int, str]:
    """Return the bandwidth and a suffix for the machine's name.

    The core count or the memory size determines whether this is the slower version of the chip.
    """
    if spec.slower is None:
        if cores is not None:
            raise UnknownMachine(f"leave out the core count: {key} comes in only one version")
        return spec.gb_per_s, ""
    few = spec.slower["gpu_cores"]
    if cores == few or (cores is None and gib in spec.slower["memory_gib"]):
        return spec.slower["gb_per_s"], f", {few} GPU cores"
    return spec.gb_per_s, f", {cores} GPU cores" if cores else ""
