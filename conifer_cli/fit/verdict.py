"""Decide whether a model fits this machine. `run`, `pull` and `fit` all use this verdict.

The verdict is computed from the GGUF header of the file on disk. If the file is not on disk, its
header is read from the Hub with range requests. If the file size in the catalog alone rules the
model out, nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli.errors import Unreadable, UsageError, why
from conifer_cli.fit.alternatives import sibling
from conifer_cli.fit.hub_header import find_model
from conifer_cli.fit.naming import naming
from conifer_cli.terminal.format import counted, gigabytes

if TYPE_CHECKING:
    from catalog import CatalogFile, Entry, Reference
    from catalog.hub.client import Hub, RemoteFile
    from catalog.hub.header_cache import HeaderCache
    from engine.fit.estimate import ModelEstimate
    from engine.fit.machine import Machine
    from engine.fit.memory import Verdict
    from engine.fit.streaming import Forecast
    from engine.gguf.reader import ModelFile, TensorInfo
    from engine.nn.config import ModelConfig


@dataclass(frozen=True)
class FitRequest:
    """The context, KV cache type and kernels to plan for, and the checks and prompts to skip.

    pulled: the user has typed `pull`, so a download that fits needs no question. stream: experts
    that do not fit may stay on the disk. budget_bytes: the most memory to use; implies `stream`.
    asks: whether to ask before a model streams that was not told to.
    """

    context: int | None = None
    kv_type: str = "f16"
    force: bool = False
    yes: bool = False
    kernels: str = "auto"
    offline: bool = False
    pulled: bool = field(default=False, compare=False)
    stream: bool = False
    budget_bytes: int | None = None
    asks: bool = field(default=False, compare=False)

    @property
    def streams(self) -> bool:
        """True if experts that do not fit may stay on the disk."""
        return self.stream or self.budget_bytes is not None

    def accepts(self, kind: str) -> bool:
        """True if a model with this verdict may run."""
        return self.force or kind not in ("streams" if not self.streams else "", "too_large")


@dataclass(frozen=True)
class FitReport:
    """A model, its files (on disk, in a package or on the Hub) and its verdict.

    q8_fits: True if the model does not fit with the requested KV cache but does with an 8-bit one.
    metadata: None if only the file size is known. source: the data behind the verdict. damaged:
    local files that must be downloaded again. reference: what selects the files; names one
    quantisation if Conifer chose it. default_quant: the one that it chose another for.
    streaming: what to expect if experts stay on the disk; None until that is certain.
    """

    name: str
    entry: Entry | None
    verdict: Verdict
    size_bytes: int  # total over all parts
    paths: tuple[Path, ...] = ()
    file: ModelFile | None = None  # None unless the model is on disk
    remote: tuple[RemoteFile, ...] = ()
    metadata: Mapping[str, Any] | None = None
    config: ModelConfig | None = None
    tensors: Mapping[str, TensorInfo] | None = None
    q8_fits: bool = False
    parameters: tuple[int, int] | None = None  # (total, active per token), from the header
    source: str = "the file's header"
    estimate: ModelEstimate | None = None  # set only if no header is available
    damaged: tuple[Path, ...] = ()
    reference: Reference | None = None
    default_quant: str | None = None
    streaming: Forecast | None = None

    @property
    def expert_bytes(self) -> int | None:
        """The memory for experts if others stay on the disk; None if all are in memory."""
        return self.streaming.plan.store_bytes if self.streaming else None

    @property
    def supported_context(self) -> int:
        """The largest context that the model supports, in tokens. 0 means unknown."""
        limits = (self.config and self.config.context, self.entry and self.entry.context)
        return min((tokens for tokens in limits if tokens), default=0)


def shortage(report: FitReport) -> str:
    """Describe how much memory the model needs and how much it may use."""
    verdict = report.verdict
    least = "at least " if verdict.estimated else ""
    at = "" if verdict.estimated else f" with a context of {counted(verdict.context, 'token')}"
    need, budget = gigabytes(verdict.need.total_bytes), gigabytes(verdict.budget_bytes)
    limit = verdict.machine.limited_by
    return f"it needs {least}{need}{at}; the budget ({limit}) is {budget}"


def settled(facts: CatalogFile | None, machine: Machine) -> bool:
    """Return True if the exact file size alone shows that the model does not fit in memory."""
    from engine.fit.memory import surely_too_large

    if facts is None or facts.size_bytes is None or facts.approximate:
        return False
    return surely_too_large(facts.size_bytes, machine)


@contextmanager
def reading(name: str, reference: Reference) -> Iterator[None]:
    """Convert OSError to Unreadable. Add a note to GGUFError on how to download the file again."""
    from engine.errors import GGUFError

    try:
        with naming(reference.path.name if reference.path else name):
            yield
    except OSError as error:
        raise Unreadable(f"{error.filename or name}: {why(error)}") from error
    except GGUFError as error:
        if reference.path is None:  # a local path cannot be downloaded again
            error.add_note(
                f"To download it again, run `conifer rm {name}`, then `conifer pull {name}`."
            )
        raise


def judge_disk(
    name: str, reference: Reference, path: Path, request: FitRequest, machine: Machine
) -> FitReport:
    """Judge a model by its header on disk. `path` may be the first of several parts."""
    from engine.gguf.reader import open_model

    with reading(name, reference):
        file = open_model(path)
        report = judge_header(name, reference.entry, file.metadata, file.tensors, request, machine)
    paths, size_bytes = file.parts, file.size_bytes
    return replace(report, size_bytes=size_bytes, paths=paths, file=file, reference=reference)


def judge_hub(
    name: str,
    reference: Reference,
    request: FitRequest,
    machine: Machine,
    hub: Hub,
    headers: HeaderCache,
) -> FitReport:
    """Judge a model by its header on the Hub, merged from all parts."""
    found = find_model(hub, reference, headers)
    with naming(found.files[0].name):
        report = judge_header(
            name, reference.entry, found.metadata, found.tensors, request, machine
        )
    size_bytes = sum(file.size_bytes for file in found.files)
    return replace(
        report,
        size_bytes=size_bytes,
        remote=found.files,
        source="the header on the hub",
        reference=reference,
    )


def judge_header(
    name: str,
    entry: Entry | None,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    request: FitRequest,
    machine: Machine,
) -> FitReport:
    """Judge a model by its parsed header."""
    from engine.architectures.registry import require_architecture
    from engine.fit.memory import judge
    from engine.nn.config import count_parameters, read_model_config

    config = read_model_config(metadata, tensors)
    require_architecture(config.architecture)
    known = entry.context if entry else None
    most = min(config.context, known or config.context)
    require_context(name, most, request, entry)
    verdict, q8_fits = judge_cache_types(
        lambda kv_type: judge(
            config, tensors, machine, request.context, kv_type, known, request.kernels
        ),
        request.kv_type,
    )
    return FitReport(
        name,
        entry,
        verdict,
        size_bytes=verdict.file_bytes,
        metadata=metadata,
        config=config,
        tensors=tensors,
        q8_fits=q8_fits,
        parameters=count_parameters(config, tensors),
    )


def judge_again(report: FitReport, machine: Machine, request: FitRequest) -> Verdict:
    """Return the verdict for the same file on another machine."""
    from engine.fit.estimate import judge_estimate
    from engine.fit.memory import judge, judge_size

    if report.config is not None and report.tensors is not None:
        known = report.entry.context if report.entry else None
        wanted = (request.context, request.kv_type, known, request.kernels)
        return judge(report.config, report.tensors, machine, *wanted)
    if report.estimate is None:
        return judge_size(report.size_bytes, machine)
    context, kv_type = request.context, request.kv_type
    return judge_estimate(report.estimate, machine, context, kv_type, request.kernels)


def judge_cache_types(judge: Callable[[str], Verdict], kv_type: str) -> tuple[Verdict, bool]:
    """Return the verdict for a KV cache type, and whether the model would fit only with q8."""
    verdict, misfits = judge(kv_type), ("streams", "too_large")
    if verdict.kind not in misfits or kv_type == "q8":
        return verdict, False
    return verdict, judge("q8").kind not in misfits


def require_context(name: str, most: int, request: FitRequest, entry: Entry | None = None) -> None:
    """Raise UsageError if the requested context is over `most`, unless --force was given.

    The hint names a sibling of the catalog's entry that supports the context.
    """
    if request.context is None or request.context <= most or request.force:
        return
    problem = (
        f"{name} supports a context of up to {counted(most, 'token')}, got {request.context:,}"
    )
    other = sibling(entry, request.context) if entry else None
    if other is None:
        raise UsageError(problem)
    supported = counted(other.context or 0, "token")
    raise UsageError(problem, f"{other.id} has the same shape and supports {supported}.")
