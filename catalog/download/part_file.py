"""A download's partial file: this process's alone, filled in any order, taken up after any death.

Its name carries who writes it, so that two processes never share one:
`<blob>.<host>-<pid>-<n>.part`. A record beside it, `.json`, says which bytes are there. It is
written after them, so a killed process leaves one that is true; what the disk has for certain is
noted apart from it, and is all that counts once the machine was started anew.

A byte is written once: what was hashed is never written over.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from catalog.download import byte_ranges
from catalog.files import read_json

FORMAT = 1
RECORD_EVERY_BYTES = 2**20  # the most that a kill makes us fetch again
MAX_RECORD_BYTES = 2**16
FOREIGN_IDLE_S = 3600.0  # another host's partial file is left alone for so long
_numbers = itertools.count()


@dataclass
class _Record:
    """The JSON file next to a partial file."""

    size_bytes: int
    etag: str | None
    boot: str
    there: list[byte_ranges.Span]
    lasting: list[byte_ranges.Span]

    def __post_init__(self) -> None:
        self.there, self.lasting = _merged(self.there), _merged(self.lasting)


class Partial:
    """A file that fills up. Any thread may call anything here.

    `etag` is the one under which its bytes were sent. `edition` counts how often all bytes were
    forgotten: what is written for an earlier one is dropped.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.limit_bytes = size_bytes
        self.edition = 0
        self.etag: str | None = None
        self._etags_count = True
        self._there: list[byte_ranges.Span] = []
        self._lasting: list[byte_ranges.Span] = []  # there even after a power cut
        self._recorded_bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
        self._take_up()
        self._record()

    @property
    def size_bytes(self) -> int:
        """How many bytes are there."""
        return byte_ranges.count(self._there)

    def missing(self) -> list[byte_ranges.Span]:
        """Return which bytes are not there."""
        with self._changed:
            return byte_ranges.missing(self._there, 0, self.limit_bytes)

    def write(self, start: int, chunk: bytes, edition: int) -> bool:
        """Write those bytes of a chunk that are not there yet; False if nobody wants them any more.

        Raises OSError as the disk does.
        """
        with self._changed:
            if self._closed or edition != self.edition:
                return False
            for first, last in byte_ranges.missing(self._there, start, start + len(chunk)):
                view = memoryview(chunk)[first - start : last - start]
                at = first
                while at < last:
                    at += os.pwrite(self._file.fileno(), view[at - first :], at)
                self._there = byte_ranges.add(self._there, first, last)
            if byte_ranges.count(self._there) >= self._recorded_bytes + RECORD_EVERY_BYTES:
                self._record()
            self._changed.notify_all()
        return True

    def agree(self, etag: str | None, edition: int) -> int | None:
        """Compare an answer's ETag with that of the bytes here, and return the edition to write to.

        All bytes are forgotten if the file changed on the server; where that is said a second time,
        the server's ETags mean nothing, and the hash is left to decide. None: as for `write`.
        """
        with self._changed:
            if self._closed or edition != self.edition:
                return None
            if etag and self.etag and etag != self.etag:
                if self.edition:
                    self._etags_count = False
                else:
                    self._forget()
            self.etag = (self.etag or etag) if self._etags_count else None
            self._record()
            return self.edition

    def wait_for(self, beyond: int, edition: int) -> tuple[int, int] | None:
        """Wait until more than `beyond` bytes are there from 0 on, or all are forgotten.

        Returns (bytes from 0 on, edition), or None once the file is closed.
        """
        with self._changed:
            while not self._closed:
                ready = byte_ranges.prefix(self._there)
                if ready > beyond or edition != self.edition or ready == self.limit_bytes:
                    return ready, self.edition
                self._changed.wait()
        return None

    def sync(self) -> None:
        """Have the disk keep what is there, also through a power cut."""
        with self._changed:
            if self._closed:
                return
            handle = os.dup(self._file.fileno())
            there, edition = self._there, self.edition
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        with self._changed:
            if not self._closed and edition == self.edition:
                self._lasting = there
                self._record()

    def discard(self) -> None:
        """Delete the file: its bytes are wrong."""
        with self._changed:
            self._there = []
            self.path.unlink(missing_ok=True)
            self._record_path.unlink(missing_ok=True)

    def publish(self, blob: Path) -> None:
        """Make the finished file the blob, atomically and lastingly, and read-only."""
        with self._changed:
            os.ftruncate(self._file.fileno(), self.limit_bytes)
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            os.replace(self.path, blob)
            self._record_path.unlink(missing_ok=True)
        with suppress(OSError):  # not every file system can sync a folder
            folder = os.open(blob.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file; an empty one goes. What is written later is dropped."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            if not self._there:
                self.discard()
            elif self.path.exists():
                with suppress(OSError):  # on a full disk the record stays as it was
                    self._record()
            self._file.close()

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _forget(self) -> None:
        self._there, self._lasting, self._recorded_bytes = [], [], 0
        self.etag = None
        self.edition += 1
        self._file.truncate(0)
        self._changed.notify_all()

    def _take_up(self) -> None:
        """Believe the record as far as it can be true."""
        end = min(os.fstat(self._file.fileno()).st_size, self.limit_bytes)
        record = read_json(self._record_path, _Record, FORMAT, MAX_RECORD_BYTES)
        if record is None or record.size_bytes != self.limit_bytes:
            self._file.truncate(0)
            return
        there = record.there if record.boot == _boot() else record.lasting
        self._there = byte_ranges.clip(there, end)
        self._lasting = byte_ranges.clip(record.lasting, end)
        self.etag = record.etag

    def _record(self) -> None:
        """Write down what is there, in one piece."""
        record = _Record(self.limit_bytes, self.etag, _boot(), self._there, self._lasting)
        text = json.dumps({"format": FORMAT, **vars(record)})
        handle = os.open(self._record_path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            length = os.fstat(handle).st_size
            os.pwrite(handle, text.ljust(length).encode(), 0)  # shorter than before: blanks follow
        finally:
            os.close(handle)
        self._recorded_bytes = byte_ranges.count(self._there)


@contextmanager
def claim(blob: Path, size_bytes: int) -> Iterator[Partial]:
    """Open a partial file for a blob: the fullest that a dead process left, else a new one."""
    me = blob.with_name(f"{blob.name}.{_host()}-{os.getpid()}-{next(_numbers)}.part")
    _open_here.add(me.name)
    for path in sorted(abandoned(blob), key=allocated_bytes, reverse=True):
        with suppress(OSError):  # someone else took it, or it is not ours to write to
            os.utime(path)  # from now on it has changed since we started: nobody takes it from us
            os.rename(path, me)
            with suppress(OSError):
                os.rename(path.with_suffix(".json"), me.with_suffix(".json"))
            break
    try:
        partial = Partial(me, size_bytes)
        try:
            yield partial
        finally:
            partial.close()
    finally:
        _open_here.discard(me.name)


def abandoned(blob: Path) -> list[Path]:
    """Return the partial files of a blob that nobody writes any more."""
    return [path for path in blob.parent.glob(f"{blob.name}.*.part") if _is_abandoned(path)]


def sweep(blob: Path) -> None:
    """Delete what dead processes left of a blob that is here."""
    for path in abandoned(blob):
        path.unlink(missing_ok=True)
    for record in blob.parent.glob(f"{blob.name}.*.json"):
        if not record.with_suffix(".part").exists() and _is_abandoned(record):
            record.unlink(missing_ok=True)


def unfinished(hub_cache: Path) -> list[Path]:
    """Return what transfers that nobody goes on with have left in a cache."""
    found = hub_cache.glob("models--*/blobs/*.part")
    left = [path for path in found if _is_abandoned(path)]
    return [*left, *(record for path in left if (record := path.with_suffix(".json")).exists())]


def allocated_bytes(path: Path) -> int:
    """Return how much of the disk a file takes; 0 if it is not there."""
    with suppress(OSError):
        status = path.stat()
        return min(status.st_blocks * 512, status.st_size)
    return 0


# Names of the partial files that this process writes now.
_open_here: set[str] = set()


def _merged(spans: list[byte_ranges.Span]) -> list[byte_ranges.Span]:
    """Sort and join byte ranges. Raises ValueError for an empty or negative one."""
    merged: list[byte_ranges.Span] = []
    for first, last in spans:
        if not 0 <= first < last:
            raise ValueError(f"{first}-{last} is not a range of bytes")
        merged = byte_ranges.add(merged, first, last)
    return merged


def _boot() -> str:
    """Name this start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time()))


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    """Say whether nobody writes this file any more. Saying no wrongly costs bandwidth only."""
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
    """Say whether the process of this number is the one that wrote at the time `changed`."""
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(
            process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= changed + 1
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
