"""Stored prompts for `run --cache`: a later run reuses the longest prefix shared with any of them.

Each prompt is one file in CONIFER_HOME/prompts, in a folder named after the model's identity. To
stay within MAX_BYTES and MAX_FILES, the least recently used files are removed. A damaged file is
removed with a note, and the run continues without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.files import files_below
from conifer_cli import errors, options
from conifer_cli.session import checkpoint
from conifer_cli.terminal import console
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from conifer_cli.session.session import Session
    from engine.nn.cache.cache import Cache

MIN_TOKENS = 64  # processing a shorter prompt is as fast as restoring it
NEW_SHARE = 4  # store a prompt if at least 1/NEW_SHARE of its tokens are new
MAX_BYTES = 4 << 30
MAX_FILES = 64
SUFFIX = ".prompt"


def folder() -> Path:
    """Return the folder for stored prompts."""
    return options.home() / "prompts"


def recall(session: Session, tokens: list[int]) -> int:
    """Restore the stored prompt that shares the longest prefix with `tokens`.

    Return the length of that prefix.
    """
    key = session.identity, session.cache_format
    best, shared = None, session.cache.shared_prefix(tokens) if session.cache else 0
    for path in files_below(folder() / session.identity[:16], 0):
        if path.suffix != SUFFIX:
            continue
        header = _header(path)
        if header is None or (header.identity, header.form) != key:
            continue
        common = sum(takewhile(bool, map(eq, header.tokens, tokens)))
        if common > shared:
            best, shared = path, common
    if best is None or shared < MIN_TOKENS:
        return 0 if best else shared
    session.cache = None
    cache = session.kv_cache(len(tokens))
    if not _restored(session, best, cache):
        return 0
    cache.reuse(tokens)
    end = cache.fixed_start(shared, len(tokens))
    if end - cache.length >= MIN_TOKENS:
        # A recurrent layer cannot rewind to where two prompts differ, so store this point too.
        with Progress("processing the prompt", "tokens", always=False) as progress:
            session.model.prefill(tokens[cache.length : end], cache, progress.update)
        _store(session, tokens[:end])
    return shared


def remember(session: Session, tokens: list[int], shared: int) -> None:
    """Store an answered prompt, unless most of it came from the cache."""
    new = len(tokens) - shared
    if len(tokens) >= MIN_TOKENS and new * NEW_SHARE >= len(tokens):
        _store(session, tokens)


def _store(session: Session, tokens: list[int]) -> None:
    from engine.nn.cache.state import dump

    cache = session.cache
    assert cache is not None
    cache.trim(len(tokens))
    kept = dump(session.model, cache)
    size_bytes = sum(array.nbytes for array in kept.arrays)
    if size_bytes > MAX_BYTES // 2 or not kept.tokens:
        return
    identity, form = session.identity, session.cache_format
    name = hashlib.sha256(repr((form, kept.tokens)).encode()).hexdigest()[:32]
    place = folder() / identity[:16]
    facts = {"model": session.report.name, "identity": identity, "form": form}
    try:
        place.mkdir(parents=True, exist_ok=True)
        _make_room(size_bytes)
        checkpoint.write(place / f"{name}{SUFFIX}", checkpoint.SavedHeader.kind, facts, kept)
    except (OSError, errors.OutputError) as error:
        console.note(f"cannot store the prompt: {errors.why(error)}")


def _restored(session: Session, path: Path, cache: Cache) -> bool:
    from engine.errors import CacheStateError, ContextOverflow
    from engine.nn.cache.state import load

    try:
        _, kept = checkpoint.read(path, checkpoint.SavedHeader)
        load(session.model, kept, cache)
    except ContextOverflow:  # longer than this run's context
        return False
    except (errors.BadSaved, errors.UsageError, CacheStateError) as error:
        _remove(path, error)
        return False
    with contextlib.suppress(OSError):  # another user's file, or a read-only disk
        os.utime(path)
    return True


def _remove(path: Path, error: Exception) -> None:
    try:
        path.unlink()
    except OSError:
        return
    console.note(f"removed a stored prompt that cannot be used: {error}")


def _header(path: Path) -> checkpoint.SavedHeader | None:
    try:
        return checkpoint.read_header(path, checkpoint.SavedHeader)
    except errors.UsageError:  # another process has removed it
        return None
    except errors.BadSaved as error:
        _remove(path, error)
        return None


def _make_room(size_bytes: int) -> None:
    found = []
    for path in folder().glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode):
                continue
            found.append((about.st_mtime, about.st_size, path))
    found.sort()
    total = sum(size for _, size, _ in found)
    while found and (total + size_bytes > MAX_BYTES or len(found) >= MAX_FILES):
        _, size, path = found.pop(0)
        path.unlink(missing_ok=True)
        total -= size
