"""A ranged, resumable, verified transfer from the hub into the cache.

Bytes go to a partial file of this process alone, hashed as they are written; only when the SHA-256
is the one the hub promised does an atomic rename make them a blob, and only then does a snapshot
point at it. A partial file that its process left behind is adopted by renaming it, which one
process alone can win. So the lock, which is the one huggingface_hub takes, saves bandwidth and
nothing else depends on it. It knows no terminal: progress is told to the caller.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from catalog.disk import disk_failures, require_space
from catalog.errors import CatalogError, VerificationError
from catalog.hub import Answer, Hub, Interrupted, RemoteFile
from catalog.partial import Partial, claim
from catalog.store import Store

# Told (bytes here, bytes in all) of everything that `pull` was asked for.
Progress = Callable[[int, int], None]

MAGIC = b"GGUF"
SEGMENT_BYTES = 8 * 2**30  # one request's worth: some hosts refuse to send 50 GB at once
MADE_HEADWAY_BYTES = 2**20  # so much new forgives the failures before it
MAX_WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How a transfer takes failures: `retries` in a row, waiting `wait_s`, twice that, ..."""

    retries: int = 5
    wait_s: float = 1.0


def pull(
    hub: Hub,
    files: Sequence[RemoteFile],
    store: Store,
    on_progress: Progress,
    patience: Patience = Patience(),
    on_wait: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Fetch files that are not here yet, one after the other, and return their paths in order.

    on_wait: told that another process is fetching a file, before it is waited for.
    Raises NoSpace before the first byte if the disk has not the space, HubUnreachable once
    patience is at its end, VerificationError (and publishes nothing) for other bytes than promised.
    What was fetched of an unfinished file is kept, and the next pull goes on from there.
    """
    with disk_failures(store.hub_cache):
        missing_bytes = _missing_bytes(files, store)
        if missing_bytes:
            require_space(store.hub_cache, missing_bytes)
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:
        before = done

        def tell(of_file: int, before: int = before) -> None:
            on_progress(before + of_file, total)

        with disk_failures(store.hub_cache):
            if not _is_here(file, store):
                _fetch(hub, file, store, tell, patience, on_wait)
            _point(file, store)
        done += file.size_bytes
        on_progress(done, total)
    with suppress(OSError):  # a read-only cache that holds the files is as good
        for file in files:
            _write_ref(file, store)
    return [store.pointer_path(file) for file in files]


def _missing_bytes(files: Sequence[RemoteFile], store: Store) -> int:
    """Return how many bytes are still to fetch, less what lies in partial files."""
    need = 0
    for file in files:
        if not _is_here(file, store):
            blob = store.blob_path(file)
            kept = max(
                (p.stat().st_size for p in blob.parent.glob(f"{blob.name}.*.part")), default=0
            )
            need += max(file.size_bytes - kept, 0)
    return need


def _is_here(file: RemoteFile, store: Store) -> bool:
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
    on_wait: Callable[[], None],
) -> None:
    """Fetch, verify and publish one blob."""
    blob = store.blob_path(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(store, file, on_wait):
        if _is_here(file, store):  # another process was quicker
            return
        with claim(blob, file.size_bytes) as partial:
            tell(partial.size_bytes)
            _fill(hub, file, partial, tell, patience)
            _check_magic(file, partial)
            got = partial.digest()
            if got != file.sha256:
                partial.discard()
                raise VerificationError(file.name, file.sha256 or "", got)
            partial.publish(blob)


def _fill(
    hub: Hub, file: RemoteFile, partial: Partial, tell: Callable[[int], None], patience: Patience
) -> None:
    """Append to a partial file until it has every byte, however often the transfer is cut."""
    failures, best = 0, partial.size_bytes
    while partial.size_bytes < file.size_bytes:
        start = partial.size_bytes
        end = min(start + SEGMENT_BYTES, file.size_bytes)
        try:
            with hub.open(file, start, end, partial.etag if start else None) as answer:
                _append(answer, file, partial, tell)
        except Interrupted as error:
            if partial.size_bytes >= best + MADE_HEADWAY_BYTES:
                failures, best = 0, partial.size_bytes
            failures += 1
            if failures > patience.retries:
                raise
            wait = patience.wait_s * 2 ** (failures - 1) * random.uniform(1, 1.25)
            time.sleep(min(max(wait, error.retry_after_s or 0), MAX_WAIT_S))


def _append(
    answer: Answer, file: RemoteFile, partial: Partial, tell: Callable[[int], None]
) -> None:
    """Write one answer's bytes. Raises Interrupted if it ends before its range does."""
    changed = answer.start and partial.etag and answer.etag != partial.etag
    if changed:
        partial.restart()
        raise Interrupted(f"{file.name}: the file changed on the server")
    if answer.start != partial.size_bytes:
        partial.restart()  # the server sent it from the beginning
    partial.remember(answer.etag)
    for chunk in answer.chunks:
        if partial.size_bytes + len(chunk) > file.size_bytes:
            partial.restart()
            raise Interrupted(f"{file.name}: the server sent more than {file.size_bytes:,} bytes")
        partial.write(chunk)
        if partial.size_bytes >= len(MAGIC):
            _check_magic(file, partial)
        tell(partial.size_bytes)
    if partial.size_bytes < answer.end:
        raise Interrupted(f"{file.name}: the answer ended early")


def _check_magic(file: RemoteFile, partial: Partial) -> None:
    if not partial.starts_with(MAGIC):
        partial.discard()
        raise CatalogError(f"{file.name} is not a GGUF file")


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
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    temporary.write_text(file.commit)
    os.replace(temporary, ref)


@contextmanager
def _lock(store: Store, file: RemoteFile, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that huggingface_hub takes for this blob; go on without it if there is none."""
    import fcntl

    folder = store.hub_cache / ".locks" / store.repository_folder(file.repository).name
    handle = -1
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / f"{file.sha256}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle >= 0:
            os.close(handle)
