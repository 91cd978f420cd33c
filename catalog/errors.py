"""The catalog's exceptions. All derive from CatalogError."""

from __future__ import annotations


class CatalogError(Exception):
    """Base class for the catalog's exceptions."""


class UnknownModel(CatalogError):
    """The catalog has no model with this name. `closest` is the most similar id, or None."""

    def __init__(self, name: str, closest: str | None = None) -> None:
        super().__init__(f"no model named {name!r}")
        self.name = name
        self.closest = closest


class BadName(UnknownModel):
    """An `hf:` name or a link that leads to no GGUF model. `problem` says why."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name)
        self.args = (problem,)


class ModelNotFound(CatalogError):
    """A path, repository, file or quantisation does not exist."""


class SeveralModels(ModelNotFound):
    """A name matches several models. `names` lists the files of those that are not split."""

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


class AccessDenied(CatalogError):
    """The Hub requires a token or an accepted licence."""


class HubUnreachable(CatalogError):
    """The Hub did not respond, or offline mode is on."""


class BadSetting(HubUnreachable):
    """An environment variable that configures the Hub client is invalid. The message names it."""


class IndexUnreachable(HubUnreachable):
    """PyPI did not respond, or neither pip nor uv is installed."""


class VerificationError(CatalogError):
    """A downloaded file has the wrong SHA-256. `want` and `got` are hex digests."""

    def __init__(self, name: str, want: str, got: str) -> None:
        super().__init__(f"{name}: SHA-256 is {got}, expected {want}")
        self.want = want
        self.got = got


class NotAModel(CatalogError):
    """A downloaded file is not a GGUF file. It is deleted."""


class StoreError(CatalogError):
    """The disk is full or read-only, permission is denied, or a path is unsafe."""


class NoSpace(StoreError):
    """The download would leave less than 1 GiB of disk space free, so it was not started."""


def why(error: Exception) -> str:
    """Return the reason for a failure, without the error number and the path of an OSError."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
