"""Past conversations, in an SQLite database with full-text search that only the user can read.

A damaged database, or one that cannot be written, never stops a conversation: nothing is kept.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.files import is_own, open_own, parse_json
from conifer_cli import options
from conifer_cli.errors import UsageError
from conifer_cli.terminal import console

if TYPE_CHECKING:
    import sqlite3

    from conifer_cli.fit.verdict import FitReport
    from conifer_cli.session.session import Messages

FORMAT = 1
MAX_CONVERSATIONS = 2000  # the oldest are removed
MAX_TEXT = 4 << 20  # characters; a longer conversation is not kept
TITLE_LENGTH = 200
_COLUMNS = "id, started, changed, model, title, saved, messages"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started TEXT, changed TEXT, model TEXT, title TEXT,
    saved TEXT, messages TEXT);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(body);
"""


@dataclass(frozen=True)
class PastConversation:
    """A conversation that was kept. saved: the file with the model's state, or an empty string."""

    id: int
    started: str
    changed: str
    model: str
    title: str
    saved: str
    messages: Messages


def path() -> Path:
    """Return the database's path."""
    return options.home() / "conversations.db"


def is_on(wanted: bool) -> bool:
    """True if conversations are kept. wanted: the option --history."""
    return wanted and not os.environ.get("CONIFER_NOHISTORY")


def model_of(report: FitReport) -> str:
    """Return the name to run a model by again: a path is absolute."""
    path = report.reference.path if report.reference else None
    return str(path.absolute()) if path else report.name


def keep(number: int | None, model: str, messages: Messages, saved: str = "") -> int | None:
    """Store a conversation and return its number, or None if that is not possible.

    number: of the conversation to replace, or None for a new one.
    """
    asked = [message["content"] for message in messages if message["role"] == "user"]
    text = json.dumps(messages)
    if not asked or len(text) > MAX_TEXT:
        return number
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    title = " ".join(asked[0].split())[:TITLE_LENGTH]
    body = "\n".join(message["content"] for message in messages)
    values = (now, model, title, saved, text)
    with suppress(OSError), _opened() as base:
        if number is None:
            added = base.execute(
                "INSERT INTO conversations (changed, model, title, saved, messages, started)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*values, now),
            )
            number = added.lastrowid
        else:
            base.execute(
                "UPDATE conversations SET changed=?, model=?, title=?, saved=?, messages=?"
                " WHERE id=?",
                (*values, number),
            )
        base.execute("DELETE FROM texts WHERE rowid=?", (number,))
        base.execute("INSERT INTO texts (rowid, body) VALUES (?, ?)", (number, body))
        kept = "SELECT id FROM conversations ORDER BY changed DESC, id DESC LIMIT ?"
        for table, column in (("conversations", "id"), ("texts", "rowid")):
            base.execute(
                f"DELETE FROM {table} WHERE {column} NOT IN ({kept})", (MAX_CONVERSATIONS,)
            )
        return number
    return None


def latest(count: int) -> list[PastConversation]:
    """Return the conversations that changed last, newest first."""
    return _select("ORDER BY changed DESC, id DESC LIMIT ?", count)


def search(words: str, count: int) -> list[PastConversation]:
    """Return the conversations that contain every word, or a word that begins so, newest first."""
    found = re.findall(r"\w+", words)
    if not found:
        raise UsageError("expected words to search for")
    query = " ".join(f'"{word}"*' for word in found)
    where = "WHERE id IN (SELECT rowid FROM texts WHERE texts MATCH ?)"
    return _select(f"{where} ORDER BY changed DESC, id DESC LIMIT ?", query, count)


def get(number: int) -> PastConversation:
    """Return a conversation. Raises UsageError if there is none with this number."""
    found = _select("WHERE id = ?", number)
    if not found:
        raise UsageError(
            f"there is no conversation {number}", "Run `conifer chats` to list conversations."
        )
    return found[0]


def last() -> PastConversation:
    """Return the conversation that changed last. Raises UsageError if there is none."""
    found = latest(1)
    if not found:
        raise UsageError("there is no conversation to continue", "Run `conifer run` to start one.")
    return found[0]


def remove(numbers: Sequence[int] | None) -> int:
    """Delete conversations, or all of them. Return how many. Raises UsageError."""
    try:
        with _opened() as base:
            if numbers is None:
                done = base.execute("DELETE FROM conversations").rowcount
                base.execute("DELETE FROM texts")
                return done
            marks = ", ".join("?" for _ in numbers)
            base.execute(f"DELETE FROM texts WHERE rowid IN ({marks})", tuple(numbers))
            deleted = base.execute(
                f"DELETE FROM conversations WHERE id IN ({marks})", tuple(numbers)
            )
            return deleted.rowcount
    except OSError as error:
        raise UsageError(f"cannot change {path()}: {error}") from error


def _select(rest: str, *values: Any) -> list[PastConversation]:
    if not os.path.exists(path()):
        return []
    try:
        with _opened() as base:
            rows = base.execute(f"SELECT {_COLUMNS} FROM conversations {rest}", values).fetchall()
    except OSError as error:
        console.note(f"cannot read {path()}: {error}")
        return []
    return [found for row in rows if (found := _past(row)) is not None]


def _past(row: tuple[Any, ...]) -> PastConversation | None:
    number, *texts, messages = row
    found = parse_json(messages, list[dict[str, str]]) if isinstance(messages, str) else None
    roles = ("system", "user", "assistant")
    sound = isinstance(number, int) and all(isinstance(text, str) for text in texts)
    if not found or not sound or any(m.get("role") not in roles for m in found):
        return None
    if not all("content" in message for message in found):
        return None
    started, changed, model, title, saved = texts
    return PastConversation(number, started, changed, model, title, saved, found)


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    """Open the database in a transaction. Raises OSError for every failure."""
    import sqlite3

    place = path()
    place.parent.mkdir(parents=True, exist_ok=True)
    if not is_own(place):
        os.close(open_own(place, os.O_RDWR, 0o600))
    base = None
    try:
        base = sqlite3.connect(place, timeout=2)
        base.execute("PRAGMA secure_delete = ON")
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            raise OSError(f"it has format {version}, but this Conifer reads format {FORMAT}")
        base.executescript(_SCHEMA)
        base.execute(f"PRAGMA user_version = {FORMAT}")
        with base:
            yield base
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    finally:
        if base is not None:
            base.close()
