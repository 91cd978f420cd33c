"""Decide whether a model fits a given machine from the best data available; predict its speed.

Data sources, best first: the header of a local file, the header on the Hub, a cached copy of that
header, and an estimate from the catalog. A network failure is an error only if there is neither a
cached header nor an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from conifer_cli.errors import UsageError
from conifer_cli.fit import run_history
from conifer_cli.fit.alternatives import estimate_of
from conifer_cli.fit.choice import Option, best, catalog_options, judge_here, judge_remote
from conifer_cli.fit.naming import naming
from conifer_cli.fit.verdict import (
    FitReport,
    FitRequest,
    judge_cache_types,
    judge_header,
    require_context,
    settled,
)
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.hub.client import Hub
    from catalog.hub.header_cache import HeaderCache
    from catalog.store.store import Store
    from engine.fit.machine import Machine
    from engine.fit.speed import Bandwidth, BytesPerToken, Rate


@dataclass(frozen=True)
class Target:
    """The machine to plan for, and its kernels.

    here: this machine, whose measurements apply even if its memory size is overridden; None if
    another machine is simulated. prior: the published memory bandwidth of a simulated machine.
    keep: keep what is measured for later calls.
    """

    machine: Machine
    kernels: str
    here: Machine | None
    prior: Bandwidth | None = None
    keep: bool = True

    @cached_property
    def bandwidth(self) -> Bandwidth:
        """The memory bandwidth. Measured on first use if necessary, which takes two seconds."""
        if self.here is not None:
            return run_history.bandwidth_of(self.here, self.keep)
        assert self.prior is not None
        return self.prior

    @cached_property
    def ratios(self) -> dict[tuple[str, int], list[float]]:
        """Measured time per token divided by the time that bandwidth alone predicts, by file."""
        return run_history.run_ratios(self.here, self.kernels, self.bandwidth) if self.here else {}

    def prompt_rates(self, report: FitReport, tokens: int) -> list[float]:
        """Return the rates measured here for a report's file and prompts about as long."""
        if self.here is None or not report.paths:
            return []
        file = (report.paths[0].name, report.size_bytes)
        return run_history.prompt_rates(self.here, self.kernels, file, tokens)

    @property
    def median_ratios(self) -> list[float]:
        """The median ratio for each file that is too large for a CPU cache."""
        return [
            run_history.median(ratios) or 1.0
            for (_, size_bytes), ratios in self.ratios.items()
            if size_bytes >= run_history.MIN_FILE_BYTES
        ]


def choose_target(
    machine: str | None,
    memory_bytes: int | None,
    idle: bool,
    kernels: str,
    bytes_per_s: float | None = None,
    budget_bytes: int | None = None,
) -> Target:
    """Return the machine to plan for. Raises UsageError if its name is unknown.

    machine: a name such as m4-max-64gb; None for this machine. memory_bytes, bytes_per_s: override
    the memory size and the bandwidth. idle: assume that no other programs are running.
    budget_bytes: the most memory to use.
    """
    from engine.fit import machine_specs
    from engine.fit.machine import limited, this_machine
    from engine.kernels.select import selected

    if machine is not None:
        try:
            elsewhere, prior = machine_specs.simulate(machine, memory_bytes, bytes_per_s)
        except machine_specs.UnknownMachine as error:
            raise UsageError(f"--machine: {error}") from error
        best = "native" if elsewhere.backend == "cpu" else "blocks"
        elsewhere = limited(elsewhere, budget_bytes)
        return Target(elsewhere, "stock" if kernels == "stock" else best, None, prior)
    if bytes_per_s is not None:
        raise UsageError("--bandwidth describes another machine: add --machine, such as cpu-64gb")
    here = this_machine(idle=idle)
    resized = here if memory_bytes is None else machine_specs.resized(here, memory_bytes)
    resized = limited(resized, budget_bytes)
    return Target(resized, selected(kernels, resized.backend), here)


def best_known_report(
    name: str,
    reference: Reference,
    request: FitRequest,
    machine: Machine,
    store: Store,
    connect: Callable[[], Hub] | None,
) -> FitReport:
    """Judge a model by the best available data. connect: None to stay offline.

    If no data is available, raises CatalogError, or UsageError if offline.
    """
    from catalog import CatalogError
    from catalog.hub.header_cache import HeaderCache

    entry, headers = reference.entry, HeaderCache(store.home)
    if (here := judge_here(name, reference, request, machine, store)) is not None:
        return here
    if entry is not None:
        from engine.architectures.registry import require_architecture

        require_context(name, entry.context or request.context or 0, request, entry)
        require_architecture(entry.architecture)
    known = _known(name, reference, request, machine, headers)
    if known is not None and reference.package:
        return known
    if connect is None:
        return _offline_choice(name, reference, request, machine, headers, known)
    sure = known is not None and known.estimate and known.verdict.kind == "too_large"
    sure = sure and settled(reference.catalog_file, machine)
    surely = known if sure else None
    try:
        return judge_remote(name, reference, request, machine, headers, connect, surely)
    except CatalogError as error:
        if known is None:
            raise
        found = _offline_choice(name, reference, request, machine, headers, known)
        console.note(f"{error}; falling back to {found.source}")
        return found


