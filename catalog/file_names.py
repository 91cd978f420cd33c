"""Parse file names: quantisations, part numbers and safe paths.

The same rules apply to the Hub's file listings and the local cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from catalog.errors import ModelNotFound

DEFAULT_QUANT = "Q4_K_M"

_QUANT = (
    r"(?:UD-)?(?:I?Q[1-8](?:_[01])?(?:_K)?(?:_(?:XXS|XS|S|M|L|XL|NL))?(?:_[48]_[48])?"
    r"|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?)"
)
_LABEL = re.compile(rf"(?:^|[-._])({_QUANT})$", re.IGNORECASE)
_FOLDER = re.compile(_QUANT, re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NAMESPACE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_NAMESPACE}/{_NAMESPACE}")
_ASKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NOT_A_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileSet:
    """The GGUF files of one model, in part order. `missing` lists the missing part numbers."""

    quant: str | None
    names: tuple[str, ...]
    missing: tuple[int, ...] = ()


def is_repository(text: str) -> bool:
    """True if `text` is a valid repository name, `organisation/repository`."""
    return bool(_REPOSITORY.fullmatch(text)) and "--" not in text and ".." not in text


def is_safe(name: str) -> bool:
    """True if an untrusted name stays inside a folder when joined to it."""
    try:
        segments = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return len(name) <= 1024 and all(
        0 < len(segment) <= 200
        and segment not in (b".", b"..")
        and not any(byte < 32 or byte in b"\\:\x7f" for byte in segment)
        for segment in segments
    )


def normal_quant(text: str) -> str | None:
    """Normalise the name of a quantisation ("q4_k_m" -> "Q4_K_M"); None if malformed."""
    return text.upper() if _ASKED.fullmatch(text) else None


def quant_of(name: str) -> str | None:
    """Return the quantisation in a file name, or else in its folder's name, or None."""
    *folders, last = _PART.sub(".gguf", name).split("/")
    found = _LABEL.search(last.removesuffix(".gguf").removesuffix(".GGUF"))
    if found:
        return found[1].upper()
    if folders and _FOLDER.fullmatch(folders[-1]):
        return folders[-1].upper()
    return None


def parts(first: str) -> tuple[str, ...]:
    """Return the names of all parts of a model, given the name of the first part."""
    found = _PART.search(first)
    if not found:
        return (first,)
    stem, count = first[: found.start()], int(found[2])
    return tuple(f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))


def file_sets(names: Iterable[str]) -> tuple[FileSet, ...]:
    """Group GGUF file names by model. Skips vision projectors and importance matrices."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names):
        if not name.lower().endswith(".gguf") or _NOT_A_MODEL.search(name.rsplit("/", 1)[-1][:-5]):
            continue
        found = _PART.search(name)
        number, count = (int(found[1]), int(found[2])) if found else (1, 1)
        stem = name[: found.start()] if found else name
        groups.setdefault((stem, count), {})[number] = name
    return tuple(
        FileSet(
            quant=quant_of(next(iter(members.values()))),
            names=tuple(members[i] for i in sorted(members)),
            # Capped, because a name can claim up to 99,999 parts.
            missing=tuple(i for i in range(1, min(count, 1000) + 1) if i not in members),
        )
        for (_, count), members in groups.items()
    )


def select(
    names: Iterable[str],
    where: str,
    *,
    quant: str | None = None,
    file: str | None = None,
    known: tuple[str, ...] = (),
) -> FileSet:
    """Select one model in a repository.

    Selects by `file` if given, or else by the catalog's `known` names, or else by `quant`. If none
    of them selects a file, falls back to Q4_K_M, or else to the only model. Raises ModelNotFound,
    listing the choices.
    """
    sets = file_sets(names)
    if file is not None:
        found = [s for s in sets if file in s.names]
    else:
        found = [s for s in sets if set(known) & set(s.names)] or _labelled(sets, quant)
    if not found:
        if not sets:
            raise ModelNotFound(f"no GGUF files in {where}")
        wanted = file or (f"{quant} file" if quant else "default GGUF model")
        available = ", ".join(sorted({s.quant or s.names[0] for s in sets}))
        raise ModelNotFound(f"no {wanted} in {where}; available: {available}")
    if len(found) > 1 and not set(known) & set(found[0].names):
        listed = ", ".join(s.names[0] for s in found)
        raise ModelNotFound(
            f"{where} has several {found[0].quant} models; specify one of: {listed}"
        )
    if found[0].missing:
        absent = ", ".join(str(i) for i in found[0].missing[:5])
        raise ModelNotFound(f"{where}: {found[0].names[0]}: missing parts: {absent}")
    return found[0]


def _labelled(sets: tuple[FileSet, ...], quant: str | None) -> list[FileSet]:
    for wanted in (quant or DEFAULT_QUANT, f"UD-{quant or DEFAULT_QUANT}"):
        found = [s for s in sets if s.quant == wanted]
        if found:
            return found
    return list(sets) if quant is None and len(sets) == 1 else []
