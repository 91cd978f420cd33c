"""A memory cgroup of version 1 or 2 for a child process, where a test may make one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOTS = {1: Path("/sys/fs/cgroup/memory"), 2: Path("/sys/fs/cgroup")}
# The limit, the peak with page cache, and the counts of kills.
FILES = {
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    2: ("memory.max", "memory.peak", "memory.events"),
}


@dataclass(frozen=True)
class Group:
    """A cgroup. version: 1 or 2."""

    path: Path
    version: int

    def around(self, command: list[str]) -> list[str]:
        """Return a command that runs in the group."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *command]

    @property
    def peak_bytes(self) -> int:
        """The most memory that the group held, with its page cache."""
        return int(self._read(1))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        lines = dict(line.split() for line in self._read(2).splitlines())
        return int(lines.get("oom_kill", 0))

    def _read(self, which: int) -> str:
        return (self.path / FILES[self.version][which]).read_text()


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Group]:
    """Make a group with a limit. Skips the test, with the reason, where that is impossible."""
    version = 1 if (ROOTS[1] / "cgroup.procs").exists() else 2
    path = ROOTS[version] / f"conifer-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {path.parent}: {error.strerror}")
    try:
        for name in FILES[version][:2]:
            if not (path / name).exists():
                pytest.skip(f"the cgroups in {path.parent} have no {name}")
        try:
            (path / FILES[version][0]).write_text(str(limit_bytes))
        except OSError as error:
            pytest.skip(f"{path.parent} takes no limit: {error.strerror}")
        yield Group(path, version)
    finally:
        for _ in range(50):  # its processes may still be ending
            with suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.1)
