"""The device that MLX uses: its backend, the CPU cores, and wired memory on Metal."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from engine.errors import BackendError

# On Linux each backend is a distribution with the same library; only one may be installed.
LINUX_BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda", "mlx-cuda-13": "cuda"}
WIRED_RESERVE = 1 << 30


def backend() -> str:
    """Return MLX's backend: cpu, metal or cuda. Raises BackendError for none or several."""
    if sys.platform == "darwin":
        return "metal"
    found = _installed_backends()
    if not found:
        raise BackendError(
            "no MLX backend is installed; install conifer-cli[cpu], [cuda12] or [cuda13]"
        )
    if len(found) > 1:
        raise BackendError(
            f"the MLX backends {' and '.join(found)} overwrite each other; "
            f"uninstall them all and install one of conifer-cli[cpu], [cuda12], [cuda13]"
        )
    return LINUX_BACKENDS[found[0]]


def cores(root: Path = Path("/")) -> int:
    """Return the CPU cores this process may use: its affinity, limited by its cgroups' quota."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cores(root)
    # With a quota of 2.5 cores, a third thread would wait half the time and stall the other two.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_cores(root: Path) -> float | None:
    """Return the smallest CPU quota, in cores, of this process's cgroups; None for no limit."""
    quotas = []
    for folder, version in cgroups(root, "cpu"):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(read_text(folder / file) for file in files).split()
        # A quota of "max" or -1 means none.
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def set_wired_limit(weights_bytes: int, budget_bytes: int) -> None:
    """Keep weights from being paged out on Metal, leaving WIRED_RESERVE of the budget unwired.

    MLX's own limit is the whole working set, and wiring all of it has stopped machines.
    """
    import mlx.core as mx

    mx.set_wired_limit(max(0, min(weights_bytes, budget_bytes - WIRED_RESERVE)))


def cgroups(root: Path, controller: str) -> list[tuple[Path, int]]:
    """List the folder and version of this process's cgroups, innermost first."""
    found = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
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


def read_text(path: Path) -> str:
    """Return a file's text, empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _installed_backends() -> list[str]:
    """Return the installed backends by folder name; importing `importlib.metadata` is slower."""
    found = set()
    for folder in sys.path:
        with contextlib.suppress(OSError):  # a zip file or a missing folder
            names = os.listdir(folder or ".")
            found |= {name.partition("-")[0] for name in names if name.endswith(".dist-info")}
    return [name for name in LINUX_BACKENDS if name.replace("-", "_") in found]
