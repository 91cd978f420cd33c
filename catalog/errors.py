"""Every error the catalog raises; all derive from CatalogError."""

from __future__ import annotations


class CatalogError(Exception):
    """Base class of the catalog's errors."""


class UnknownModel(CatalogError):
    """No catalog entry has this name. `closest` is the most similar id, or None."""

    def __init__(self, name: str, closest: str | None = None) -> None:
        super().__init__(f"no model is called {name!r}")
        self.name = name
        self.closest = closest


class ModelNotFound(CatalogError):
    """A path, repository, file or quantisation does not exist."""


class AccessDenied(CatalogError):
    """The Hub needs a token or an accepted licence."""


class HubUnreachable(CatalogError):
    """The Hub did not answer, or offline mode is on."""


class BadSetting(HubUnreachable):
    """An environment variable for the Hub's client is invalid; the message names it."""


class IndexUnreachable(HubUnreachable):
    """The Python package index did not answer, or neither pip nor uv is installed."""


class VerificationError(CatalogError):
    """Downloaded bytes have the wrong SHA-256. `want` and `got` are hex digests."""

    def __init__(self, name: str, want: str, got: str) -> None:
        super().__init__(f"{name}: SHA-256 is {got}, expected {want}")
        self.want = want
        self.got = got


class NotAModel(CatalogError):
    """Downloaded bytes are not a GGUF file; none are kept."""


class StoreError(CatalogError):
    """The disk is read-only, not writable for this user, or full."""


class NoSpace(StoreError):
    """A download would leave less than 1 GiB of disk space free; it was not started."""
