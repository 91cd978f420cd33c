"""Parse file names: quantisations, part numbers and safe paths.

The same rules apply to the Hub's file listings and the local cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from catalog.errors import ModelNotFound, SeveralModels
from catalog.files import MAX_DEPTH
from catalog.quants import preferred

DEFAULT_QUANT = "Q4_K_M"

_QUANT = (
    r"(?:UD-)?(?:I?Q[1-8](?:_[01])?(?:_K)?(?:_NL)?(?:_(?:XXS|XS|S|M|L|XL))?(?:_[48]_[48])?"
    r"|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4)"
)
_LABEL = re.compile(rf"(?:^|[-._])({_QUANT})$", re.IGNORECASE)
_FOLDER = re.compile(_QUANT, re.IGNORECASE)
_ANYWHERE = re.compile(rf"(?:^|(?<=[-._ ]))({_QUANT})(?=[-. ])", re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NAMESPACE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_NAMESPACE}/{_NAMESPACE}")
_ASKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_SEPARATORS = re.compile(r"[-._ ]+")
# A file with one of these words in its name accompanies a model, and is not a model itself.
_COMPANIONS = {
    "mmproj": "a projector",
    "projector": "a projector",
    "imatrix": "an importance matrix",
    "mtp": "a prediction head",
    "nextn": "a prediction head",
    **dict.fromkeys(("draft", "drafter", "speculator", "dflash", "dspark"), "a drafter"),
    **dict.fromkeys(("eagle2", "eagle3", "medusa"), "a drafter"),
    "lora": "an adapter",
    "adapter": "an adapter",
    "cvector": "a control vector",
    "vocab": "a vocabulary",
}
# These words also occur in models' names. They mark a companion only if another file has the same
# name without the word.
_AMBIGUOUS = frozenset({"eagle", "assistant", "vision", "audio", "encoder", "clip", "vit"})


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
    """True if an untrusted name, joined to a folder, stays inside it and is found by `list`."""
    try:
        segments = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return (
        len(name) <= 1024
        and len(segments) <= MAX_DEPTH
        and all(
            0 < len(segment) <= 200
            and segment not in (b".", b"..")
            and not any(byte < 32 or byte in b"\\:\x7f" for byte in segment)
            for segment in segments
        )
    )


def normal_quant(text: str) -> str | None:
    """Normalise the name of a quantisation ("q4_k_m" -> "Q4_K_M"); None if malformed."""
    return text.upper() if _ASKED.fullmatch(text) else None


def quant_of(name: str) -> str | None:
    """Return the quantisation at the end of a file's name or of its folder's, or None.

    Without one at an end, a name that states exactly one elsewhere counts: `m-Q4_K_M-imat.gguf`.
    """
    *folders, last = _PART.sub(".gguf", name).split("/")
    stems = [last.removesuffix(".gguf").removesuffix(".GGUF"), *reversed(folders)]
    for stem in stems:
        if found := _LABEL.search(stem):
            return found[1].upper()
    found_inside = _ANYWHERE.findall(stems[0])
    return found_inside[0].upper() if len(found_inside) == 1 else None


def parts(first: str) -> tuple[str, ...]:
    """Return the names of all parts of a model, given the name of the first part."""
    found = _PART.search(first)
    if not found:
        return (first,)
    stem, count = first[: found.start()], int(found[2])
    return tuple(f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))


def file_sets(names: Iterable[str]) -> tuple[FileSet, ...]:
    """Group GGUF file names by model. Skips projectors and importance matrices."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names):
        if not name.lower().endswith(".gguf") or _never_a_model(name):
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


def companion_kind(name: str) -> str | None:
    """Return the kind of companion that a file name indicates, such as "an adapter", or None."""
    words = [word for part in _words(name) for word in part]
    return next((_COMPANIONS[word] for word in words if word in _COMPANIONS), None)


def _never_a_model(name: str) -> bool:
    """True for projectors and importance matrices. A model made with a matrix names its quant."""
    words = _words(name)[-1]
    labelled = any(_FOLDER.fullmatch(word) for word in words) or quant_of(name)
    return "mmproj" in words or ("imatrix" in words and (words[0] == "imatrix" or not labelled))


def _models(sets: tuple[FileSet, ...]) -> tuple[FileSet, ...]:
    """Drop the companions of models. Ignores words that occur in every name."""
    stems = {_stem(s.names[0]) for s in sets}
    marks = [_marks(s.names[0], stems) for s in sets]
    common = frozenset.intersection(*marks) if marks else frozenset()
    return tuple(s for s, found in zip(sets, marks, strict=True) if found == common) or sets


def _marks(name: str, stems: set[tuple[str, ...]]) -> frozenset[str]:
    *folders, words = _words(name)
    found = {word for part in (*folders, words) for word in part if word in _COMPANIONS}
    found |= {folder[0] for folder in folders if len(folder) == 1 and folder[0] in _AMBIGUOUS}
    stem = _stem(name)
    for word in _AMBIGUOUS.intersection(stem):
        if tuple(other for other in stem if other != word) in stems:
            found.add(word)
    return frozenset(found)


