"""The catalog of known models: its types, and the parser for `models.toml`.

Every number comes from the publisher or from a model file. Unverified facts are left out of
`models.toml` and read as None. Parameter counts are as precise as the published figure: "30.5B"
becomes 30,500,000,000.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any, get_type_hints

from catalog.errors import CatalogError
from catalog.file_names import is_repository, is_safe, normal_quant, parts, quant_of

# Values of `status`, from most to least thoroughly verified.
ANSWER_VERIFIED = "answer verified"
ARCHITECTURE_IMPLEMENTED = "architecture implemented"
NOT_YET = "not yet"
KINDS = ("instruct", "base", "reasoning", "coder")
LICENCES = (
    *("Apache-2.0", "MIT", "modified-MIT", "llama3.1", "llama3.2", "llama3.3", "llama4"),
    *("gemma", "lfm1.0", "deepseek", "qwen", "nvidia-open-model-license", "OpenMDW-1.1"),
    *("k-exaone", "minimax-m2.7-license", "upstage-solar-license"),
)
BENCHMARKS = ("MMLU-Pro", "GPQA Diamond", "LiveCodeBench v6", "SWE-bench Verified")
SIZE_UNITS = {"size_bytes": 1, "size_mib": 2**20, "size_gib": 2**30, "size_gb": 10**9}
Check = Callable[[Any], object]  # returns a truthy result for a valid TOML value


def _of(kind: type, test: Check = lambda v: True) -> Check:
    return lambda v: type(v) is kind and bool(test(v))


def _each(test: Check, least: int = 0) -> Check:
    return _of(list, lambda v: len(v) >= least and all(map(test, v)))


def _whole(low: int, high: int) -> Check:
    return _of(int, lambda v: low <= v <= high)


def _real(low: float, high: float) -> Check:
    return lambda v: type(v) in (int, float) and low <= v <= high


def _text(pattern: str) -> Check:
    return _of(str, re.compile(pattern).fullmatch)


_REPOSITORY = _of(str, is_repository)
_QUANT = _of(str, lambda v: normal_quant(v) == v)
_GGUF = _of(str, lambda v: is_safe(v) and v.endswith(".gguf"))
_TABLE = _of(dict)
# Lists of [layers, values per token] or [layers, values per token, window].
_KV = _each(lambda v: _each(_whole(1, 2**24), least=2)(v) and len(v) <= 3)


_PAIR = _of(list, lambda v: len(v) == 2 and all(map(_whole(1, 2**40), v)))
_PAIRS = _each(_PAIR, least=1)


@dataclass(frozen=True, slots=True)
class Sampling:
    """The publisher's sampling settings; None if not stated. `temperature` 0 is greedy decoding."""

    temperature: Annotated[float | None, _real(0, 2)] = None
    top_p: Annotated[float | None, _real(0.01, 1)] = None
    top_k: Annotated[int | None, _whole(0, 1000)] = None
    min_p: Annotated[float | None, _real(0, 1)] = None
    repetition_penalty: Annotated[float | None, _real(0.5, 2)] = None
    presence_penalty: Annotated[float | None, _real(-2, 2)] = None


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model's matrices, from its published configuration.

    attention: (layers, weights of one layer) for each kind of attention or recurrent layer. dense:
    (layers, width) for each kind of feed-forward layer without experts. experts: the same with
    experts; shared: the width of all shared experts together. matrices: how many a feed-forward
    layer has, 2 without a gate. latent: the width of the input of routed experts, 0 for `width`.
    per_layer: the width of the embeddings that each layer has of its own. ngrams: the values of a
    table of n-grams, of which a token reads a few rows; parameter counts leave it out. tied: the
    head is the embedding. reuse: how often a token multiplies each value of a latent cache.
    scores: its products with each earlier token, over the layers without a window.
    """

    width: Annotated[int, _whole(16, 2**16)]
    vocabulary: Annotated[int, _whole(16, 2**22)]
    attention: Annotated[tuple[tuple[int, int], ...], _PAIRS]
    dense: Annotated[tuple[tuple[int, int], ...], _PAIRS] = ()
    experts: Annotated[tuple[int, int] | None, _PAIR] = None
    shared: Annotated[int, _whole(0, 2**20)] = 0
    matrices: Annotated[int, _whole(2, 3)] = 3
    latent: Annotated[int, _whole(0, 2**16)] = 0
    per_layer: Annotated[int, _whole(0, 2**12)] = 0
    ngrams: Annotated[int, _whole(0, 2**40)] = 0
    tied: Annotated[bool, _of(bool)] = False
    reuse: Annotated[float, _real(0, 2**12)] = 0.0
    scores: Annotated[int, _whole(0, 2**32)] = 0


@dataclass(frozen=True, slots=True)
class Quality:
    """A published score of a model on a benchmark, in per cent. date: of the publication."""

    benchmark: Annotated[str, BENCHMARKS.__contains__]
    value: Annotated[float, _real(0, 100)]
    source: Annotated[str, _text(r"[\w.-]+\.\w+/\S+")]
    date: Annotated[str, _text(r"20\d\d-\d\d")]


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One quantisation of a model on the Hub.

    names: current and former file names of the first part, current name first; empty if unknown.
    size_bytes: the total size of all parts; rounded if `approximate`.
    """

    quant: str
    repository: str | None
    names: tuple[str, ...] = ()
    size_bytes: int | None = None
    approximate: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return parts(self.names[0]) if self.names else ()


