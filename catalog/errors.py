"""What can go wrong between a name and a verified file.

CatalogError
├── UnknownModel       no entry of that name; carries the closest one
├── ModelNotFound      a path, repository or file that does not exist
├── AccessDenied       the hub wants a token, or the licence accepted
├── HubUnreachable     no answer from the hub, or we are offline
│   ├── BadSetting     a variable that the hub's client reads has a value it cannot use
│   └── IndexUnreachable  no answer from the Python package index, or nothing to ask it with
├── VerificationError  the bytes that came are not the bytes that were promised
├── NotAModel          the bytes that came are no GGUF file
└── StoreError         the disk: read-only, not ours to write, full while it was written
    └── NoSpace        a transfer would fill it; nothing was written
"""

from __future__ import annotations


class CatalogError(Exception):
    """Any failure the catalog foresees."""


class UnknownModel(CatalogError):
    """No catalog entry has this name. `closest` is the id that resembles it most, if one does."""

    def __init__(self, name: str, closest: str | None = None) -> None:
        super().__init__(f"no model is called {name!r}")
        self.name = name
        self.closest = closest


class ModelNotFound(CatalogError):
    """A path, repository, file or quantisation that is not there."""


class AccessDenied(CatalogError):
    """The hub refuses this file to us: a token or an accepted licence is needed."""


class HubUnreachable(CatalogError):
    """The hub did not answer, or this process is offline."""


class BadSetting(HubUnreachable):
    """A variable that sets up the hub's client makes no sense; the message names it."""


class IndexUnreachable(HubUnreachable):
    """The Python package index did not answer, or there is neither pip nor uv to ask it."""


class VerificationError(CatalogError):
    """The bytes received are not the bytes promised. `want` and `got` are SHA-256 hex digests."""

    def __init__(self, name: str, want: str, got: str) -> None:
        super().__init__(f"{name}: SHA-256 is {got}, expected {want}")
        self.want = want
        self.got = got


class NotAModel(CatalogError):
    """The bytes received are no GGUF file; none are kept."""


class StoreError(CatalogError):
    """The disk is read-only, not ours to write to, or became full."""


class NoSpace(StoreError):
    """A transfer would leave less than 1 GiB of the disk free; it was not begun."""
