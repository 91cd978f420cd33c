"""`conifer verify`: check the SHA-256 hashes of downloaded models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.store.store import name_of
from conifer_cli import errors
from conifer_cli.acquire import locate
from conifer_cli.commands.rm import installed_model
from conifer_cli.errors import UsageError
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.layout import BAD, GOOD, WARNING, Column, Grid
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile
    from catalog.store.store import Installed

OK, DAMAGED, UNKNOWN = "ok", "damaged", "no hash is known"
STYLES = {OK: GOOD, DAMAGED: BAD, UNKNOWN: WARNING}


@dataclass(frozen=True)
class HashedFile:
    """One model file, with its expected SHA-256 (None if unknown) and its actual SHA-256."""

    name: str
    path: Path
    want: str | None
    got: str

    @property
    def outcome(self) -> str:
        return UNKNOWN if self.want is None else OK if self.got == self.want else DAMAGED

    def document(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        hashes = {"expected_sha256": self.want, "sha256": self.got}
        return {"name": self.name, "path": str(self.path), **hashes, "outcome": self.outcome}

    @property
    def problem(self) -> str:
        return f"{self.path}: expected SHA-256 {self.want}, got {self.got}"


def verify_models(names: list[str], as_json: bool) -> int:
    """Hash the named models, or all models on disk. Return exit code 3 if a file is damaged."""
    models = [installed_model(locate(name)) for name in names] or open_store().installed()
    if not models:
        raise UsageError("no models to verify", "Run `conifer pull MODEL` to download one.")
    files = [file for model in models for file in hashed(model)]
    if as_json:
        console.print_json([file.document() for file in files])
    else:
        rows = [(file.name, (STYLES[file.outcome], file.outcome), str(file.path)) for file in files]
        console.print_lines([Grid([Column(), Column(), Column(rank=1)], rows)])
    damaged = [file for file in files if file.outcome == DAMAGED]
    for file in damaged:
        console.problem(file.problem)
    for name in dict.fromkeys(file.name for file in damaged):
        console.log(f"To download it again, run `conifer rm {name}`, then `conifer pull {name}`.")
    return errors.BAD_MODEL if damaged else errors.OK


def hashed(model: Installed, listed: Sequence[RemoteFile] = ()) -> Iterator[HashedFile]:
    """Hash a model's files.

    listed: the Hub's files, which supply the expected hashes that are not stored on disk.
    """
    from catalog.store.disk import disk_failures, hash_file

    for path, want in zip(model.paths, model.expected_hashes(listed), strict=True):
        with disk_failures(path):
            total = path.stat().st_size
        with Progress(path.name) as progress:
            got = hash_file(path, lambda done, total=total: progress.update(done, total))  # type: ignore[misc]
        yield HashedFile(name_of(model), path, want, got)
