"""What this machine has: the MLX backend, its memory, and how much of it may be used now.

Nothing is looked up in a table (`engine.fit.machine_specs` has one, for machines that are
elsewhere). Linux answers through /proc and the cgroup files, Metal and CUDA through MLX itself.
Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BackendError

# Linux backends are separate distributions that bring the same library; only one may be installed.
LINUX_BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda", "mlx-cuda-13": "cuda"}
# By version of cgroups: the limits, the usage, and what lines of memory.stat about file cache begin
# with. Above memory.high a process is not ended but slowed until it stands still, which is as bad.
# Both lists of file cache count: a model that just ran is cache that was used, and is given back.
MEMORY_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
    2: (("memory.max", "memory.high"), "memory.current", ""),
}
NO_LIMIT = 1 << 60  # version 1 writes a number as large as this for none
WIRED_RESERVE = 1 << 30
METAL_SHARE = 0.95  # of the working set: wiring all of it has stopped whole machines
# What a machine without other work keeps for itself: a share of its memory, and no less than this.
IDLE_SHARE = {"cpu": 0.05, "metal": 0.1, "cuda": 0.02}
MIN_IDLE = {"cpu": 512 << 20, "metal": 2 << 30, "cuda": 512 << 20}
BESIDE_SYSTEM = "memory beside the system's"  # what limits where one memory serves all


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the memory verdict sees it."""

    name: str
    backend: str  # cpu | metal | cuda
    memory_bytes: int  # all there is, or all that this process's cgroup allows
    budget_bytes: int  # what may be used now
    limited_by: str


def backend() -> str:
    """Say which backend MLX has: cpu, metal or cuda. Raises BackendError for none, or two."""
    if sys.platform == "darwin":
        return "metal"
    found = _installed_backends()
    if not found:
        raise BackendError("MLX has no backend here: install conifer-cli[cpu] (or cuda12, cuda13)")
    if len(found) > 1:
        raise BackendError(
            f"MLX has two backends here, {' and '.join(found)}: they overwrite each other; "
            f"uninstall all of them and install one of conifer-cli[cpu], [cuda12], [cuda13]"
        )
    return LINUX_BACKENDS[found[0]]


def cores(root: Path = Path("/")) -> int:
    """Count the cores this process may use: its affinity, and its cgroups' share of CPU time."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cores(root)
    # Of a share of 2.5 cores a third thread would wait half of its time, and two others for it.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def this_machine(idle: bool = False) -> Machine:
    """Measure this machine. Raises BackendError where MLX has no single backend.

    idle: what it could give if nothing else ran, instead of what it can give now.
    """
    kind = backend()
    if kind == "cpu":
        return linux_cpu(Path("/"), idle)
    return _metal(idle) if kind == "metal" else _cuda(idle)


def idle_bytes(memory_bytes: int, backend: str) -> int:
    """Say what a machine of so much memory can give when nothing else runs."""
    return memory_bytes - max(MIN_IDLE[backend], int(IDLE_SHARE[backend] * memory_bytes))


def wire(weights_bytes: int) -> None:
    """Keep weights from being paged out on Metal, never more than the budget leaves room for.

    MLX's own limit is not used: wiring the whole working set has stopped machines.
    """
    if backend() != "metal":
        return
    import mlx.core as mx

    room = _metal().budget_bytes - WIRED_RESERVE
    mx.set_wired_limit(max(0, min(weights_bytes, room)))


def linux_cpu(root: Path, idle: bool = False) -> Machine:
    """Read a Linux machine's memory from the files under `root`, the cgroup's limit included."""
    facts = _meminfo(root / "proc/meminfo")
    total, available = facts["MemTotal"], facts.get("MemAvailable", facts["MemFree"])
    name, limited_by = _cpu_name(root), "available memory"
    if idle:
        available, limited_by = idle_bytes(total, "cpu"), "memory when idle"
    room, limit = cgroup_available(root, idle), cgroup_available(root, idle=True)
    if room is not None and room < available:
        available, limited_by = room, "cgroup limit"
    if limit is not None:  # what a host has beyond that is not this process's to leave a share of
        total = min(total, limit)
    return Machine(name, "cpu", total, available, limited_by)


def cgroup_available(root: Path, idle: bool = False) -> int | None:
    """Say how much the tightest cgroup above this process still allows; None where none limits.

    File cache counts as usage in a cgroup but is given back under pressure, so it is added again.
    idle: as if nothing in the cgroup used any.
    """
    rooms = []
    for folder, version in _cgroups(root, "memory"):
        limit_files, usage_file, prefix = MEMORY_FILES[version]
        numbers = [_number(folder / file) for file in limit_files]
        limit = min((number for number in numbers if number is not None), default=NO_LIMIT)
        usage = _number(folder / usage_file)
        if usage is None or limit >= NO_LIMIT:
            continue
        lines = _stat(folder / "memory.stat")
        cache = sum(lines.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        rooms.append(limit if idle else max(0, limit - max(0, usage - cache)))
    return min(rooms, default=None)


def cgroup_cores(root: Path) -> float | None:
    """Say how many cores' time the tightest cgroup above this process allows; None for any."""
    shares = []
    for folder, version in _cgroups(root, "cpu"):
        if version == 2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [
                _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
            ]  # a quota of -1 is none
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            shares.append(int(words[0]) / int(words[1]))
    return min(shares, default=None)


