"""The catalog of models: which models exist, where their files are, and how to download them.

`registry` reads `models.toml`, `resolve` turns a name into a `Reference`, `links` parses `hf:`
names and links, and `file_names` parses file names. `quants` orders quantisations by quality. `hub`
reads from the Hugging Face Hub, `download` writes to disk, and `store` finds downloaded models.
`text` decodes text; `files` provides atomic writes and validated JSON. `licences` records which
licences the user has accepted. Importing this package loads no network library.
"""

from __future__ import annotations

from catalog.errors import AccessDenied as AccessDenied
from catalog.errors import BadName as BadName
from catalog.errors import BadSetting as BadSetting
from catalog.errors import CatalogError as CatalogError
from catalog.errors import HubUnreachable as HubUnreachable
from catalog.errors import IndexUnreachable as IndexUnreachable
from catalog.errors import ModelNotFound as ModelNotFound
from catalog.errors import NoSpace as NoSpace
from catalog.errors import NotAModel as NotAModel
from catalog.errors import StoreError as StoreError
from catalog.errors import UnknownModel as UnknownModel
from catalog.errors import VerificationError as VerificationError
from catalog.registry import CatalogFile as CatalogFile
from catalog.registry import Entry as Entry
from catalog.registry import Package as Package
from catalog.registry import Sampling as Sampling
from catalog.registry import entries as entries
from catalog.registry import starter_entry as starter_entry
from catalog.registry import status as status
from catalog.resolve import Reference as Reference
from catalog.resolve import resolve as resolve