def bytes_per_token(
    report: FitReport, target: Target, request: FitRequest, depth: int
) -> BytesPerToken | None:
    """Return the bytes moved per token with `depth` tokens in the cache; None if unknown."""
    backend, kernels, kv_type = target.machine.backend, target.kernels, request.kv_type
    if report.config is not None and report.tensors is not None:
        from engine.fit.speed import bytes_per_token

        return bytes_per_token(report.config, report.tensors, backend, kernels, depth, kv_type)
    if report.estimate is None:
        return None
    from engine.fit.estimate import estimate_bytes_per_token

    return estimate_bytes_per_token(report.estimate, backend, kernels, depth, kv_type)


def speed(
    report: FitReport, target: Target, moved: BytesPerToken | None, sibling: bool = False
) -> Rate | None:
    """Return the decoding speed: measured if the model has run here, otherwise predicted.

    sibling: predict another quantisation of the model. If the report's own file has run here, its
    runs correct the prediction, so that the two can be compared.
    """
    from engine.fit.estimate import GUESSED_LAYERS
    from engine.fit.speed import predict

    if moved is None:
        return None
    model = report.config or report.estimate
    file = (report.paths[0].name, report.size_bytes) if report.paths else ("", 0)
    own = target.ratios.get(file, ())
    return predict(
        moved,
        (model and model.layers) or GUESSED_LAYERS,
        target.bandwidth,
        target.machine.backend,
        target.kernels,
        own=() if sibling else own,
        others=own if sibling and own else target.median_ratios,
        estimated=report.estimate is not None and not report.estimate.parts,
    )


def prompt_speeds(
    report: FitReport, target: Target, request: FitRequest
) -> tuple[tuple[int, Rate], ...]:
    """Return (tokens, rate) for prompts of 512 and 4,096 tokens, as far as the context allows."""
    from engine.fit.prefill import PROMPTS

    found = []
    for tokens in PROMPTS:
        if tokens <= report.verdict.context:
            rate = prompt_speed(report, target, tokens)
            found += [(tokens, rate)] if rate else []
    return tuple(found)


def prompt_speed(report: FitReport, target: Target, tokens: int) -> Rate | None:
    """Return the rate at which a prompt is read if all weights are in memory; None if unknown."""
    from engine.fit.prefill import estimated_work, predict_prompt, prompt_work

    if target.kernels == "stock" and target.machine.backend == "cpu":
        return None
    read_bytes, work = report.verdict.need.weights_bytes, None
    if report.config is not None and report.tensors is not None:
        work = prompt_work(report.config, report.tensors, read_bytes)
    elif report.estimate is not None:
        work = estimated_work(report.estimate, read_bytes)
    if work is None:
        return None
    own = target.prompt_rates(report, tokens)
    return predict_prompt(work, tokens, target.bandwidth, target.machine.backend, own)


def slowest_type(
    report: FitReport, target: Target, moved: BytesPerToken | None
) -> tuple[str, float] | None:
    """Return the block type that slows decoding, and its rate per byte relative to Q4_K."""
    from engine.fit.estimate import GUESSED_LAYERS
    from engine.fit.speed import slow_type

    if moved is None:
        return None
    model = report.config or report.estimate
    layers = (model and model.layers) or GUESSED_LAYERS
    return slow_type(moved, layers, target.bandwidth, target.machine.backend, target.kernels)


def _offline_choice(
    name: str,
    reference: Reference,
    request: FitRequest,
    machine: Machine,
    headers: HeaderCache,
    known: FitReport | None,
) -> FitReport:
    """Choose among the quantisations in the catalog and those with cached headers."""

    def judge(option: Option) -> FitReport | None:
        chosen = reference.of(option.repository, option.quant)
        return _known(name, chosen, request, machine, headers)

    entry = reference.entry
    options = []
    if reference.is_open:
        options = [
            Option(repository, quant, sum(part.size_bytes for part in parts))
            for repository, quant in headers.quantisations(reference)
            if (parts := headers.find(reference.of(repository, quant)))
        ]
        options += catalog_options(entry) if entry else []
    if known is None and options:
        known, options = judge(options[0]), options[1:]
    if known is None:
        raise UsageError(
            f"no header or catalog data for {name} on this machine",
            f"Run `conifer fit {name}` without --machine once to download the header.",
        )
    return known if request.force else best(known, options, judge, request, machine)


def _known(
    name: str, reference: Reference, request: FitRequest, machine: Machine, headers: HeaderCache
) -> FitReport | None:
    """Judge a model by its cached header or, failing that, its catalog entry; else return None."""
    from engine.errors import GGUFError
    from engine.fit.estimate import judge_estimate
    from engine.gguf.reader import merge_parts, read_header

    cached = headers.find(reference)
    if cached is not None:
        with suppress(GGUFError):  # the cached copy is damaged
            metadata, tensors = merge_parts(
                [read_header(part.data, part.size_bytes, i) for i, part in enumerate(cached)]
            )
            with naming(name):
                report = judge_header(name, reference.entry, metadata, tensors, request, machine)
            size_bytes = sum(part.size_bytes for part in cached)
            source = "the header as last seen"
            return replace(report, size_bytes=size_bytes, source=source, reference=reference)
    entry = reference.entry
    estimate = estimate_of(entry, reference.catalog_file) if entry else None
    if estimate is None:
        return None
    verdict, q8_fits = judge_cache_types(
        lambda kv_type: judge_estimate(
            estimate, machine, request.context, kv_type, request.kernels
        ),
        request.kv_type,
    )
    return FitReport(
        name,
        entry,
        verdict,
        size_bytes=estimate.size_bytes,
        q8_fits=q8_fits,
        source="what the catalog knows",
        estimate=estimate,
        reference=reference,
    )
