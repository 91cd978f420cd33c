"""Prompts that were read once: `run --cache` stores them, and a later run starts where they agree.

One file each under CONIFER_HOME/prompts, by the model's identity; the least recently used go first
when there are too many or too large ones. A file that cannot be used is removed in silence: this is
a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conifer_cli import errors, options
from conifer_cli.session import checkpoint
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from conifer_cli.session.session import Session
    from engine.nn.cache import Cache

MIN_TOKENS = 64  # fewer are read as fast as found
NEW_SHARE = 4  # a prompt is stored if more than one in so many of its tokens is new
MAX_BYTES = 4 << 30
MAX_FILES = 64
SUFFIX = ".prompt"


def folder() -> Path:
    """Say where they lie."""
    return options.home() / "prompts"


def recall(session: Session, tokens: list[int]) -> int:
    """Bring the session's cache as far into `tokens` as any stored prompt goes. Gives how far."""
    identity, form = session.identity, session.cache_format
    best, shared = None, session.cache.shared_prefix(tokens) if session.cache else 0
    for path in _files(identity):
        facts = _facts(path)
        if facts is None or (facts["identity"], facts["form"]) != (identity, form):
            continue
        common = _common(facts["tokens"], tokens)
        if common > shared:
            best, shared = path, common
    if best is None or shared < MIN_TOKENS:
        return 0 if best else shared
    session.cache = None
    cache = session.kv_cache(len(tokens))
    if not _restored(session, best, cache):
        return 0
    cache.trim(shared)
    if shared - cache.length >= MIN_TOKENS:
        # A recurrent layer cannot go back to where two prompts part, so this point is kept too.
        with console.Progress("reading the prompt", "tokens", always=False) as progress:
            session.model.prefill(tokens[cache.length : shared], cache, progress.update)
        _store(session, tokens[:shared])
    return shared


def remember(session: Session, tokens: list[int], shared: int) -> None:
    """Store a prompt that was answered, unless most of it came out of the cache."""
    new = len(tokens) - shared
    if len(tokens) >= MIN_TOKENS and new * NEW_SHARE >= len(tokens):
        _store(session, tokens)


def _store(session: Session, tokens: list[int]) -> None:
    """Store the state after these tokens, and make room for it."""
    from engine.nn.cache_state import keep

    cache = session.cache
    assert cache is not None
    cache.trim(len(tokens))
    kept = keep(session.model, cache)
    size_bytes = sum(array.nbytes for array in kept.arrays)
    if size_bytes > MAX_BYTES // 2 or not kept.tokens:
        return
    name = hashlib.sha256(repr((session.cache_format, kept.tokens)).encode()).hexdigest()[:32]
    place = folder() / session.identity[:16]
    facts = {
        "model": session.judged.name,
        "identity": session.identity,
        "form": session.cache_format,
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        _make_room(size_bytes)
        checkpoint.write(place / f"{name}{SUFFIX}", checkpoint.PROMPT, facts, kept)
    except (OSError, console.OutputError) as error:
        console.log(f"conifer: the prompt was not stored: {error}")


def _restored(session: Session, path: Path, cache: Cache) -> bool:
    from engine.errors import CacheStateError, ContextOverflow
    from engine.nn.cache_state import restore

    try:
        _, kept = checkpoint.read(path, checkpoint.PROMPT)
        restore(session.model, kept, cache)
    except ContextOverflow:  # it is longer than this prompt's context
        return False
    except (errors.BadSaved, errors.UsageError, CacheStateError):
        _remove(path)
        return False
    with contextlib.suppress(OSError):  # it is another user's, or on a disk that is only read
        os.utime(path)
    return True


def _remove(path: Path) -> None:
    """Remove a file that cannot be used, where that is allowed."""
    with contextlib.suppress(OSError):
        path.unlink()


def _files(identity: str) -> Iterator[Path]:
    yield from (folder() / identity[:16]).glob(f"*{SUFFIX}")


def _facts(path: Path) -> dict[str, object] | None:
    try:
        return checkpoint.read_facts(path, checkpoint.PROMPT)
    except errors.UsageError:  # another process was quicker to remove it
        return None
    except errors.BadSaved:
        _remove(path)
        return None


def _make_room(size_bytes: int) -> None:
    """Remove the least recently used until one more of this size has room."""
    found = []
    for path in folder().glob(f"*/*{SUFFIX}"):
        try:
            about = path.stat()
        except OSError:
            continue
        found.append((about.st_mtime, about.st_size, path))
    found.sort()
    total = sum(size for _, size, _ in found)
    while found and (total + size_bytes > MAX_BYTES or len(found) >= MAX_FILES):
        _, size, path = found.pop(0)
        path.unlink(missing_ok=True)
        total -= size


def _common(stored: object, tokens: list[int]) -> int:
    assert isinstance(stored, list)
    pairs = zip(stored, tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(stored), len(tokens)))
