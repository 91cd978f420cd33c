"""The device of MLX: its backend, the cores this process may use, and wired memory on Metal."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from engine import device
from engine.errors import BackendError

GIB = 1 << 30


def proc(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({}, None),
    ],
)
def test_a_cgroups_share_of_cpu_time_counts_as_cores(
    tmp_path: Path, files: dict[str, str], expected: float | None
):
    assert device.cgroup_cores(proc(tmp_path, files)) == expected


def test_a_share_of_less_than_one_core_is_still_a_thread(tmp_path: Path, monkeypatch):
    files = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "20000 100000\n"}
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert device.cores(proc(tmp_path, files)) == 1
    assert device.cores(tmp_path / "nowhere") == 4


def install(names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a machine on which these distributions are all that is installed."""
    for name in ["mlx", *names]:
        (folder / f"{name.replace('-', '_')}-0.32.4.dist-info").mkdir()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.path", [str(folder / "missing"), str(folder)])


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ([], r"no MLX backend is installed; install conifer-cli\[cpu\]"),
        (["mlx-cpu", "mlx-cuda-13"], "mlx-cpu and mlx-cuda-13 overwrite each other"),
    ],
)
def test_no_backend_or_two_name_the_extras(
    installed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install(installed, tmp_path, monkeypatch)
    with pytest.raises(BackendError, match=message):
        device.backend()


@pytest.mark.parametrize(("name", "kind"), [("mlx-cpu", "cpu"), ("mlx-cuda-12", "cuda")])
def test_one_backend_is_used(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install([name], tmp_path, monkeypatch)
    assert device.backend() == kind


@pytest.mark.parametrize(("weights", "wired"), [(2 * GIB, 2 * GIB), (40 * GIB, 9 * GIB)])
def test_no_more_is_wired_on_metal_than_the_budget_leaves(monkeypatch, weights: int, wired: int):
    asked = []
    monkeypatch.setattr("mlx.core.set_wired_limit", asked.append)
    device.set_wired_limit(weights, budget_bytes=10 * GIB)
    assert asked == [wired]


HOLES = """
import gc, sys
import numpy as np
from engine.device import return_large_blocks

def resident_mib():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) >> 10

return_large_blocks()
np.ones(24 << 20, np.uint8)  # its free raises glibc's threshold, if that may move
before = resident_mib()
blocks = [np.ones(8 << 20, np.uint8) for _ in range(40)]
kept = blocks[-1]
del blocks
gc.collect()
print(resident_mib() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not keep them")
def test_freed_blocks_leave_memory_though_later_ones_are_in_use():
    done = subprocess.run(
        [sys.executable, "-P", "-c", HOLES], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16  # MiB: one block of 8
