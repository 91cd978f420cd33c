"""Download files from the Hub into the cache. Downloads can resume, and every file is verified.

Bytes are written to a partial file that belongs to this process. If its SHA-256 matches the Hub's,
it is renamed to a blob, and only then is the snapshot link created. A process takes over an
abandoned partial file by renaming it, so only one process can succeed. huggingface_hub's lock is
held only to save bandwidth.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from catalog.download import part_file
from catalog.download.transfer import Callbacks, download
from catalog.errors import NotAModel, StoreError, VerificationError
from catalog.files import write_atomically
from catalog.hub.client import Hub, RemoteFile
from catalog.hub.retry import RetryPolicy
from catalog.store.disk import disk_failures, require_space
from catalog.store.store import Store

NO_CALLBACKS, DEFAULT_RETRY = Callbacks(), RetryPolicy()
LOCK_POLL_S = 0.2
LOCK_IDLE_S = 600.0  # ignore a lock if its holder makes no progress for this long


def pull(
    hub: Hub,
    files: Sequence[RemoteFile],
    store: Store,
    callbacks: Callbacks = NO_CALLBACKS,
    retry: RetryPolicy = DEFAULT_RETRY,
) -> list[Path]:
    """Download missing files one at a time. Returns the paths of all files in order.

    Does not check disk space; see `require_room`. Raises HubUnreachable after too many failures,
    StoreError if writing fails, NotAModel if a file is not GGUF, or VerificationError if a SHA-256
    is wrong. Invalid files are deleted. The next call resumes from all other partial files.
    """
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:

        def on_progress(of_file: int, _: int, before: int = done) -> None:
            callbacks.on_progress(before + of_file, total)

        with disk_failures(store.hub_cache):
            if not is_here(file, store):
                _fetch(hub, file, store, replace(callbacks, on_progress=on_progress), retry)
            _link(file, store)
        done += file.size_bytes
        callbacks.on_progress(done, total)
    with suppress(OSError):  # a read-only cache works if it contains the files
        for file in files:
            _write_ref(file, store)
    return [store.hub.snapshot_link(file) for file in files]


def require_room(files: Sequence[RemoteFile], store: Store) -> None:
    """Raise NoSpace unless the rest of the download leaves 1 GiB free."""
    with disk_failures(store.hub_cache):
        if need_bytes := missing_bytes(files, store):
            require_space(store.hub_cache, need_bytes)


def missing_bytes(files: Sequence[RemoteFile], store: Store) -> int:
    """Return the number of bytes left to download, excluding bytes in partial files."""
    need = 0
    for file in files:
        if not is_here(file, store):
            kept = _kept_bytes(store.hub.blob_path(file), "*.part")
            need += max(file.size_bytes - kept, 0)
    return need


def is_here(file: RemoteFile, store: Store) -> bool:
    """True if the file is in the cache, whichever tool downloaded it."""
    for path in (store.hub.snapshot_link(file), store.hub.blob_path(file)):
        with suppress(OSError):
            if path.stat().st_size == file.size_bytes:
                return True
    return False


def _fetch(
    hub: Hub, file: RemoteFile, store: Store, callbacks: Callbacks, retry: RetryPolicy
) -> None:
    blob = store.hub.blob_path(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(store, file, callbacks):
        if is_here(file, store):  # another process finished it
            return
        with part_file.claim(blob, file.size_bytes) as partial:
            try:
                got = download(hub, file, partial, callbacks, retry)
                if got != file.sha256:
                    raise VerificationError(file.name, file.sha256 or "", got)
            except (NotAModel, VerificationError):
                partial.delete()
                raise
            try:
                partial.publish(blob)
            except FileNotFoundError as error:
                problem = f"{partial.path} was deleted during the download; try again"
                if not is_here(file, store):
                    raise StoreError(problem) from error
        part_file.sweep(blob)


def _kept_bytes(blob: Path, *patterns: str) -> int:
    """Return the size of the largest partial file for a blob."""
    paths = (path for pattern in patterns for path in blob.parent.glob(f"{blob.name}.{pattern}"))
    return max(map(part_file.allocated_bytes, paths), default=0)


def _link(file: RemoteFile, store: Store) -> None:
    """Create the snapshot's link to the blob. Without symlink support, move the blob there."""
    link, blob = store.hub.snapshot_link(file), store.hub.blob_path(file)
    if link.exists() and link.stat().st_size == file.size_bytes:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{os.getpid()}-{random.randrange(2**32):08x}.tmp")
    try:
        temporary.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        os.replace(blob, link)
    else:
        os.replace(temporary, link)


def _write_ref(file: RemoteFile, store: Store) -> None:
    """Write the branch's commit to its ref file, as huggingface_hub does."""
    ref = store.hub.ref_path(file)
    if file.revision == file.commit or (ref.exists() and ref.read_text() == file.commit):
        return
    write_atomically(ref, file.commit)


@contextmanager
def _lock(store: Store, file: RemoteFile, callbacks: Callbacks) -> Iterator[None]:
    """Hold huggingface_hub's lock for this blob. If locking fails, proceed without it."""
    folder = store.hub_cache / ".locks" / store.hub.repository_folder(file.repository).name
    handle = -1
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / f"{file.sha256}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            _wait_for_lock(handle, store, file, callbacks)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _wait_for_lock(handle: int, store: Store, file: RemoteFile, callbacks: Callbacks) -> None:
    import fcntl

    blob, best, since, waited = store.hub.blob_path(file), -1, time.monotonic(), False
    while not (waited and is_here(file, store)):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                callbacks.on_wait()
                waited = True
        size_bytes = _kept_bytes(blob, "*.part", "*.incomplete")  # ours, or huggingface_hub's
        if size_bytes > best:
            best, since = size_bytes, time.monotonic()
            callbacks.on_progress(min(size_bytes, file.size_bytes), file.size_bytes)
        if time.monotonic() - since > LOCK_IDLE_S:
            return None
        time.sleep(LOCK_POLL_S)
