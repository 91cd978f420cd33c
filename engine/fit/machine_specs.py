"""Machines that are elsewhere, by name: what `fit --machine` judges for, without any of them here.

Only priors: memory bandwidths as their makers publish them, working sets as macOS usually grants
them. A machine that is here is asked and measured instead (`engine.fit.machine`,
`engine.benchmark`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from engine.fit.machine import BESIDE_SYSTEM, Machine, cuda_machine, idle_bytes, metal_machine
from engine.fit.speed import PRIOR, Bandwidth

GB, GIB = 10**9, 1 << 30
_NAME = re.compile(r"([a-z0-9-]+?)(?:-(\d{1,3})core)?(?:-(\d{1,4})gb)?")


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip or a card. memory_gib: None where it is sold with several sizes.

    binned: GPU cores, bandwidth and memory sizes of the slower part that is sold under this name.
    unified: a CUDA chip whose memory the system lives in too, as on a Mac; what is sold as so many
    GB are 10^9 bytes each there.
    """

    name: str
    backend: str
    gb_per_s: int
    memory_gib: int | None = None
    binned: tuple[int, int, tuple[int, ...]] | None = None
    unified: bool = False


CHIPS = {
    "m1": Chip("Apple M1", "metal", 68),
    "m1-pro": Chip("Apple M1 Pro", "metal", 200),
    "m1-max": Chip("Apple M1 Max", "metal", 400),
    "m1-ultra": Chip("Apple M1 Ultra", "metal", 800),
    "m2": Chip("Apple M2", "metal", 100),
    "m2-pro": Chip("Apple M2 Pro", "metal", 200),
    "m2-max": Chip("Apple M2 Max", "metal", 400),
    "m2-ultra": Chip("Apple M2 Ultra", "metal", 800),
    "m3": Chip("Apple M3", "metal", 100),
    "m3-pro": Chip("Apple M3 Pro", "metal", 150),
    "m3-max": Chip("Apple M3 Max", "metal", 400, binned=(30, 300, (36, 96))),
    "m3-ultra": Chip("Apple M3 Ultra", "metal", 819),
    "m4": Chip("Apple M4", "metal", 120),
    "m4-pro": Chip("Apple M4 Pro", "metal", 273),
    "m4-max": Chip("Apple M4 Max", "metal", 546, binned=(32, 410, (36,))),
    "m5": Chip("Apple M5", "metal", 153),
    "m5-pro": Chip("Apple M5 Pro", "metal", 307),
    "m5-max": Chip("Apple M5 Max", "metal", 614, binned=(32, 460, (36,))),
    "rtx-3090": Chip("NVIDIA RTX 3090", "cuda", 936, 24),
    "rtx-4090": Chip("NVIDIA RTX 4090", "cuda", 1008, 24),
    "rtx-5090": Chip("NVIDIA RTX 5090", "cuda", 1792, 32),
    "gb10": Chip("NVIDIA GB10", "cuda", 273, 119, unified=True),
    "h100": Chip("NVIDIA H100", "cuda", 3350, 80),
    "h100-pcie": Chip("NVIDIA H100 PCIe", "cuda", 2039, 80),
    "h200": Chip("NVIDIA H200", "cuda", 4800, 141),
}


class UnknownMachine(ValueError):
    """No such machine is in the table, or it is sold with several sizes of memory."""


def simulate(text: str, memory_bytes: int | None = None) -> tuple[Machine, Bandwidth]:
    """Make a machine on which nothing else runs of a name such as m4-max-64gb, m4-max-32core-36gb,
    rtx-4090. memory_bytes: instead of what the name says.

    Raises UnknownMachine, which says what there is.
    """
    found = _NAME.fullmatch(text.strip().lower())
    key, cores, gib = found.groups() if found else (text, None, None)
    chip = CHIPS.get(key)
    if chip is None:
        near = difflib.get_close_matches(key, CHIPS, n=1)
        hint = f"did you mean {near[0]}" if near else "there are " + ", ".join(CHIPS)
        raise UnknownMachine(f"no machine is called {text!r}; {hint}")
    size_gib = int(gib) if gib else chip.memory_gib
    if memory_bytes is None:
        if not size_gib:
            raise UnknownMachine(f"say how much memory: {key}-64gb, or --memory 64GB")
        memory_bytes = size_gib * (GB if gib and chip.unified else GIB)
    speed, suffix = _binned(chip, key, int(cores) if cores else None, size_gib)
    bandwidth = Bandwidth(speed * GB, PRIOR)
    name = f"{chip.name}{suffix} (simulated)"
    if chip.unified:
        budget = idle_bytes(memory_bytes, "metal")
        return Machine(name, chip.backend, memory_bytes, budget, BESIDE_SYSTEM), bandwidth
    if chip.backend == "cuda":
        return cuda_machine(name, memory_bytes), bandwidth
    return metal_machine(name, memory_bytes, working_set_bytes(memory_bytes)), bandwidth


def resized(machine: Machine, memory_bytes: int) -> Machine:
    """Make the same machine with another size of memory, and nothing running on it."""
    name = f"{machine.name} (simulated)"
    if machine.backend == "cuda":
        return cuda_machine(name, memory_bytes)
    if machine.backend == "metal":
        return metal_machine(name, memory_bytes, working_set_bytes(memory_bytes))
    budget = idle_bytes(memory_bytes, "cpu")
    return Machine(name, "cpu", memory_bytes, budget, "memory when idle")


def working_set_bytes(memory_bytes: int) -> int:
    """Say what macOS usually lets a GPU use: two thirds of a small memory, else three quarters."""
    return memory_bytes * 2 // 3 if memory_bytes <= 36 * GIB else memory_bytes * 3 // 4


def _binned(chip: Chip, key: str, cores: int | None, size_gib: int | None) -> tuple[int, str]:
    """Choose the bandwidth by GPU cores, or by a size that only the slower part is sold with."""
    if chip.binned is None:
        if cores is not None:
            raise UnknownMachine(f"{key} has the same bandwidth whatever its cores; leave them out")
        return chip.gb_per_s, ""
    few, slower, sizes = chip.binned
    if cores == few or (cores is None and size_gib in sizes):
        return slower, f", {few} GPU cores"
    return chip.gb_per_s, f", {cores} GPU cores" if cores else ""
