"""Files of the hub into the cache: verified before they are published, taken up where they stopped.

Bytes go to a partial file of this process alone; only when the SHA-256 is the one that the hub
promised does an atomic rename make them a blob, and only then does a snapshot point at it. A
partial file that its process left behind is adopted by renaming it, which one process alone can
win. So the lock, which is the one huggingface_hub takes, saves bandwidth and nothing else depends
on it. It knows no terminal: progress is told to the caller.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from catalog.download import part_file as partials
from catalog.download.transfer import Observer, Patience, fill
from catalog.errors import NotAModel, StoreError, VerificationError
from catalog.files import write_atomically
from catalog.hub.client import Hub, RemoteFile
from catalog.store.cache import Store
from catalog.store.disk import disk_failures, require_space

UNOBSERVED, PATIENT = Observer(), Patience()
LOCK_POLL_S = 0.2
LOCK_IDLE_S = 600.0  # whoever holds a lock and brings nothing for so long is not waited for


def pull(
    hub: Hub,
    files: Sequence[RemoteFile],
    store: Store,
    observer: Observer = UNOBSERVED,
    patience: Patience = PATIENT,
) -> list[Path]:
    """Fetch files that are not here yet, one after the other, and return their paths in order.

    The room on the disk is not asked for: `require_room` does. Raises HubUnreachable once patience
    is at its end, VerificationError (and publishes nothing) for other bytes than promised,
    StoreError for what the disk refuses. What was fetched of an unfinished file is kept, and the
    next pull goes on from there.
    """
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:
        before = done

        def tell(of_file: int, before: int = before) -> None:
            observer.progress(before + of_file, total)

        with disk_failures(store.hub_cache):
            if not is_here(file, store):
                _fetch(hub, file, store, tell, patience, observer)
            _point(file, store)
        done += file.size_bytes
        observer.progress(done, total)
    with suppress(OSError):  # a read-only cache that holds the files is as good
        for file in files:
            _write_ref(file, store)
    return [store.pointer_path(file) for file in files]


def require_room(files: Sequence[RemoteFile], store: Store) -> None:
    """Raise NoSpace unless what is still to fetch leaves 1 GiB of the disk free."""
    with disk_failures(store.hub_cache):
        if need_bytes := missing_bytes(files, store):
            require_space(store.hub_cache, need_bytes)


def missing_bytes(files: Sequence[RemoteFile], store: Store) -> int:
    """Return how many bytes are still to fetch, less what lies in partial files."""
    need = 0
    for file in files:
        if not is_here(file, store):
            parts = _parts(store.blob_path(file), "*.part")
            kept = max(map(partials.allocated_bytes, parts), default=0)
            need += max(file.size_bytes - kept, 0)
    return need


def is_here(file: RemoteFile, store: Store) -> bool:
    """Say whether a file's bytes lie in the cache, ours or another tool's."""
    for path in (store.pointer_path(file), store.blob_path(file)):
        with suppress(OSError):
            if path.stat().st_size == file.size_bytes:
                return True
    return False


def _fetch(
    hub: Hub,
    file: RemoteFile,
    store: Store,
    tell: Callable[[int], None],
    patience: Patience,
    observer: Observer,
) -> None:
    """Fetch, verify and publish one blob."""
    blob = store.blob_path(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(store, file, tell, observer.waiting):
        if is_here(file, store):  # another process was quicker
            return
        with partials.claim(blob, file.size_bytes) as partial:
            tell(partial.size_bytes)
            try:
                got = fill(hub, file, partial, patience, tell, observer)
            except NotAModel:
                partial.discard()
                raise
            if got != file.sha256:
                partial.discard()
                raise VerificationError(file.name, file.sha256 or "", got)
            try:
                partial.publish(blob)
            except FileNotFoundError as error:
                if not is_here(file, store):
                    raise StoreError(f"{partial.path} was taken away; try again") from error
        partials.sweep(blob)


def _parts(blob: Path, *patterns: str) -> Iterator[Path]:
    """Yield what there is of a blob that is not whole."""
    for pattern in patterns:
        yield from blob.parent.glob(f"{blob.name}.{pattern}")


def _point(file: RemoteFile, store: Store) -> None:
    """Make the snapshot's name lead to the blob; where links can't be made, move the blob there."""
    pointer, blob = store.pointer_path(file), store.blob_path(file)
    if pointer.exists() and pointer.stat().st_size == file.size_bytes:
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{os.getpid()}-{random.randrange(2**32):08x}.tmp")
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)
    else:
        os.replace(temporary, pointer)


def _write_ref(file: RemoteFile, store: Store) -> None:
    """Record which commit the branch is at, as huggingface_hub does."""
    ref = store.ref_path(file)
    if file.revision == file.commit or (ref.exists() and ref.read_text() == file.commit):
        return
    write_atomically(ref, file.commit)


@contextmanager
def _lock(
    store: Store, file: RemoteFile, tell: Callable[[int], None], on_wait: Callable[[], None]
) -> Iterator[None]:
    """Hold the lock that huggingface_hub takes for this blob; go on without it if there is none."""
    folder = store.hub_cache / ".locks" / store.repository_folder(file.repository).name
    handle = -1
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / f"{file.sha256}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            _wait_for_lock(handle, store, file, tell, on_wait)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _wait_for_lock(
    handle: int,
    store: Store,
    file: RemoteFile,
    tell: Callable[[int], None],
    on_wait: Callable[[], None],
) -> None:
    """Wait as long as the one who holds the lock brings something, and tell how far that is."""
    import fcntl

    blob, best, since, told = store.blob_path(file), -1, time.monotonic(), False
    while not (told and is_here(file, store)):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                on_wait()
                told = True
        parts = _parts(blob, "*.part", "*.incomplete")  # ours, or those of the hub's client
        size_bytes = max(map(partials.allocated_bytes, parts), default=0)
        if size_bytes > best:
            best, since = size_bytes, time.monotonic()
            tell(min(size_bytes, file.size_bytes))
        if time.monotonic() - since > LOCK_IDLE_S:
            return None
        time.sleep(LOCK_POLL_S)
