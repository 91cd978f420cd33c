"""A model's facts, frozen.

Every number is what its publisher or a file says, as `models.toml` records it; a fact nobody could
verify is absent, and absent is None here. This file knows neither where the facts
are written (`catalog.facts` reads and checks them) nor the disk nor the network.

A parameter count is as precise as it was published: "30.5B" is 30,500,000,000.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from catalog.names import parts

# What `status` answers, from the most that was proved to the least.
ANSWER_VERIFIED = "answer verified"
ARCHITECTURE_IMPLEMENTED = "architecture implemented"
NOT_YET = "not yet"


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the publisher recommends; None where it says nothing. `temperature` 0 is greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One quantisation of a model on the hub.

    `names` are the spellings the first part is or was published under, the current one first; empty
    where no source printed one. `size_bytes` is of all parts, and rounded if `approximate`.
    """

    quant: str
    repository: str | None
    names: tuple[str, ...] = ()
    size_bytes: int | None = None
    approximate: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all parts, in order; empty if no name is known."""
        return parts(self.names[0]) if self.names else ()


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file that lies in a wheel on the Python package index."""

    model_id: str
    quant: str
    wheel: str
    member: str
    wheel_size_bytes: int
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name the file has on disk."""
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalog. `hybrid`: a reasoning model whose thinking can be switched off;
    `sampling` is then for thinking and `sampling_no_think` for the other way.

    kv: (layers, values a token, window or 0) for each kind of layer that keeps something for each
    token, empty if not known; state_values: float32 values that recurrent layers keep in all.
    """

    id: str
    name: str
    kind: str
    hybrid: bool
    starter: bool
    architecture: str
    tokenizer: str | None
    total_parameters: int | None
    active_parameters: int | None
    layers: int | None
    experts: int | None
    experts_used: int | None
    experts_shared: int | None
    kv: tuple[tuple[int, int, int], ...]
    state_values: int | None
    context: int | None
    licence: str
    original: str | None
    repository: str | None
    files: tuple[FileFacts, ...]
    default_quant: str
    sampling: Sampling
    sampling_no_think: Sampling | None
    package: PackageSource | None
    sources: tuple[str, ...] = field(repr=False)

    @property
    def moe(self) -> bool:
        """Whether a token uses only some of the weights."""
        return self.experts is not None or self.active_parameters != self.total_parameters

    def facts(self, quant: str | None = None) -> FileFacts | None:
        """Return what is known of one quantisation (None: the default one)."""
        return next((f for f in self.files if f.quant == (quant or self.default_quant)), None)


def status(entry: Entry, architectures: Collection[str]) -> str:
    """Say what has been proved of an entry, and no more.

    architectures: those the engine implements. "answer verified": this model's default file was
    run and its answer compared with the reference, token for token. "architecture implemented": the
    engine has the architecture, tested on small models; this one's own file was not run.
    "not yet": the engine lacks the architecture.
    """
    if entry.architecture not in architectures:
        return NOT_YET
    return ANSWER_VERIFIED if entry.starter else ARCHITECTURE_IMPLEMENTED
