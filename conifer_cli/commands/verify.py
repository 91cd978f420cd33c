"""`conifer verify`: hash models again and compare with the expected SHA-256."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conifer_cli import errors
from conifer_cli.acquire import locate, open_store
from conifer_cli.commands.list import name_of
from conifer_cli.commands.rm import installed_model
from conifer_cli.errors import UsageError
from conifer_cli.terminal import console
from conifer_cli.terminal.format import table
from conifer_cli.terminal.progress import Progress

if TYPE_CHECKING:
    from catalog.hub.client import RemoteFile
    from catalog.store.source import Installed

OK, DAMAGED, UNKNOWN = "ok", "damaged", "no hash is known"


@dataclass(frozen=True)
class Check:
    """One file of a model: what its SHA-256 must be, if anyone said, and what it is."""

    name: str
    path: Path
    want: str | None
    got: str

    @property
    def outcome(self) -> str:
        """Say how it ended."""
        return UNKNOWN if self.want is None else OK if self.got == self.want else DAMAGED


def verify_models(names: list[str], as_json: bool) -> int:
    """Hash models again, all that are here where none is named. Exit code 3 if one is damaged."""
    checks = list(_checks(names))
    if as_json:
        console.out_json(
            [
                {
                    "name": check.name,
                    "path": str(check.path),
                    "expected_sha256": check.want,
                    "sha256": check.got,
                    "outcome": check.outcome,
                }
                for check in checks
            ]
        )
    else:
        console.out(table([(check.name, check.outcome, str(check.path)) for check in checks]))
    damaged = [check for check in checks if check.outcome == DAMAGED]
    for check in damaged:
        console.say(f"conifer: {check.path}: SHA-256 is {check.got}, expected {check.want}")
    for name in dict.fromkeys(check.name for check in damaged):
        console.say(f"`conifer rm {name}` and `conifer pull {name}` fetch it again.")
    return errors.BAD_MODEL if damaged else errors.OK


def hashed(model: Installed, listed: Sequence[RemoteFile] = ()) -> Iterator[Check]:
    """Hash a model's files. listed: the hub's, whose hashes count where none is known here."""
    from catalog.store.source import hash_file

    for path, want in zip(model.paths, model.expected_hashes(listed), strict=True):
        total = path.stat().st_size
        with Progress(path.name) as progress:
            got = hash_file(path, lambda done, total=total: progress.update(done, total))  # type: ignore[misc]
        yield Check(name_of(model), path, want, got)


def _checks(names: list[str]) -> Iterator[Check]:
    store = open_store()
    models = [installed_model(locate(name)) for name in names] or store.installed()
    if not models:
        raise UsageError("no model is here to verify", "`conifer list` shows what is.")
    for model in models:
        yield from hashed(model)
