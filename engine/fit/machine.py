"""This machine's memory and the budget available to a model, in bytes.

On Linux, sizes come from /proc and the cgroup files. On Metal and CUDA, they come from MLX.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from engine import device
from engine.device import cgroups, read_text
from engine.errors import BackendError

# For each cgroup version: the limit files, the usage file, and the prefix of the file-cache lines
# in memory.stat. memory.high is also a limit: above it, the kernel all but stops a process.
MEMORY_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
    2: (("memory.max", "memory.high"), "memory.current", ""),
}
NO_LIMIT = 1 << 60  # cgroup version 1 reports at least this when unlimited
METAL_SHARE = 0.95  # of the working set; wiring all of it has frozen machines
# Memory that an idle system uses: a share of the total, and at least MIN_IDLE.
IDLE_SHARE = {"cpu": 0.05, "metal": 0.1, "cuda": 0.02}
MIN_IDLE = {"cpu": 512 << 20, "metal": 2 << 30, "cuda": 512 << 20}
GIVEN = "as given"
UNIFIED_LIMIT = "memory not used by the system"  # if the GPU shares system memory


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory limits that determine whether a model fits."""

    name: str
    backend: str  # cpu | metal | cuda
    memory_bytes: int  # installed, or the cgroup limit if that is smaller
    budget_bytes: int  # available now
    limited_by: str


def this_machine(idle: bool = False) -> Machine:
    """Measure this machine. Raises BackendError if its backend or memory size cannot be determined.

    idle: assume that nothing else is running.
    """
    kind = device.backend()
    if kind == "cpu":
        return linux_cpu(Path("/"), idle)
    import mlx.core as mx

    info = mx.device_info(mx.gpu)
    name = str(info["device_name"])
    if kind == "cuda":
        free_bytes = None if idle else int(info["free_memory"])
        return cuda_machine(name, int(info["total_memory"]), free_bytes)
    import psutil

    memory = psutil.virtual_memory()
    working_set_bytes = int(info["max_recommended_working_set_size"])
    return metal_machine(name, memory.total, working_set_bytes, None if idle else memory.available)


def limited(machine: Machine, budget_bytes: int | None) -> Machine:
    """Return a machine with at most this budget. None: with all that it has."""
    if budget_bytes is None or budget_bytes >= machine.budget_bytes:
        return machine
    return replace(machine, budget_bytes=budget_bytes, limited_by=GIVEN)


def idle_bytes(memory_bytes: int, backend: str) -> int:
    """Return the memory available to a model on an idle machine with `memory_bytes` of memory."""
    return memory_bytes - max(MIN_IDLE[backend], int(IDLE_SHARE[backend] * memory_bytes))


def linux_cpu(root: Path, idle: bool = False) -> Machine:
    """Read a Linux machine's memory size and cgroup limits from the files under `root`."""
    meminfo = root / "proc/meminfo"
    kib = _numbers(meminfo)
    if "MemTotal" not in kib:
        raise BackendError(f"cannot read the memory size of this machine from {meminfo}")
    total, available = kib["MemTotal"] << 10, kib.get("MemAvailable", kib["MemFree"]) << 10
    name, limited_by = _cpu_name(root), "available memory"
    if idle:
        available, limited_by = idle_bytes(total, "cpu"), "memory when idle"
    room, limit = cgroup_available(root, idle), cgroup_available(root, idle=True)
    if room is not None and room < available:
        available, limited_by = room, "cgroup limit"
    if limit is not None:
        total = min(total, limit)
    return Machine(name, "cpu", total, available, limited_by)


def cgroup_available(root: Path, idle: bool = False) -> int | None:
    """Return how many more bytes this process's tightest cgroup allows, or None if unlimited.

    idle: assume that the cgroups use no memory yet.
    """
    rooms = []
    for folder, version in cgroups(root, "memory"):
        limit_files, usage_file, prefix = MEMORY_FILES[version]
        numbers = [_number(folder / file) for file in limit_files]
        limit = min((number for number in numbers if number is not None), default=NO_LIMIT)
        usage = _number(folder / usage_file)
        if usage is None or limit >= NO_LIMIT:
            continue
        lines = _numbers(folder / "memory.stat")
        # The kernel frees file cache under pressure, even active pages, such as a mapped model.
        cache = sum(lines.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        rooms.append(limit if idle else max(0, limit - max(0, usage - cache)))
    return min(rooms, default=None)


def metal_machine(
    name: str, memory_bytes: int, working_set_bytes: int, available_bytes: int | None = None
) -> Machine:
    """Describe a Mac by its reported sizes. available_bytes: None means nothing else is running."""
    limits = [
        (int(working_set_bytes * METAL_SHARE), "Metal working set"),
        (idle_bytes(memory_bytes, "metal"), UNIFIED_LIMIT),
    ]
    if available_bytes is not None:
        limits.append((available_bytes, "available memory"))
    budget, limited_by = min(limits)
    return Machine(name, "metal", memory_bytes, budget, limited_by)


def cuda_machine(name: str, memory_bytes: int, free_bytes: int | None = None) -> Machine:
    """Describe a machine with one CUDA card. free_bytes: None means nothing else uses the card."""
    if free_bytes is None:
        budget = idle_bytes(memory_bytes, "cuda")
        return Machine(name, "cuda", memory_bytes, budget, "CUDA memory when idle")
    return Machine(name, "cuda", memory_bytes, free_bytes, "free CUDA memory")


def _cpu_name(root: Path) -> str:
    lines = read_text(root / "proc/cpuinfo").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, os.uname().machine)


def _numbers(path: Path) -> dict[str, int]:
    """Parse `key number` or `key: number` lines into a dictionary."""
    rows = (line.replace(":", " ").split() for line in read_text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None
