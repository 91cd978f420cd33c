"""Validate a Hub's response headers and file listings.

Two tables hold one check for each header and each JSON value that the client reads. A value that
fails its check is treated as missing, so all other code sees only types and ranges it expects,
whatever the server sends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from catalog.file_names import is_repository, is_safe
from catalog.files import parse_json
from catalog.hub.paths import COMMIT, SHA256

MAX_SIZE_BYTES = 2**50
MAX_DATE_LENGTH = 64  # characters

_NUMBER = "([0-9]{1,15})"
_HEADERS = {
    "Content-Encoding": re.compile("(identity)?", re.IGNORECASE),
    "Content-Length": re.compile(_NUMBER),
    "Content-Range": re.compile(f"bytes {_NUMBER}-{_NUMBER}/{_NUMBER}", re.IGNORECASE),
    "ETag": re.compile('((?:W/)?"[!#-~]{1,200}")'),
    "Retry-After": re.compile("([0-9]{1,6})"),
    "X-Error-Code": re.compile("([A-Za-z]{1,64})"),
}

Check = Callable[[Any], object]  # returns a truthy result for a valid value


def _text(test: Check) -> Check:
    return lambda value: type(value) is str and test(value)


_VALUES: dict[str, Check] = {
    "id": _text(is_repository),
    "sha": _text(COMMIT.fullmatch),
    "siblings": lambda value: type(value) is list,
    "rfilename": _text(is_safe),
    "size": lambda value: type(value) is int and 0 <= value <= MAX_SIZE_BYTES,
    "blobId": _text(re.compile("[0-9a-f]{1,64}").fullmatch),
    "lfs": lambda value: type(value) is dict,
    "sha256": _text(SHA256.fullmatch),
}


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file in a listing. `sha256` is None if it is not in large file storage."""

    name: str
    size_bytes: int
    sha256: str | None
    etag: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit. `repository` is the Hub's spelling, or None if not stated."""

    repository: str | None
    commit: str
    files: tuple[ListedFile, ...]


def header(headers: Mapping[str, str], name: str) -> tuple[str, ...] | None:
    """Return the parts of a header's value, or None if it is missing or malformed."""
    found = _HEADERS[name].fullmatch(headers.get(name, ""))
    return found.groups() if found else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the delay in a Retry-After header, a number of seconds or a date; None if neither."""
    from email.utils import parsedate_to_datetime

    if seconds := header(headers, "Retry-After"):
        return float(seconds[0])
    date = headers.get("Retry-After", "")[:MAX_DATE_LENGTH]
    try:
        return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None


def listing(body: bytes) -> Listing | None:
    """Parse a file listing, without the files that are malformed. None if there is no commit."""
    table = parse_json(body, dict[str, Any])
    commit = _value(table, "sha")
    if commit is None:
        return None
    files = (_file(one) for one in _value(table, "siblings") or ())
    return Listing(_value(table, "id"), commit, tuple(file for file in files if file))


def _file(table: object) -> ListedFile | None:
    lfs = _value(table, "lfs")
    name, sha256 = _value(table, "rfilename"), _value(lfs, "sha256")
    size_bytes = _value(table if lfs is None else lfs, "size")
    if name is None or size_bytes is None:
        return None
    return ListedFile(name, size_bytes, sha256, sha256 or _value(table, "blobId") or "")


def _value(table: object, key: str) -> Any:
    value = table.get(key) if isinstance(table, dict) else None
    return value if _VALUES[key](value) else None
