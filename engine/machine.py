"""What this machine has: the MLX backend, its memory, and how much of it may be used now.

Nothing is looked up in a table. Linux answers through /proc and the cgroup files, Metal and CUDA
through MLX itself. Sizes are bytes.
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
# By version of cgroups: the limit, the usage, and the line of memory.stat that counts file cache.
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
WIRED_RESERVE = 1 << 30
METAL_SHARE = 0.95  # of the working set: wiring all of it has stopped whole machines


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the memory verdict sees it."""

    name: str
    backend: str  # cpu | metal | cuda
    memory_bytes: int  # all there is
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


def this_machine() -> Machine:
    """Measure this machine. Raises BackendError where MLX has no single backend."""
    kind = backend()
    if kind == "cpu":
        return linux_cpu(Path("/"))
    return _metal() if kind == "metal" else _cuda()


def wire(weights_bytes: int) -> None:
    """Keep weights from being paged out on Metal, never more than the budget leaves room for.

    MLX's own limit is not used: wiring the whole working set has stopped machines.
    """
    if backend() != "metal":
        return
    import mlx.core as mx

    room = _metal().budget_bytes - WIRED_RESERVE
    mx.set_wired_limit(max(0, min(weights_bytes, room)))


def linux_cpu(root: Path) -> Machine:
    """Read a Linux machine's memory from the files under `root`, the cgroup's limit included."""
    facts = _meminfo(root / "proc/meminfo")
    total, available = facts["MemTotal"], facts.get("MemAvailable", facts["MemFree"])
    name, limited_by = _cpu_name(root), "available memory"
    limit = cgroup_available(root)
    if limit is not None and limit < available:
        available, limited_by = limit, "cgroup limit"
    return Machine(name, "cpu", total, available, limited_by)


def cgroup_available(root: Path) -> int | None:
    """Say how much the tightest cgroup above this process still allows; None where none limits.

    File cache counts as usage in a cgroup but is given back under pressure, so it is added again.
    """
    rooms = []
    for folder, version in _cgroups(root, "memory"):
        limit_file, usage_file, cache_key = MEMORY_FILES[version]
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is None or usage is None or limit >= 1 << 60:
            continue
        cache = _stat(folder / "memory.stat").get(cache_key, 0)
        rooms.append(max(0, limit - max(0, usage - cache)))
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


def _metal() -> Machine:
    import mlx.core as mx
    import psutil

    info = mx.device_info()
    memory = psutil.virtual_memory()
    working_set = int(int(info["max_recommended_working_set_size"]) * METAL_SHARE)
    name, limited_by, budget = str(info["device_name"]), "Metal working set", working_set
    if memory.available < budget:
        budget, limited_by = memory.available, "available memory"
    return Machine(name, "metal", memory.total, budget, limited_by)


def _cuda() -> Machine:
    import mlx.core as mx

    info = mx.device_info(mx.gpu)
    total, free = int(info["total_memory"]), int(info["free_memory"])
    return Machine(str(info["device_name"]), "cuda", total, free, "free CUDA memory")


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