def _words(name: str) -> list[list[str]]:
    """Return the words in each folder's name and the file's name, singular, without versions."""
    *folders, last = _PART.sub(".gguf", name).lower().split("/")
    parts = [_SEPARATORS.split(part) for part in (*folders, last.removesuffix(".gguf"))]
    return [[_known(word) for word in part if word] or [""] for part in parts]


def _known(word: str) -> str:
    plain = word.removesuffix("s").rstrip("0123456789")
    return plain if word not in _COMPANIONS and plain in (*_COMPANIONS, *_AMBIGUOUS) else word


def _stem(name: str) -> tuple[str, ...]:
    """Return the words of a file's name without its quantisation."""
    last = _PART.sub(".gguf", name).rsplit("/", 1)[-1][: -len(".gguf")]
    return tuple(_words((_LABEL if _LABEL.search(last) else _ANYWHERE).sub("", last))[-1])


def select(
    names: Iterable[str],
    where: str,
    *,
    quant: str | None = None,
    file: str | None = None,
    folder: str | None = None,
    known: tuple[str, ...] = (),
) -> FileSet:
    """Select one model in a repository, or in one of its folders.

    Selects by `file` if given, or else by the catalog's `known` names, or else by `quant`. If none
    of them selects a file, falls back to Q4_K_M, or else to the only model. Companions of models,
    such as drafters and adapters, are selected only by `file`. Raises ModelNotFound, listing the
    choices.
    """
    names = list(names)
    if folder is not None:
        where = f"{where}/{folder}"
        names = [name for name in names if name.startswith(f"{folder}/")]
    sets = file_sets(names)
    models = _models(sets)
    if file is not None:
        found = [s for s in sets if file in s.names] or [
            s for s in sets if file.lower() in map(str.lower, s.names)
        ]
    else:
        found = [s for s in sets if set(known) & set(s.names)] or _labelled(models, quant)
    if not found:
        raise ModelNotFound(_absence(names, models, where, file or (quant and f"{quant} file")))
    if len(found) > 1 and not set(known) & set(found[0].names):
        listed = ", ".join(s.names[0] for s in found)
        of = f"{found[0].quant} models" if found[0].quant else "models"
        single = tuple(s.names[0] for s in found if len(s.names) == 1)
        raise SeveralModels(f"{where} has several {of}; specify one of: {listed}", single)
    if found[0].missing:
        absent = ", ".join(str(i) for i in found[0].missing[:5])
        raise ModelNotFound(f"{where}: {found[0].names[0]}: missing parts: {absent}")
    return found[0]


def choices(
    names: Iterable[str], folder: str | None = None, default: str = DEFAULT_QUANT
) -> tuple[FileSet, ...]:
    """Return the files of one model in different quantisations, in order of preference.

    If a repository or folder has several models, returns those of the one that has a file of the
    default quantisation, or nothing if that is unclear too. Skips files with missing parts.
    """
    inside = (name for name in names if folder is None or name.startswith(f"{folder}/"))
    sets = [s for s in _models(file_sets(inside)) if s.quant and not s.missing]
    models: dict[tuple[str, ...], list[FileSet]] = {}
    for found in sets:
        models.setdefault(_stem(found.names[0]), []).append(found)
    if len(models) > 1:
        with_default = [one for one in models.values() if default in {s.quant for s in one}]
        models = {(): with_default[0]} if len(with_default) == 1 else {}
    labels = [s.quant for one in models.values() for s in one]
    by_quant = {s.quant: s for one in models.values() for s in one if labels.count(s.quant) == 1}
    order = preferred((quant for quant in by_quant if quant), default)
    return tuple(by_quant[quant] for quant in order) if labels.count(default) < 2 else ()


def _absence(names: list[str], models: tuple[FileSet, ...], where: str, wanted: str | None) -> str:
    """Return a message for a missing model that lists the models in the repository."""
    available = ", ".join(sorted({s.quant or s.names[0] for s in models}))
    other = next((n for n in names if n.lower().endswith(".gguf") and _never_a_model(n)), None)
    other = wanted if wanted in names else other
    if models:
        if wanted is not None and wanted == other:
            return f"{wanted} is {companion_kind(wanted)}, not a model; available: {available}"
        return f"no {wanted or 'default GGUF model'} in {where}; available: {available}"
    if other is not None:
        return f"no GGUF model in {where}; {other} is {companion_kind(other)}"
    return f"no GGUF files in {where}"


def _labelled(sets: tuple[FileSet, ...], quant: str | None) -> list[FileSet]:
    for wanted in (quant or DEFAULT_QUANT, f"UD-{quant or DEFAULT_QUANT}"):
        found = [s for s in sets if s.quant == wanted]
        if found:
            return found
    return list(sets) if quant is None and len(sets) == 1 else []
