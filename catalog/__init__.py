"""Conifer's catalog: which models exist, and where their weights are.

It knows names, facts, the hub and the disk. It knows no terminal, no tensors and no environment
variable of Conifer's. Importing it costs no network library: `catalog.hub.client`,
`catalog.download.pull`, `catalog.download.package_index` and `catalog.store.cache` are imported by
those who need them.
"""

from __future__ import annotations

from catalog.entry import Entry, FileFacts, PackageSource, Sampling, status
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
from catalog.facts import entries, starter_entry
from catalog.resolve import Reference, resolve

__all__ = [
    "AccessDenied",
    "BadSetting",
    "CatalogError",
    "Entry",
    "FileFacts",
    "HubUnreachable",
    "IndexUnreachable",
    "ModelNotFound",
    "NoSpace",
    "NotAModel",
    "PackageSource",
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
