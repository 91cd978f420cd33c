"""A download's partial file: this process's alone, hashed as it grows, resumed after any death.

Its name carries who writes it, so that two processes never share one:
`<blob>.<host>-<pid>-<n>.part`, with the server's ETag in a file beside it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BOUNDARY_BYTES = 2**20  # a tail shorter than this may be damaged after a crash; it is fetched again
FOREIGN_IDLE_S = 3600.0  # another host's partial file is left alone for so long
_numbers = itertools.count()


class Partial:
    """A growing file. `etag` is the one under which its bytes were sent."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.limit_bytes = size_bytes
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
        self._start_over(self._trusted_size())
        self.etag = self._stored_etag()

    @property
    def size_bytes(self) -> int:
        """How many bytes are there."""
        return self._size

    def write(self, chunk: bytes) -> None:
        """Append bytes and hash them. Raises OSError as the disk does."""
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(chunk)
        self._size += len(chunk)

    def starts_with(self, magic: bytes) -> bool:
        """Say whether the first bytes are these."""
        return os.pread(self._file.fileno(), len(magic), 0) == magic

    def digest(self) -> str:
        """Return the SHA-256 of what was written, as hex."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Forget all bytes."""
        self._start_over(0)

    def remember(self, etag: str | None) -> None:
        """Note the ETag to resume under."""
        if etag != self.etag:
            self._etag_path.write_text(etag or "", encoding="utf-8")
            self.etag = etag

    def discard(self) -> None:
        """Delete the file: its bytes are wrong."""
        self.path.unlink(missing_ok=True)
        self._etag_path.unlink(missing_ok=True)

    def publish(self, blob: Path) -> None:
        """Make the finished file the blob, atomically and lastingly, and read-only."""
        os.fchmod(self._file.fileno(), 0o444)
        os.fsync(self._file.fileno())
        os.replace(self.path, blob)
        self._etag_path.unlink(missing_ok=True)
        with suppress(OSError):  # not every file system can sync a folder
            folder = os.open(blob.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close the file; an empty one goes."""
        self._file.close()
        if not self._size:
            self.discard()

    @property
    def _etag_path(self) -> Path:
        return self.path.with_suffix(".etag")

    def _stored_etag(self) -> str | None:
        try:
            return self._etag_path.read_text(encoding="utf-8") or None
        except (OSError, UnicodeDecodeError):
            return None

    def _trusted_size(self) -> int:
        size = self.path.stat().st_size
        return 0 if size > self.limit_bytes else size - size % BOUNDARY_BYTES

    def _start_over(self, size: int) -> None:
        """Keep the first `size` bytes, hashing them again, and continue after them."""
        self._file.truncate(size)
        self._file.seek(0)
        self._hash, self._size = hashlib.sha256(), 0
        while self._size < size:
            chunk = self._file.read(min(BOUNDARY_BYTES, size - self._size))
            if not chunk:
                raise OSError(f"{self.path} shrank while it was read")
            self._hash.update(chunk)
            self._size += len(chunk)


@contextmanager
def claim(blob: Path, size_bytes: int) -> Iterator[Partial]:
    """Open a partial file for a blob: the longest that a dead process left, else a new one."""
    me = blob.with_name(f"{blob.name}.{_host()}-{os.getpid()}-{next(_numbers)}.part")
    _open_here.add(me.name)
    left = [p for p in blob.parent.glob(f"{blob.name}.*.part") if _abandoned(p)]
    for path in sorted(left, key=_size, reverse=True):
        with suppress(FileNotFoundError):  # someone else took it
            os.utime(path)  # from now on it has changed since we started: nobody takes it from us
            os.rename(path, me)
            with suppress(FileNotFoundError):
                os.rename(path.with_suffix(".etag"), me.with_suffix(".etag"))
            break
    try:
        partial = Partial(me, size_bytes)
        try:
            yield partial
        finally:
            partial.close()
    finally:
        _open_here.discard(me.name)


# Names of the partial files that this process writes now.
_open_here: set[str] = set()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _abandoned(path: Path) -> bool:
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
        return path.name not in _open_here
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
