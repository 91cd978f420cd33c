"""The partial file for a download.

Bytes are written in any order, and the download resumes after any crash. The file name,
`<blob>.<host>-<pid>-<n>.part`, identifies the writer, so two processes never share a file.
A JSON record with the same stem lists the ranges that are present. The record is updated after the
bytes are written, so it is correct even if the process is killed. After a reboot, only fsynced
ranges are trusted. Bytes that have been hashed are never overwritten.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from catalog.download import byte_ranges
from catalog.files import read_json

FORMAT = 1
RECORD_EVERY_BYTES = 2**20  # at most this much is lost if the process is killed
MAX_RECORD_BYTES = 2**16
FOREIGN_IDLE_S = 3600.0  # treat another host's partial file as abandoned after this time
_numbers = itertools.count()
_open_here: set[str] = set()  # names of partial files that this process has open


@dataclass
class _Record:
    """The JSON record: the ranges that are present (`there`) and fsynced (`lasting`)."""

    size_bytes: int
    etag: str | None
    boot: str
    there: list[byte_ranges.ByteRange]
    lasting: list[byte_ranges.ByteRange]

    def __post_init__(self) -> None:
        self.there = byte_ranges.merge(self.there)
        self.lasting = byte_ranges.merge(self.lasting)


class PartFile:
    """A thread-safe partial file.

    etag: the ETag of the bytes in the file.
    version: incremented when all bytes are discarded. Writes for an earlier version are ignored.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.limit_bytes = size_bytes
        self.version = 0
        self.etag: str | None = None
        self._etags_count = True
        self._present: list[byte_ranges.ByteRange] = []
        self._fsynced: list[byte_ranges.ByteRange] = []  # these bytes survive a power cut
        self._recorded_bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
        self._load()
        self._record()

    @property
    def size_bytes(self) -> int:
        return byte_ranges.count(self._present)

    def missing(self) -> list[byte_ranges.ByteRange]:
        with self._changed:
            return byte_ranges.missing(self._present, 0, self.limit_bytes)

    def write(self, start: int, chunk: bytes, version: int) -> bool:
        """Write the bytes of a chunk that are still missing. Raises OSError.

        Returns False if the file is closed or `version` is outdated.
        """
        with self._changed:
            if self._closed or version != self.version:
                return False
            for first, last in byte_ranges.missing(self._present, start, start + len(chunk)):
                view = memoryview(chunk)[first - start : last - start]
                at = first
                while at < last:
                    at += os.pwrite(self._file.fileno(), view[at - first :], at)
                self._present = byte_ranges.add(self._present, first, last)
            if byte_ranges.count(self._present) >= self._recorded_bytes + RECORD_EVERY_BYTES:
                self._record()
            self._changed.notify_all()
        return True

    def check_etag(self, etag: str | None, version: int) -> int | None:
        """Compare a response's ETag with `etag` and return the version to write to.

        If the file has changed on the server, all bytes are discarded. A second change means that
        the server's ETags are unreliable, so only the final hash is checked. Returns None if the
        file is closed or `version` is outdated.
        """
        with self._changed:
            if self._closed or version != self.version:
                return None
            if etag and self.etag and etag != self.etag:
                if self.version:
                    self._etags_count = False
                else:
                    self._drop()
            self.etag = (self.etag or etag) if self._etags_count else None
            self._record()
            return self.version

    def wait_for(self, beyond: int, version: int) -> tuple[int, int] | None:
        """Wait until more than `beyond` contiguous bytes are present, or the version changes.

        Returns (contiguous bytes from 0, version), or None if the file is closed.
        """
        with self._changed:
            while not self._closed:
                ready = byte_ranges.prefix(self._present)
                if ready > beyond or version != self.version or ready == self.limit_bytes:
                    return ready, self.version
                self._changed.wait()
        return None

    def sync(self) -> None:
        """Flush the bytes to disk, so that they survive a power cut."""
        with self._changed:
            if self._closed:
                return
            handle = os.dup(self._file.fileno())
            there, version = self._present, self.version
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        with self._changed:
            if not self._closed and version == self.version:
                self._fsynced = there
                self._record()

    def delete(self) -> None:
        """Delete the file, for example because its hash is wrong."""
        with self._changed:
            self._present = []
            self.path.unlink(missing_ok=True)
            self._record_path.unlink(missing_ok=True)

    def publish(self, blob: Path) -> None:
        """Make the finished file read-only, fsync it, and rename it to the blob atomically."""
        with self._changed:
            os.ftruncate(self._file.fileno(), self.limit_bytes)
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            os.replace(self.path, blob)
            self._record_path.unlink(missing_ok=True)
        with suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(blob.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file, and delete it if it is empty. Later writes are ignored."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            if not self._present:
                self.delete()
            elif self.path.exists():
                with suppress(OSError):  # if the disk is full, keep the old record
                    self._record()
            self._file.close()

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _drop(self) -> None:
        self._present, self._fsynced, self._recorded_bytes = [], [], 0
        self.etag = None
        self.version += 1
        self._file.truncate(0)
        self._changed.notify_all()

    def _load(self) -> None:
        end = min(os.fstat(self._file.fileno()).st_size, self.limit_bytes)
        record = read_json(self._record_path, _Record, FORMAT, MAX_RECORD_BYTES)
        if record is None or record.size_bytes != self.limit_bytes:
            self._file.truncate(0)
            return
        there = record.there if record.boot == _boot() else record.lasting
        self._present = byte_ranges.clip(there, end)
        self._fsynced = byte_ranges.clip(record.lasting, end)
        self.etag = record.etag

    def _record(self) -> None:
        """Overwrite the record in place. No new blocks are needed, so it works on a full disk."""
        record = _Record(self.limit_bytes, self.etag, _boot(), self._present, self._fsynced)
        text = json.dumps({"format": FORMAT, **vars(record)})
        handle = os.open(self._record_path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            length = os.fstat(handle).st_size
            os.pwrite(handle, text.ljust(length).encode(), 0)  # pad to overwrite the old text
        finally:
            os.close(handle)
        self._recorded_bytes = byte_ranges.count(self._present)


@contextmanager
def claim(blob: Path, size_bytes: int) -> Iterator[PartFile]:
    """Open a partial file for a blob: the largest abandoned one, or else a new one."""
    me = blob.with_name(f"{blob.name}.{_host()}-{os.getpid()}-{next(_numbers)}.part")
    _open_here.add(me.name)
    for path in sorted(abandoned(blob), key=allocated_bytes, reverse=True):
        with suppress(OSError):  # another process took it, or it is not writable
            os.utime(path)  # a fresh mtime stops other processes from claiming the file
            os.rename(path, me)
            with suppress(OSError):
                os.rename(path.with_suffix(".json"), me.with_suffix(".json"))
            break
    try:
        with closing(PartFile(me, size_bytes)) as partial:
            yield partial
    finally:
        _open_here.discard(me.name)


def abandoned(blob: Path) -> list[Path]:
    """Return a blob's partial files whose writers have exited."""
    return [path for path in blob.parent.glob(f"{blob.name}.*.part") if _is_abandoned(path)]


def sweep(blob: Path) -> None:
    """Delete abandoned partial files and records for a complete blob."""
    for path in abandoned(blob):
        path.unlink(missing_ok=True)
    for record in blob.parent.glob(f"{blob.name}.*.json"):
        if not record.with_suffix(".part").exists() and _is_abandoned(record):
            record.unlink(missing_ok=True)


def unfinished(hub_cache: Path) -> list[Path]:
    """Return the partial files and records of all abandoned downloads in the cache."""
    found = hub_cache.glob("models--*/blobs/*.part")
    left = [path for path in found if _is_abandoned(path)]
    return [*left, *(record for path in left if (record := path.with_suffix(".json")).exists())]


def allocated_bytes(path: Path) -> int:
    """Return the number of bytes a file uses on disk; 0 if it does not exist."""
    with suppress(OSError):
        status = path.stat()
        return min(status.st_blocks * 512, status.st_size)
    return 0


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time()))


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    """True if the writer has exited. A false negative only wastes bandwidth."""
    host, _, rest = path.name.split(".")[-2].partition("-")
    pid = rest.partition("-")[0]
    try:
        changed = path.stat().st_mtime
    except OSError:
        return False
    if host != _host() or not pid.isdecimal():
        return time.time() - changed > FOREIGN_IDLE_S
    if int(pid) == os.getpid():
        return path.with_suffix(".part").name not in _open_here
    return not _alive(int(pid), changed)


def _alive(pid: int, changed: float) -> bool:
    """True if a process with this id exists and started before `changed`."""
    import psutil

    try:
        process = psutil.Process(pid)
        older: bool = process.create_time() <= changed + 1
        return older and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
