"""Download files from the Hub into the cache. Downloads can resume, and every file is verified.

Bytes are written to a partial file that belongs to this process. If its SHA-256 matches the Hub's,
it is renamed to a blob, and only then is the snapshot link created. A process takes over an
abandoned partial file by renaming it, so only one process can succeed. huggingface_hub's lock is
held only to save bandwidth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from catalog.download import part_file
from catalog.download.transfer import Callbacks, download
from catalog.errors import NotAModel, StoreError, VerificationError
from catalog.files import copy, link_or_copy, move, optional, read_file, write_atomically
from catalog.hub.client import Hub, RemoteFile, links_files, warns_of_links
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
    refused: set[str] = set()
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:

        def on_progress(of_file: int, _: int, before: int = done) -> None:
            callbacks.on_progress(before + of_file, total)

        with disk_failures(store.hub_cache):
            if not is_here(file, store) and not _reuse(file, store):
                observer = replace(callbacks, on_progress=on_progress)
                _fetch(hub, file, store, observer, retry, refused)
            _link(file, store, refused)
        done += file.size_bytes
        callbacks.on_progress(done, total)
    with suppress(OSError):  # a read-only cache works if it contains the files
        for file in files:
            _write_ref(file, store)
    if refused:
        callbacks.on_refused(refused)
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
            kept = _kept_bytes(store.hub.blob_path(file))
            need += max(file.size_bytes - kept, 0)
    return need


def is_here(file: RemoteFile, store: Store) -> bool:
    """True if the file is in the cache, whichever tool downloaded it."""
    paths = (store.hub.snapshot_link(file), store.hub.blob_path(file))
    return any(_has_size(path, file) for path in paths)


def _reuse(file: RemoteFile, store: Store) -> bool:
    """Use the same bytes from another revision. Only caches without symlinks have such copies."""
    for path in store.hub.copies(file):
        link = store.hub.snapshot_link(file)
        link.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, link)
        return True
    return False


def _fetch(
    hub: Hub,
    file: RemoteFile,
    store: Store,
    callbacks: Callbacks,
    retry: RetryPolicy,
    refused: set[str],
) -> None:
    blob = store.hub.blob_path(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(store, file, callbacks, refused):
        if is_here(file, store):  # another process finished it
            return
        with part_file.claim(blob, file.size_bytes) as partial:
            try:
                got = download(hub, file, partial, callbacks, retry)
                if got == file.sha256:
                    got = partial.publish(blob, got)
                if got != file.sha256:
                    raise VerificationError(file.name, file.sha256 or "", got)
            except (NotAModel, VerificationError):
                partial.delete()
                raise
            except FileNotFoundError as error:
                problem = f"{partial.path} was deleted during the download; try again"
                if not is_here(file, store):
                    raise StoreError(problem) from error
            finally:
                refused |= partial.refused
        part_file.sweep(blob)


def _kept_bytes(blob: Path) -> int:
    """Return the size of the largest partial file for a blob."""
    return max(map(part_file.allocated_bytes, part_file.parts(blob)), default=0)


def _link(file: RemoteFile, store: Store, refused: set[str]) -> None:
    """Create the snapshot's link to the blob. Without symlinks, move the blob there."""
    link, blob = store.hub.snapshot_link(file), store.hub.blob_path(file)
    if _has_size(link, file):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if links_files():
        with optional("symlinks", refused if warns_of_links() else set()):
            _symlink(link, blob)
        if _has_size(link, file):
            return
    if store.hub.links_to(blob):
        copy(blob, link)
    else:
        move(blob, link, refused)


def _symlink(link: Path, blob: Path) -> None:
    target = os.path.relpath(blob, link.parent)
    try:
        link.symlink_to(target)
    except FileExistsError:  # a broken link, or a damaged file
        temporary = link.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.tmp")
        temporary.symlink_to(target)
        try:
            os.replace(temporary, link)
        finally:
            temporary.unlink(missing_ok=True)


def _has_size(path: Path, file: RemoteFile) -> bool:
    with suppress(OSError):
        return path.stat().st_size == file.size_bytes
    return False


def _write_ref(file: RemoteFile, store: Store) -> None:
    """Write the branch's commit to its ref file, as huggingface_hub does."""
    ref, commit = store.hub.ref_path(file), file.commit.encode()
    with suppress(OSError):
        if file.revision == file.commit or read_file(ref) == commit:
            return
    write_atomically(ref, commit)


@contextmanager
def _lock(
    store: Store, file: RemoteFile, callbacks: Callbacks, refused: set[str]
) -> Iterator[None]:
    """Hold huggingface_hub's lock for this blob. If locking fails, proceed without it."""
    handle = -1
    try:
        with suppress(OSError, StoreError), optional("locks", refused):
            path = store.hub.lock_path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(path, flags, 0o644)
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
        theirs = map(part_file.allocated_bytes, blob.parent.glob(f"{blob.name}.*.incomplete"))
        size_bytes = max(_kept_bytes(blob), *theirs, 0)
        if size_bytes > best:
            best, since = size_bytes, time.monotonic()
            callbacks.on_progress(min(size_bytes, file.size_bytes), file.size_bytes)
        if time.monotonic() - since > LOCK_IDLE_S:
            return None
        time.sleep(LOCK_POLL_S)
