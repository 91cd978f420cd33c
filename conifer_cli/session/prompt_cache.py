"""Stored prompts for `--cache`: a later run or server reuses the longest prefix shared with one.

Each prompt is one file in CONIFER_HOME/prompts, in a folder named after the model's identity. To
stay within MAX_BYTES and MAX_FILES, the least recently used files are removed. A damaged file is
removed with a note, and the run continues without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
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
    from engine.nn.cache.state import CacheState

MIN_TOKENS = 64  # processing a shorter prompt is as fast as restoring it
NEW_SHARE = 4  # store a prompt if at least 1/NEW_SHARE of its tokens are new
MAX_BYTES = 4 << 30
MAX_FILES = 64
SUFFIX = ".prompt"


def folder() -> Path:
    """Return the folder for stored prompts."""
    return options.home() / "prompts"


class PromptStore:
    """The stored prompts of one model in one cache format. name: the model's, for the files."""

    def __init__(self, name: str, identity: str, form: str) -> None:
        self.name, self.identity, self.form = name, identity, form
        self._headers: dict[Path, tuple[tuple[int, int], checkpoint.SavedHeader | None]] = {}

    def find(self, tokens: list[int]) -> tuple[Path | None, int]:
        """Return the file that shares the longest prefix with `tokens`, and that prefix's length.

        A prefix shorter than MIN_TOKENS is not worth restoring.
        """
        best, shared = None, MIN_TOKENS - 1
        for path in files_below(folder() / self.identity[:16], 0):
            header = self._known(path) if path.suffix == SUFFIX else None
            if header is None or (header.identity, header.form) != (self.identity, self.form):
                continue
            common = sum(takewhile(bool, map(eq, header.tokens, tokens)))
            if common > shared:
                best, shared = path, common
        return best, shared if best else 0

    def restore(self, path: Path, put: Callable[[CacheState], None]) -> bool:
        """Read a file and `put` its state. False if it cannot be used; a damaged one is removed."""
        from engine.errors import CacheStateError, ContextOverflow

        try:
            put(checkpoint.read(path, checkpoint.SavedHeader)[1])
        except ContextOverflow:  # longer than the context
            return False
        except (errors.BadSaved, errors.UsageError, CacheStateError) as error:
            _remove(path, error)
            return False
        with contextlib.suppress(OSError):  # another user's file, or a read-only disk
            os.utime(path)
        return True

    def store(self, kept: CacheState) -> None:
        """Store a state, unless it is empty or too large."""
        size_bytes = sum(array.nbytes for array in kept.arrays)
        if size_bytes > MAX_BYTES // 2 or not kept.tokens:
            return
        name = hashlib.sha256(repr((self.form, kept.tokens)).encode()).hexdigest()[:32]
        place = folder() / self.identity[:16]
        facts = {"model": self.name, "identity": self.identity, "form": self.form}
        try:
            place.mkdir(parents=True, exist_ok=True)
            _make_room(size_bytes)
            checkpoint.write(place / f"{name}{SUFFIX}", checkpoint.SavedHeader.kind, facts, kept)
        except (OSError, errors.OutputError) as error:
            console.note(f"cannot store the prompt: {errors.why(error)}")

    def _known(self, path: Path) -> checkpoint.SavedHeader | None:
        """Read a file's header once."""
        try:
            about = path.stat()
        except OSError:
            return None
        key = about.st_mtime_ns, about.st_size
        if path not in self._headers or self._headers[path][0] != key:
            self._headers[path] = key, _header(path)
        return self._headers[path][1]


def worth_storing(tokens: int, shared: int) -> bool:
    """True if enough of a prompt is new: not among the `shared` tokens of a stored one."""
    return tokens >= MIN_TOKENS and (tokens - shared) * NEW_SHARE >= tokens


def recall(session: Session, tokens: list[int]) -> int:
    """Restore the stored prompt that shares the longest prefix with `tokens`.

    Return the length of that prefix.
    """
    from engine.nn.cache.state import load

    held = session.cache.shared_prefix(tokens) if session.cache else 0
    store = _store_of(session)
    best, shared = store.find(tokens)
    if best is None or shared <= held:
        return held
    session.cache = None
    cache = session.kv_cache(len(tokens))
    if not store.restore(best, lambda kept: load(session.model, kept, cache)):
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
    if worth_storing(len(tokens), shared):
        _store(session, tokens)


def _store_of(session: Session) -> PromptStore:
    return PromptStore(session.report.name, session.identity, session.cache_format)


def _store(session: Session, tokens: list[int]) -> None:
    from engine.nn.cache.state import dump

    cache = session.cache
    assert cache is not None
    cache.trim(len(tokens))
    _store_of(session).store(dump(session.model, cache))


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
