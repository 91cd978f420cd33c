"""The partial file for a download.

Bytes are written in any order, and the download resumes after any crash. The file name,
`<blob>.<host>-<pid>-<n>.part`, identifies the writer, who also holds a lock on the file, so two
processes never share one. A JSON record with the same stem lists the ranges that are present. The
record is updated after the bytes are written, so it is correct even if the process is killed. After
a reboot, only fsynced ranges are trusted. Bytes that have been hashed are never overwritten, and a
write by another process is detected. Links and other users' files are never opened.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from catalog.download import byte_ranges
from catalog.download.watch import Watch
from catalog.files import files_below, is_locked, is_own, lock, move, open_own, optional, read_json
from catalog.store.disk import hash_file

FORMAT = 1
RECORD_EVERY_BYTES = 2**20  # at most this much is lost if the process is killed
MAX_RECORD_BYTES = 2**16
FOREIGN_IDLE_S = 3600.0  # treat another host's partial file as abandoned after this time
MAX_NAMES = 1000  # names to try for a new file, if some are taken
_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}-\d+-\d+\.part")
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
    refused: operations that the file system does not support, such as "chmod".
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.limit_bytes = size_bytes
        self.version = 0
        self.etag: str | None = None
        self.refused: set[str] = set()
        self._etags_count = True
        self._present: list[byte_ranges.ByteRange] = []
        self._fsynced: list[byte_ranges.ByteRange] = []  # these bytes survive a power cut
        self._recorded_bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._file = open(open_own(path, os.O_RDWR), "r+b", buffering=0)  # noqa: SIM115
        with suppress(OSError):  # without locks, the name alone shows the writer
            lock(self._file.fileno())
        self._watch = Watch(self._file.fileno())
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
            self._watch.check()
            for first, last in byte_ranges.missing(self._present, start, start + len(chunk)):
                view = memoryview(chunk)[first - start : last - start]
                at = first
                try:
                    while at < last:
                        at += os.pwrite(self._file.fileno(), view[at - first :], at)
                finally:  # on a full disk, some of the bytes may have been written
                    if at > first:
                        self._present = byte_ranges.add(self._present, first, at)
            self._watch.mark()
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
        refused: set[str] = set()
        try:
            with optional("fsync", refused):
                os.fsync(handle)
        finally:
            os.close(handle)
        self.refused |= refused
        if refused:  # nothing is known to survive a power cut
            return
        with self._changed:
            if not self._closed and version == self.version:
                self._fsynced = there
                self._record()

    @contextmanager
    def reader(self) -> Iterator[int]:
        """Duplicate the file's descriptor for the block. It stays valid if the file is closed."""
        with self._changed:
            handle = os.dup(self._file.fileno())
        try:
            yield handle
        finally:
            os.close(handle)

    def delete(self) -> None:
        """Delete the file, for example because its hash is wrong."""
        with self._changed:
            self._present = []
            self.path.unlink(missing_ok=True)
            self._record_path.unlink(missing_ok=True)

    def publish(self, blob: Path, sha256: str) -> str:
        """Make the finished file read-only, fsync it, and rename it to the blob atomically.

        sha256: the hash of the bytes, as they were read during the download. If another
        process has written to the file or replaced it, the file is hashed again. Returns the hash;
        if it is not `sha256`, nothing is published.
        """
        with self._changed:
            self._seal()
            if not self._watch.check() and (got := _hash(self.path)) != sha256:
                return got
            move(self.path, blob, self.refused)
            if not (self._watch.check() and self._is_at(blob)) and (got := _hash(blob)) != sha256:
                blob.unlink()
                return got
            self._watch.end()
            with suppress(OSError):
                self._record_path.unlink(missing_ok=True)
        with suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(blob.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return sha256

    def _seal(self) -> None:
        handle = self._file.fileno()
        if os.fstat(handle).st_size > self.limit_bytes:
            os.ftruncate(handle, self.limit_bytes)
            self._watch.mark()
        with optional("chmod", self.refused):
            os.fchmod(handle, 0o444)
        with optional("fsync", self.refused):
            os.fsync(handle)

    def _is_at(self, path: Path) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file.fileno()), os.lstat(path))
        return False

    def close(self) -> None:
        """Close the file, and delete it if it is empty. Later writes are ignored."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            with suppress(OSError):  # if the disk is full, keep the old record
                if not self._present:
                    self.delete()
                elif self.path.exists():
                    self._record()
            self._file.close()

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _drop(self) -> None:
        self._present, self._fsynced, self._recorded_bytes = [], [], 0
        self.etag = None
        self.version += 1
        self._empty()
        self._changed.notify_all()

    def _load(self) -> None:
        end = min(os.fstat(self._file.fileno()).st_size, self.limit_bytes)
        record = _read_record(self.path)
        if record is None or record.size_bytes != self.limit_bytes:
            self._empty()
            return
        there = record.there if record.boot == _boot() else record.lasting
        self._present = byte_ranges.clip(there, end)
        self._fsynced = byte_ranges.clip(record.lasting, end)
        self.etag = record.etag

    def _empty(self) -> None:
        with optional("truncate", self.refused):  # otherwise the bytes are overwritten
            self._file.truncate(0)
        self._watch.mark()

    def _record(self) -> None:
        """Overwrite the record in place. No new blocks are needed, so it works on a full disk."""
        record = _Record(self.limit_bytes, self.etag, _boot(), self._present, self._fsynced)
        text = json.dumps({"format": FORMAT, **vars(record)})
        handle = open_own(self._record_path, os.O_WRONLY)
        try:
            length = os.fstat(handle).st_size
            os.pwrite(handle, text.ljust(length).encode(), 0)  # pad to overwrite the old text
        finally:
            os.close(handle)
        self._recorded_bytes = byte_ranges.count(self._present)


@contextmanager
def claim(blob: Path, size_bytes: int) -> Iterator[PartFile]:
    """Open a partial file for a blob: the largest abandoned one, or else a new one."""
    me = _free_name(blob)
    _open_here.add(me.name)
    for path in sorted(abandoned(blob), key=allocated_bytes, reverse=True):
        with suppress(OSError):  # another process took it, or it is not readable
            with suppress(OSError):
                os.utime(path)  # a fresh mtime stops other processes from claiming the file
            move(path, me)
            with suppress(OSError):
                move(path.with_suffix(".json"), me.with_suffix(".json"))
            break
    try:
        with closing(PartFile(me, size_bytes)) as partial:
            yield partial
    finally:
        _open_here.discard(me.name)


def _free_name(blob: Path) -> Path:
    for _ in range(MAX_NAMES):
        name = f"{blob.name}.{_host()}-{os.getpid()}-{next(_numbers)}.part"
        if not os.path.lexists(blob.with_name(name)):
            break
    return blob.with_name(name)


def below(folder: Path) -> list[Path]:
    """Return the partial files of all writers in a folder of blobs."""
    names = (path for path in files_below(folder, 0) if _NAME.fullmatch(path.name))
    return [path for path in names if is_own(path)]


def parts(blob: Path) -> list[Path]:
    """Return a blob's partial files, of all writers."""
    return [path for path in below(blob.parent) if path.name.startswith(blob.name)]


