"""Versions of installed Python packages."""

from __future__ import annotations

DISTRIBUTION = "conifer-cli"
NOT_INSTALLED = "(running from source)"


def installed_version(distribution: str = DISTRIBUTION) -> str | None:
    """Return the version of an installed package, or None if it is missing."""
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