def _cgroups(root: Path, controller: str) -> list[tuple[Path, int]]:
    """List this process's cgroups of a controller with their version, from its own to the root."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            base, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may be the host's; the files are then at the mount itself.
        for place in {folder, *folder.parents, base}:
            if place == base or base in place.parents:
                found.append((place, version))
    return found


def metal_machine(
    name: str, memory_bytes: int, working_set_bytes: int, available_bytes: int | None = None
) -> Machine:
    """Make a Mac of what it says of itself; available_bytes None is one on which nothing runs.

    Of the working set a part stays unwired, and of the memory a part for the system, whatever is
    free at the moment.
    """
    limits = [
        (int(working_set_bytes * METAL_SHARE), "Metal working set"),
        (idle_bytes(memory_bytes, "metal"), BESIDE_SYSTEM),
    ]
    if available_bytes is not None:
        limits.append((available_bytes, "available memory"))
    budget, limited_by = min(limits)
    return Machine(name, "metal", memory_bytes, budget, limited_by)


def cuda_machine(name: str, memory_bytes: int, free_bytes: int | None = None) -> Machine:
    """Make a machine with one CUDA card; free_bytes None is a card that nothing else uses."""
    if free_bytes is None:
        budget = idle_bytes(memory_bytes, "cuda")
        return Machine(name, "cuda", memory_bytes, budget, "CUDA memory when idle")
    return Machine(name, "cuda", memory_bytes, free_bytes, "free CUDA memory")


def _metal(idle: bool = False) -> Machine:
    import mlx.core as mx
    import psutil

    info, memory = mx.device_info(), psutil.virtual_memory()
    working_set = int(info["max_recommended_working_set_size"])
    available = None if idle else memory.available
    return metal_machine(str(info["device_name"]), memory.total, working_set, available)


def _cuda(idle: bool = False) -> Machine:
    import mlx.core as mx

    info = mx.device_info(mx.gpu)
    free = None if idle else int(info["free_memory"])
    return cuda_machine(str(info["device_name"]), int(info["total_memory"]), free)


def _installed_backends() -> list[str]:
    """Name the backends among the installed distributions.

    By the names of their folders: `importlib.metadata` takes longer to import than all this file.
    """
    found = set()
    for folder in sys.path:
        with contextlib.suppress(OSError):  # a zip file, or a folder that is not there
            names = os.listdir(folder or ".")
            found |= {name.partition("-")[0] for name in names if name.endswith(".dist-info")}
    return [name for name in LINUX_BACKENDS if name.replace("-", "_") in found]


def _meminfo(path: Path) -> dict[str, int]:
    facts = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if value.split():
            facts[key] = int(value.split()[0]) * 1024
    if "MemTotal" not in facts:
        raise BackendError(f"{path} does not say how much memory there is")
    return facts


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _stat(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
