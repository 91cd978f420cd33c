"""`conifer doctor`: check this machine, the installation and the network.

Prints one line per check and writes no files. If a check fails, the exit code is the one that other
commands use for the same problem.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from catalog.store.disk import existing
from conifer_cli import config_file, errors
from conifer_cli.acquire import connect
from conifer_cli.fit.best import best_here
from conifer_cli.options import gpu_verdicts, open_store
from conifer_cli.session.session import SLOW
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, gigabytes, size
from conifer_cli.terminal.layout import BAD, GOOD, WARNING, Column, Grid
from conifer_cli.versions import DISTRIBUTION, NOT_INSTALLED, installed_version

OK, WARN, FAIL = "ok", "warn", "fail"
STYLES = {OK: GOOD, WARN: WARNING, FAIL: BAD}
NAMED = ("mlx", "numpy", "huggingface_hub")  # packages whose versions to report
UNMEASURED = {"metal": "speed on Metal not yet measured", "cuda": "speed on CUDA not yet measured"}
PROBE_REPOSITORY = "Qwen/Qwen3-30B-A3B-GGUF"  # any repository would work
NO_HUB = (
    "Check the network, HTTPS_PROXY and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to work offline; "
    "models listed by `conifer list` also run offline"
)
SMALL_DISK_BYTES = 20 * 10**9  # less than most MoE models need
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*(==|>=)\s*([0-9.]+)$")


@dataclass(frozen=True)
class Check:
    """The result of a check. advice: how to fix a problem. code: the exit code on failure."""

    name: str
    status: str
    detail: str
    advice: str = ""
    code: int = errors.OK


def examine(root: Any, as_json: bool, gpu: bool = False) -> int:
    """Run all checks and print their results. Return the exit code of the first failure.

    root: the program's context. gpu: instead, try the kernels of every block type on this machine's
    GPU.
    """
    found = []
    checks = gpu_checks() if gpu else [*CHECKS, lambda: check_config(root)]
    for check in checks:
        found.append(check())
        if not as_json:
            console.print_lines([_grid(found[-1])])
    failed = [check for check in found if check.status == FAIL]
    if as_json:
        worst = next((s for s in (FAIL, WARN) if any(c.status == s for c in found)), OK)
        documents = [{k: v for k, v in asdict(check).items() if k != "code"} for check in found]
        console.print_json({"status": worst, "checks": documents})
    return failed[0].code if failed else errors.OK


def _grid(check: Check) -> Grid:
    advice = f". {check.advice}" if check.advice else ""
    columns = [Column(least=4), Column(least=8), Column()]
    status = (STYLES[check.status], check.status)
    return Grid(columns, [(status, check.name, check.detail + advice)])


def check_backend() -> Check:
    from engine.device import cores
    from engine.errors import BackendError
    from engine.fit.machine import this_machine

    try:
        machine = this_machine()
    except BackendError as error:
        return Check("backend", FAIL, str(error), code=errors.FAILURE)
    if unmeasured := UNMEASURED.get(machine.backend):
        advice = "Please report the output of `conifer bench` on this machine"
        return Check("backend", WARN, f"{machine.backend}: {machine.name}; {unmeasured}", advice)
    detail = f"cpu: {machine.name}, {counted(cores(), 'thread')}; {UNMEASURED['metal']}"
    return Check("backend", OK, detail)


def check_kernels() -> Check:
    from engine.device import backend
    from engine.errors import BackendError
    from engine.kernels import native

    try:
        device = backend()
    except BackendError:
        return Check("kernels", FAIL, "unavailable without a backend", code=errors.FAILURE)
    if device != "cpu":
        return Check("kernels", OK, "blocks: GGUF blocks as they are in the file")
    reason = native.unavailable_reason()
    if reason is None:
        return Check("kernels", OK, f"native: C++, {native.isa()}")
    what, _, advice = SLOW.format(reason).partition(". ")
    return Check("kernels", WARN, f"stock: {what}", advice.rstrip("."))


def gpu_checks() -> list[Callable[[], Check]]:
    """Return a check for the GPU, and one for the kernels of each block type."""
    from engine.device import backend
    from engine.errors import BackendError
    from engine.kernels.gpu.texts import TYPES

    try:
        device = backend()
    except BackendError as error:
        reason = str(error)
        return [lambda: Check("gpu", FAIL, reason, code=errors.FAILURE)]
    if device == "cpu":
        return [lambda: Check("gpu", FAIL, "MLX uses the CPU", code=errors.FAILURE)]
    return [check_backend, *(partial(check_gpu_type, name, device) for name in TYPES)]


def check_gpu_type(type_name: str, device: str) -> Check:
    """Try the kernels of a block type, or name the verdict that is kept."""
    from engine.kernels.gpu.verdicts import Verdicts, refusal, this_gpu

    kept = Verdicts(gpu_verdicts(), this_gpu())
    reason = refusal(type_name, kept, device == "cuda")
    if reason is None:
        return Check(type_name, OK, "read as it is in the file")
    advice = "MLX's own operations are used. Please report this line"
    return Check(type_name, WARN, reason, advice)


def check_memory() -> Check:
    """Check the available memory and name the best model that fits."""
    from engine.errors import BackendError
    from engine.fit.machine import this_machine
    from engine.fit.memory import MIN_RESERVE, PROGRAM

    try:
        machine = this_machine()
    except BackendError:
        return Check("memory", FAIL, "unknown without a backend", code=errors.FAILURE)
    detail = (
        f"budget {gigabytes(machine.budget_bytes)}, {machine.limited_by}; "
        f"{gigabytes(machine.memory_bytes)} in total"
    )
    best = best_here(open_store(), keep=False)
    if best is not None:
        return Check("memory", OK, f"{detail}; the best model for this machine is {best.name}")
    advice = "Close other programs, or run `conifer fit` to see the verdict for each model"
    if machine.budget_bytes < PROGRAM + MIN_RESERVE:
        return Check("memory", FAIL, f"{detail}; too little for any model", advice, errors.NO_ROOM)
    return Check("memory", WARN, f"{detail}; no model fits", advice)


def check_cgroup() -> Check:
    """Check limits set by a container or service manager."""
    if sys.platform != "linux":
        return Check("cgroup", OK, "not used on this system")
    from engine.device import cgroup_cores
    from engine.fit.machine import cgroup_available

    root = Path("/")
    room, share = cgroup_available(root), cgroup_cores(root)
    parts = [
        "memory: no limit" if room is None else f"memory: {gigabytes(room)} left below the limit",
        "CPU: no limit" if share is None else f"CPU: limited to {share:g} cores",
    ]
    detail = ", ".join(parts)
    if share is not None and share < 1:
        return Check("cgroup", WARN, detail, "Give the container at least one core")
    return Check("cgroup", OK, detail)


def check_cache() -> Check:
    """Check the model folders and their free disk space."""
    from catalog.download.unfinished import unfinished
    from catalog.store.disk import SPARE_BYTES, free_bytes

    try:
        store = open_store()
    except errors.UsageError as error:
        return Check("cache", FAIL, str(error), error.hint.rstrip("."), errors.UNREACHABLE)
    for folder, variable in ((store.hub_cache, "HF_HOME"), (store.home, "CONIFER_HOME")):
        if fault := _unusable(folder):
            advice = f"Set {variable} to another folder"
            return Check("cache", FAIL, f"{folder}: {fault}", advice, errors.UNREACHABLE)
    installed, begun = store.installed(), unfinished(store)
    free = free_bytes(store.hub_cache)
    used = size(sum(model.size_bytes for model in installed))
    parts = [counted(len(installed), "model"), f"{used} used"]
    if begun:
        present = size(sum(one.present_bytes for one in begun))
        parts.append(f"{counted(len(begun), 'unfinished download')} ({present})")
    parts.append("free space unknown" if free is None else f"{size(free)} free")
    detail = f"{store.hub_cache}: {', '.join(parts)}; Conifer's files: {store.home}"
    if free is None:
        return Check("cache", OK, detail)
    advice = "Remove models with `conifer rm`, or set HF_HOME to a folder on another disk"
    if free < SPARE_BYTES:
        return Check("cache", FAIL, detail, advice, errors.NO_ROOM)
    if free < SMALL_DISK_BYTES:
        return Check("cache", WARN, detail, advice)
    return Check("cache", OK, detail)


def _unusable(folder: Path) -> str | None:
    """Return why a folder cannot be written to, or None if it can. The folder need not exist."""
    parent = existing(folder)
    if not os.path.isdir(parent):
        return f"{parent} is not a folder"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is not writable"
    try:
        folder.stat()
    except FileNotFoundError:
        return None
    except OSError as error:  # for example, an invalid name
        return errors.why(error)
    return None


def check_hub() -> Check:
    """Check that the Hub can list a repository, unless offline mode is on."""
    from catalog.errors import AccessDenied, BadSetting, CatalogError, ModelNotFound

    try:
        hub = connect()
    except BadSetting as error:
        advice = "Correct the variable, or unset it"
        return Check("hub", FAIL, str(error), advice, errors.UNREACHABLE)
    if hub.offline:
        return Check("hub", OK, f"offline mode is on; {hub.endpoint} was not contacted")
    try:
        hub.files(PROBE_REPOSITORY)
    except ModelNotFound:
        pass  # a mirror may lack this model
    except AccessDenied as error:
        return Check("hub", WARN, str(error), "Check HF_TOKEN: the Hub may have rejected it")
    except CatalogError as error:
        return Check("hub", FAIL, f"{hub.endpoint}: {error}", NO_HUB, errors.UNREACHABLE)
    return Check("hub", OK, f"{hub.endpoint} is reachable")


def check_versions() -> Check:
    own = installed_version(DISTRIBUTION)
    parts = [f"conifer {own or NOT_INSTALLED}", f"Python {platform.python_version()}"]
    parts += [f"{name} {installed_version(name) or 'not installed'}" for name in NAMED]
    detail = ", ".join(parts)
    wrong = _unmet(importlib.metadata.requires(DISTRIBUTION) or []) if own else []
    if wrong:
        advice = f"Reinstall Conifer: it requires {', '.join(wrong)}"
        return Check("versions", FAIL, detail, advice, errors.FAILURE)
    return Check("versions", OK, detail)


def check_config(root: Any) -> Check:
    """Check the config file, which other commands refuse to run with if it is invalid."""
    path = config_file.place()
    try:
        config_file.defaults(root)
        found = config_file.contents()
    except errors.UsageError as error:
        return Check("config", FAIL, str(error), error.hint.rstrip("."), errors.USAGE)
    number = sum(len(value) if isinstance(value, dict) else 1 for value in found.values())
    state = (
        counted(number, "setting") if os.path.exists(path) else "no such file, so all defaults hold"
    )
    return Check("config", OK, f"{path}: {state}")


def _unmet(requirements: list[str]) -> list[str]:
    """Return the unmet requirements of the form `name==1.2` or `name>=1.2`."""
    found = []
    for text in requirements:
        match = _REQUIREMENT.match(text)
        if match is None:  # has a marker, so it is optional
            continue
        version = installed_version(match[1])
        have, want = _numbers(version or ""), _numbers(match[3])
        if not have or (have != want if match[2] == "==" else have < want):
            found.append(f"{text} (installed: {version or 'none'})")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers without trailing zeros: 2.4.0rc1 becomes (2, 4)."""
    leading = re.split(r"[^\d.]", version, maxsplit=1)[0]
    leading = re.sub(r"(\.0*)+$", "", leading)
    return tuple(int(number) for number in leading.split(".") if number)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_backend,
    check_kernels,
    check_memory,
    check_cgroup,
    check_cache,
    check_hub,
    check_versions,
)
