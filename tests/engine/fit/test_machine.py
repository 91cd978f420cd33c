"""What a machine says of itself, read from made-up /proc and cgroup files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import device
from engine.errors import BackendError
from engine.fit import machine
from engine.fit.memory import Need, kind_of, reserve_bytes

GIB = 1 << 30


def linux(root: Path, files: dict[str, str]) -> Path:
    memory = "MemTotal: 25165824 kB\nMemFree: 1048576 kB\nMemAvailable: 20971520 kB\n"
    files = {"proc/meminfo": memory, "proc/cpuinfo": "model name\t: Slow CPU\n"} | files
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_available_memory_is_the_budget(tmp_path: Path):
    found = machine.linux_cpu(linux(tmp_path, {}))
    assert (found.name, found.backend) == ("Slow CPU", "cpu")
    assert (found.memory_bytes, found.budget_bytes) == (24 * GIB, 20 * GIB)
    assert found.limited_by == "available memory"


def test_a_cgroup_v2_limit_is_the_budget_less_what_is_used(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/user/job/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/user/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    found = machine.linux_cpu(linux(tmp_path, files))
    assert (found.budget_bytes, found.limited_by) == (6 * GIB, "cgroup limit")


@pytest.mark.parametrize("prefix", ["", "total_"])
def test_a_model_that_just_ran_is_cache_and_counts_as_free(tmp_path: Path, prefix: str):
    names = ("memory.max", "memory.current", "sys/fs/cgroup/job", "0::/job\n")
    if prefix:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "sys/fs/cgroup/memory/job", "")
        names = (*names[:3], "5:memory:/job\n")
    files = {
        "proc/self/cgroup": names[3],
        f"{names[2]}/{names[0]}": f"{8 * GIB}\n",
        f"{names[2]}/{names[1]}": f"{7 * GIB}\n",
        f"{names[2]}/memory.stat": f"{prefix}active_file {5 * GIB}\n{prefix}inactive_file {GIB}\n",
    }
    found = machine.linux_cpu(linux(tmp_path, files))
    assert (found.budget_bytes, found.limited_by) == (7 * GIB, "cgroup limit")


def test_an_idle_machine_gives_all_but_what_it_keeps_for_itself(tmp_path: Path):
    found = machine.linux_cpu(linux(tmp_path / "a", {}), idle=True)
    assert found.budget_bytes == 24 * GIB - int(0.05 * 24 * GIB)
    files = {
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/job/memory.current": f"{7 * GIB}\n",
    }
    found = machine.linux_cpu(linux(tmp_path / "b", files), idle=True)
    assert (found.budget_bytes, found.limited_by) == (8 * GIB, "cgroup limit")
    assert machine.idle_bytes(16 * GIB, "metal") == 14 * GIB
    assert machine.idle_bytes(64 * GIB, "metal") == 64 * GIB - int(6.4 * GIB)


@pytest.mark.parametrize(
    ("working_set", "available", "budget", "limit"),
    [
        (22 * GIB, 30 * GIB, 0.95 * 22 * GIB, "Metal working set"),
        (22 * GIB, 4 * GIB, 4 * GIB, "available memory"),
        (31.9 * GIB, None, 32 * GIB - 3.2 * GIB, "memory not used by the system"),
    ],
)
def test_a_mac_is_held_by_the_least_of_three_limits(working_set, available, budget, limit):
    found = machine.metal_machine("Mac", 32 * GIB, int(working_set), available)
    assert found.budget_bytes == pytest.approx(budget, abs=1)
    assert found.limited_by == limit


def test_the_tightest_of_nested_cgroups_counts(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{GIB}\n",
    }
    assert machine.linux_cpu(linux(tmp_path, files)).budget_bytes == 3 * GIB


def test_a_container_sees_its_limit_at_the_mount(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/../../docker/abc\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB // 2}\n",
    }
    assert machine.linux_cpu(linux(tmp_path, files)).budget_bytes == 3 * GIB // 2


def test_a_cgroup_v1_limit_counts_and_no_limit_does_not(tmp_path: Path):
    folder = "sys/fs/cgroup/memory/job/"
    files = {
        "proc/self/cgroup": "9:cpu:/job\n4:memory:/job\n",
        folder + "memory.limit_in_bytes": f"{5 * GIB}\n",
        folder + "memory.usage_in_bytes": f"{2 * GIB}\n",
        folder + "memory.stat": f"cache 9\ntotal_inactive_file {GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    found = machine.linux_cpu(linux(tmp_path, files))
    assert (found.budget_bytes, found.limited_by) == (4 * GIB, "cgroup limit")


def test_a_container_on_a_large_host_keeps_a_share_of_its_own_memory(tmp_path: Path):
    files = {
        "proc/meminfo": f"MemTotal: {1 << 30} kB\nMemFree: 1 kB\nMemAvailable: {900 << 20} kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{32 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
    }
    found = machine.linux_cpu(linux(tmp_path, files))  # of a TiB
    assert (found.memory_bytes, found.budget_bytes) == (32 * GIB, 31 * GIB)
    assert reserve_bytes(found) == int(0.04 * 32 * GIB)
    assert kind_of(Need(20 * GIB, 0, 0, 0), found) == "fits"


@pytest.mark.parametrize(
    ("most", "high", "budget"),
    [("max", f"{8 * GIB}", 6), (f"{8 * GIB}", f"{4 * GIB}", 2), (f"{8 * GIB}", "max", 6)],
)
def test_what_slows_a_cgroup_down_limits_it_as_well(tmp_path: Path, most, high, budget: int):
    files = {
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{most}\n",
        "sys/fs/cgroup/job/memory.high": f"{high}\n",
        "sys/fs/cgroup/job/memory.current": f"{2 * GIB}\n",
    }
    found = machine.linux_cpu(linux(tmp_path, files))
    assert (found.budget_bytes, found.limited_by) == (budget * GIB, "cgroup limit")


def test_a_cgroup_looser_than_the_machine_does_not_limit(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{100 * GIB}\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    assert machine.linux_cpu(linux(tmp_path, files)).limited_by == "available memory"


def test_a_machine_that_hides_its_memory_is_an_error(tmp_path: Path):
    with pytest.raises(BackendError, match="cannot read the memory size of this machine"):
        machine.linux_cpu(tmp_path)


def test_this_machine_has_memory_and_cores():
    found = machine.this_machine()
    assert 0 < found.budget_bytes <= found.memory_bytes
    assert device.cores() >= 1
