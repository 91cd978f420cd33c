"""The device MLX uses: its backend, the usable CPU cores, and the wired-memory limit on Metal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from engine.errors import BackendError

# On Linux, each backend is a separate package. All of them install the same library files, so
# only one can be installed at a time.
LINUX_BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda", "mlx-cuda-13": "cuda"}
WIRED_RESERVE = 1 << 30
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 1 << 20  # of glibc's mallopt


def backend() -> str:
    """Return MLX's backend: cpu, metal or cuda.

    Raises BackendError if no backend is installed, or more than one is.
    """
    if sys.platform == "darwin":
        return "metal"
    found = _installed_backends()
    if not found:
        raise BackendError(
            "no MLX backend is installed; install conifer-cli[cpu], conifer-cli[cuda12] or "
            "conifer-cli[cuda13]"
        )
    if len(found) > 1:
        raise BackendError(
            f"the MLX backends {' and '.join(found)} overwrite each other; uninstall all of them, "
            f"then install conifer-cli[cpu], conifer-cli[cuda12] or conifer-cli[cuda13]"
        )
    return LINUX_BACKENDS[found[0]]


def cores(root: Path = Path("/")) -> int:
    """Return how many CPU cores this process may use.

    This is the number of cores in its affinity mask, or its cgroup CPU quota if that is smaller.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cores(root)
    # Round down: with a 2.5-core quota, a third thread would wait half the time and stall the rest.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_cores(root: Path) -> float | None:
    """Return the smallest CPU quota, in cores, of this process's cgroups, or None if unlimited."""
    quotas = []
    for folder, version in cgroups(root, "cpu"):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(read_text(folder / file) for file in files).split()
        # A quota of "max" or -1 means unlimited.
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def set_wired_limit(weights_bytes: int, budget_bytes: int) -> None:
    """Wire the weights on Metal so that macOS cannot page them out.

    WIRED_RESERVE bytes of the budget stay unwired. MLX's default limit is the entire working set,
    and wiring all of it has frozen machines.
    """
    import mlx.core as mx

    mx.set_wired_limit(max(0, min(weights_bytes, budget_bytes - WIRED_RESERVE)))


def cgroups(root: Path, controller: str) -> list[tuple[Path, int]]:
    """List this process's cgroups as (folder, version), innermost first."""
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
        # In a container, the path may be the host's. The files are then in the mount's root folder.
        for place in {folder, *folder.parents, base}:
            if place == base or base in place.parents:
                found.append((place, version))
    return found


def read_text(path: Path) -> str:
    """Return a file's text, or an empty string if the file cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _installed_backends() -> list[str]:
    """Return the names of the installed backends.

    Listing the folders in `sys.path` is faster than importing `importlib.metadata`.
    """
    found = set()
    for folder in sys.path:
        with contextlib.suppress(OSError):  # a zip archive or a missing folder
            names = os.listdir(folder or ".")
            found |= {name.partition("-")[0] for name in names if name.endswith(".dist-info")}
    return [name for name in LINUX_BACKENDS if name.replace("-", "_") in found]


def return_large_blocks() -> None:
    """Make the C library return blocks of 1 MiB or more to the system as soon as they are freed.

    glibc does so at first, but after each large free it keeps blocks of that size, up to 32 MiB,
    and the holes between those in use stay in memory: hundreds of MB after loading with the stock
    kernels. Does nothing with other C libraries.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
