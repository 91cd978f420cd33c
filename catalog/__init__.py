"""The catalog of models: which exist, where their files are, and how to get them.

`registry` reads `models.toml`; `resolve` turns a name into a `Reference`; `hub` reads from the
Hugging Face Hub, `download` writes to disk, and `store` finds what is there. Settings come from the
caller. Importing this package loads no network library.
"""

from __future__ import annotations

from catalog.errors import (
    AccessDenied,
    BadSetting,
    CatalogError,
    HubUnreachable,
    IndexUnreachable,
    ModelNotFound,
    NoSpace,
    NotAModel,
    StoreError,
    UnknownModel,
    VerificationError,
)
from catalog.registry import CatalogFile, Entry, Package, Sampling, entries, starter_entry, status
from catalog.resolve import Reference, resolve

__all__ = [
    "AccessDenied",
    "BadSetting",
    "CatalogError",
    "CatalogFile",
    "Entry",
    "HubUnreachable",
    "IndexUnreachable",
    "ModelNotFound",
    "NoSpace",
    "NotAModel",
    "Package",
    "Reference",
    "Sampling",
    "StoreError",
    "UnknownModel",
    "VerificationError",
    "entries",
    "resolve",
    "starter_entry",
    "status",
]