@dataclass(frozen=True, slots=True)
class Package:
    """A model file published in a wheel on PyPI."""

    model_id: str
    quant: str
    wheel: Annotated[str, _text(r"[a-z0-9-]+==[0-9.]+")]
    member: Annotated[str, _GGUF]
    wheel_size_bytes: Annotated[int, _whole(1, 2**32)]
    size_bytes: Annotated[int, _whole(1, 2**32)]
    sha256: Annotated[str, _text(r"[0-9a-f]{64}")]

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in the catalog.

    hybrid: True for a reasoning model whose thinking can be turned off. `sampling` applies when
    thinking is on, `sampling_no_think` when it is off.
    kv: (layers, values per token, window or 0) for each kind of layer with a KV cache; empty if
    unknown.
    state_values: the number of float32 values in the state of all recurrent layers.
    """

    id: Annotated[str, _text(r"[a-z0-9]+(?:[.-][a-z0-9.]+)*")]
    name: Annotated[str, _text(r"\S(?:.{0,78}\S)?")]
    kind: Annotated[str, KINDS.__contains__]
    hybrid: Annotated[bool, _of(bool)]
    starter: Annotated[bool, _of(bool)]
    architecture: Annotated[str, _text(r"[a-z0-9][a-z0-9_-]{1,30}")]
    tokenizer: Annotated[str | None, _text(r"[a-z0-9][a-z0-9-]{1,30}")]
    total_parameters: Annotated[int | None, _whole(10**6, 10**13)]
    active_parameters: Annotated[int | None, _whole(10**6, 10**13)]
    layers: Annotated[int | None, _whole(1, 512)]
    experts: Annotated[int | None, _whole(2, 1024)]
    experts_used: Annotated[int | None, _whole(1, 1024)]
    experts_shared: Annotated[int | None, _whole(0, 64)]
    kv: Annotated[tuple[tuple[int, int, int], ...], _KV]
    state_values: Annotated[int | None, _whole(1, 2**32)]
    shape: Annotated[Shape | None, _TABLE]
    context: Annotated[int | None, _whole(512, 2**24)]
    licence: Annotated[str, LICENCES.__contains__]
    original: Annotated[str | None, _REPOSITORY]
    repository: Annotated[str | None, _REPOSITORY]
    files: Annotated[tuple[CatalogFile, ...], _each(_TABLE)]
    default_quant: Annotated[str, _QUANT]
    sampling: Annotated[Sampling, _TABLE]
    sampling_no_think: Annotated[Sampling | None, _TABLE]
    released: Annotated[str | None, _text(r"20\d\d-(0[1-9]|1[0-2])")]
    quality: Annotated[tuple[Quality, ...], _each(_TABLE)]
    package: Annotated[Package | None, _TABLE]
    sources: Annotated[tuple[str, ...], _each(_of(str), least=1)] = field(repr=False)

    @property
    def moe(self) -> bool:
        """True for an MoE model: each token uses only some of the weights."""
        return self.experts is not None or self.active_parameters != self.total_parameters

    @property
    def scores(self) -> dict[str, float]:
        """Return the published scores by benchmark."""
        return {quality.benchmark: quality.value for quality in self.quality}

    @property
    def parts(self) -> dict[str, int]:
        """Return how many weights have which purpose; nothing if the shape is unknown.

        embedding: of which a token reads a row; without the head, if that is the embedding.
        ngrams: of which it reads a few short rows.
        """
        shape, count = self.shape, self.experts or 0
        if shape is None:
            return {}
        width, matrices = shape.width, shape.matrices
        layers, hidden = shape.experts or (0, 0)
        own = shape.per_layer * sum(number for number, _ in shape.attention)
        dense = matrices * sum(number * size for number, size in shape.dense)
        shared = layers * (matrices * shape.shared + count + 2 * shape.latent)
        table = width * shape.vocabulary
        return {
            "routed": matrices * (shape.latent or width) * hidden * layers * count,
            "attention": sum(number * weights for number, weights in shape.attention),
            "shared": width * (dense + shared + 3 * own),
            "head": table,
            "embedding": shape.vocabulary * own + (0 if shape.tied else table),
            "ngrams": shape.ngrams,
        }

    def file(self, quant: str | None = None) -> CatalogFile | None:
        """Return the file with this quantisation, or with the default quantisation if None."""
        return next((f for f in self.files if f.quant == (quant or self.default_quant)), None)


def status(entry: Entry, architectures: Collection[str]) -> str:
    """Return the support status of a model.

    architectures: the architectures that the engine implements.
    "answer verified": the default file's answer matches the reference answer token for token.
    "architecture implemented": tested on small models, but not with this model's own file.
    "not yet": the engine does not implement the architecture.
    """
    if entry.architecture not in architectures:
        return NOT_YET
    return ANSWER_VERIFIED if entry.starter else ARCHITECTURE_IMPLEMENTED


class _TomlLoader(SourceFileLoader):
    """Loads a TOML file as a module that is one literal.

    Python keeps and replaces its bytecode as it does for any module: reading that takes a tenth of
    the time to parse the file.
    """

    def source_to_code(self, data: Any, path: Any) -> CodeType:  # type: ignore[override]
        import tomllib

        tables = tomllib.loads(bytes(data).decode("utf-8-sig"))
        return super().source_to_code(f"TABLES = {tables!r}".encode(), path)


@cache
def entries() -> dict[str, Entry]:
    """Return all entries in `models.toml` by id."""
    parsed = ModuleType("catalog.models")
    path = Path(__file__).with_name("models.toml")
    _TomlLoader(parsed.__name__, str(path)).exec_module(parsed)
    return load(parsed.TABLES)


def starter_entry() -> Entry:
    """Return the starter model, which `conifer run` uses by default."""
    return next(entry for entry in entries().values() if entry.starter)


def load(tables: Mapping[str, Any]) -> dict[str, Entry]:
    """Validate parsed TOML and return the entries by id.

    Raises CatalogError, naming the entry and key, if a value is invalid.
    """
    tags = tables.get("sources", {})
    loaded: dict[str, Entry] = {}
    for number, table in enumerate(tables.get("model", ()), start=1):
        entry = _Reader(table, f"model {number}").entry(tags)
        if entry.id in loaded:
            raise CatalogError(f"models.toml: {entry.id}: duplicate id")
        loaded[entry.id] = entry
    if sum(entry.starter for entry in loaded.values()) != 1:
        raise CatalogError("models.toml: exactly one model must set starter = true")
    return loaded


# The valid keys in a `files` table. At most one size key may be present.
_FILE_KEYS: dict[str, Check] = {
    "quant": _QUANT,
    "repository": _REPOSITORY,
    "names": _each(_GGUF, least=1),
    **{unit: _real(1, 2**43) for unit in SIZE_UNITS},
    "size_bytes": _whole(2**20, 2**43),
}


@cache
def _keys(kind: type) -> dict[str, Check]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")
    }


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class _Reader:
    """A parser for one model table. `where` identifies the table in error messages."""

    def __init__(self, table: dict[str, Any], where: str) -> None:
        self.table = table
        self.where = str(table.get("id", where))

    def fail(self, key: str, problem: str) -> CatalogError:
        return CatalogError(f"models.toml: {self.where}: {key}: {problem}")

    def check(
        self, table: dict[str, Any], keys: dict[str, Check], required: Collection[str], prefix: str
    ) -> None:
        for key, value in table.items():
            if key not in keys:
                raise self.fail(prefix + key, "unknown key")
            if not keys[key](value):
                raise self.fail(prefix + key, f"invalid value {value!r}")
        for key in required:
            if key not in table:
                raise self.fail(prefix + key, "missing")

    def entry(self, tags: Mapping[str, str]) -> Entry:
        required = ("id", "name", "kind", "architecture", "licence", "default_quant", "sources")
        self.check(self.table, keys := _keys(Entry), (*required, "files"), "")
        plain: dict[str, Any] = {key: self.table.get(key) for key in keys}
        plain |= {key: self.table.get(key, False) for key in ("hybrid", "starter")}
        for key in ("sampling", "sampling_no_think"):
            if (table := self.table.get(key)) is not None:
                self.check(table, _keys(Sampling), (), f"{key}.")
                plain[key] = Sampling(**table)
        plain["sampling"] = plain["sampling"] or Sampling()
        if (table := self.table.get("shape")) is not None:
            self.check(table, _keys(Shape), ("width", "vocabulary", "attention"), "shape.")
            plain["shape"] = Shape(**{key: _frozen(value) for key, value in table.items()})
        plain["quality"] = tuple(map(self.quality, self.table.get("quality", ())))
        plain["kv"] = tuple((*kind, 0)[:3] for kind in self.table.get("kv", ()))
        plain["files"] = tuple(self.file(f, i) for i, f in enumerate(self.table["files"]))
        if (table := self.table.get("package")) is not None:
            self.check(table, _keys(Package), _keys(Package), "package.")
            quant = quant_of(table["member"]) or ""
            plain["package"] = package = Package(self.table["id"], quant, **table)
            names, size = (package.file_name,), package.size_bytes
            plain["files"] += (CatalogFile(quant, None, names, size),)
        for tag in self.table["sources"]:
            if tag not in tags:
                raise self.fail("sources", f"{tag!r} is not defined under [sources]")
        plain["sources"] = tuple(f"{tag}: {tags[tag]}" for tag in self.table["sources"])
        if plain["experts"] is None and plain["active_parameters"] is None:
            plain["active_parameters"] = plain["total_parameters"]  # a dense model
        return self.consistent(Entry(**plain))

    def quality(self, table: dict[str, Any]) -> Quality:
        self.check(table, _keys(Quality), _keys(Quality), "quality.")
        return Quality(**table)

    def file(self, table: dict[str, Any], number: int) -> CatalogFile:
        prefix = f"files[{number}]."
        self.check(table, _FILE_KEYS, ("quant",), prefix)
        sizes = [unit for unit in SIZE_UNITS if unit in table]
        if len(sizes) > 1:
            raise self.fail(prefix + sizes[1], f"conflicts with {sizes[0]}")
        names = tuple(table.get("names", ()))
        for name in names:
            if quant_of(name) != table["quant"]:
                raise self.fail(prefix + "names", f"{name} is not a {table['quant']} file name")
        return CatalogFile(
            quant=table["quant"],
            repository=table.get("repository", self.table.get("repository")),
            names=names,
            size_bytes=round(table[sizes[0]] * SIZE_UNITS[sizes[0]]) if sizes else None,
            approximate=bool(sizes) and sizes[0] != "size_bytes",
        )

    def plausible(self, entry: Entry) -> bool:
        """True if a shape has as many layers and, but for rounding, weights as the entry says."""
        shape = entry.shape
        assert shape is not None
        weights = sum(entry.parts.values()) - shape.ngrams
        mixers = sum(count for count, _ in shape.attention)
        routed, _ = shape.experts or (0, 0)
        blocks = mixers + routed + sum(count for count, _ in shape.dense)  # if layers have one each
        near = entry.total_parameters or weights
        return entry.layers in (None, mixers, blocks) and abs(weights / near - 1) < 0.08

    def consistent(self, entry: Entry) -> Entry:
        total, active = entry.total_parameters, entry.active_parameters
        quants = [f.quant for f in entry.files]
        unplaced = [f for f in entry.files if f.repository is None]
        problems = {
            "active_parameters": total is not None and active is not None and active > total,
            "experts_used": (entry.experts_used or 0) > (entry.experts or 0),
            "shape": entry.shape is not None and not self.plausible(entry),
            "kv": sum(count for count, _, _ in entry.kv) > (entry.layers or 512),
            "default_quant": entry.default_quant not in quants,
            "files": len(set(quants)) != len(quants),
            "repository": len(unplaced) > (entry.package is not None),
            "hybrid": entry.hybrid and entry.kind != "reasoning",
            "sampling_no_think": entry.sampling_no_think is not None and not entry.hybrid,
        }
        for key, wrong in problems.items():
            if wrong:
                raise self.fail(key, "inconsistent with the rest of the entry")
        return entry