def abandoned(blob: Path) -> list[Path]:
    """Return a blob's partial files whose writers have exited."""
    return [path for path in parts(blob) if is_abandoned(path)]


def sweep(blob: Path) -> None:
    """Delete abandoned partial files and records for a complete blob."""
    for path in abandoned(blob):
        with suppress(OSError):
            path.unlink()
    for record in blob.parent.glob(f"{blob.name}.*.json"):
        if not record.with_suffix(".part").exists() and is_abandoned(record):
            with suppress(OSError):
                record.unlink()


def allocated_bytes(path: Path) -> int:
    """Return the number of bytes a file uses on disk; 0 if it does not exist."""
    with suppress(OSError):
        status = path.lstat()
        return min(status.st_blocks * 512, status.st_size)
    return 0


def whole_bytes(path: Path) -> int:
    """Return the size that a partial file will have, from its record; 0 if it is unknown."""
    record = _read_record(path)
    return record.size_bytes if record else 0


def _hash(path: Path) -> str:
    return hash_file(path, lambda done: None)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time()))


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_abandoned(path: Path) -> bool:
    """True if the writer has exited. A false negative only wastes bandwidth."""
    host, _, rest = path.name.split(".")[-2].partition("-")
    pid = rest.partition("-")[0]
    try:
        changed = path.lstat().st_mtime
    except OSError:
        return False
    if is_locked(path):
        return False
    if host != _host() or not pid.isdecimal():
        # On this machine, another host name means another container, whose lock is visible here.
        record = _read_record(path)
        here = record is not None and record.boot == _boot()
        return here or time.time() - changed > FOREIGN_IDLE_S
    if int(pid) == os.getpid():
        return path.with_suffix(".part").name not in _open_here
    return not _alive(int(pid), changed)


def _read_record(path: Path) -> _Record | None:
    return read_json(path.with_suffix(".json"), _Record, FORMAT, MAX_RECORD_BYTES)


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
