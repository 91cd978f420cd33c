"""What `fit` asks: a verdict for any machine, here or elsewhere, from the best that is known.

A file on the disk is judged by its header; else the header on the hub is, or the one that was read
from there last; else what the catalog knows is an estimate. Beside the verdict: how fast the model
will be. No weight is read, and what the network withholds is no failure while anything is known.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from conifer_cli.errors import UsageError
from conifer_cli.fit import history
from conifer_cli.fit.alternatives import estimate_of
from conifer_cli.fit.plan import (
    Judged,
    Wishes,
    judge_disk,
    judge_header,
    judge_hub,
    require_context,
    settled,
)
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from catalog import Reference
    from catalog.hub.client import Hub
    from catalog.hub.header_cache import HeaderCache
    from catalog.store.cache import Store
    from engine.fit.machine import Machine
    from engine.fit.speed import Bandwidth, BytesPerToken, Rate


@dataclass(frozen=True)
class Place:
    """The machine that is judged for, and the kernels there.

    here: the machine whose measurements count, None for one that is elsewhere.
    prior: how fast that one reads memory.
    """

    machine: Machine
    kernels: str
    here: Machine | None
    prior: Bandwidth | None = None

    @cached_property
    def bandwidth(self) -> Bandwidth:
        """The rate of its memory; the first time that it is asked for, it is measured."""
        if self.here is not None:
            return history.bandwidth_of(self.here)
        assert self.prior is not None
        return self.prior

    @cached_property
    def ratios(self) -> dict[tuple[str, int], list[float]]:
        """What real runs took here, by file, as a multiple of what the priors say."""
        return history.ratios(self.here, self.kernels, self.bandwidth) if self.here else {}

    @property
    def telling(self) -> list[float]:
        """The same of the files that are large enough to say something of others, one each."""
        return [
            history.median(ratios) or 1.0
            for (_, size_bytes), ratios in self.ratios.items()
            if size_bytes >= history.TELLING_BYTES
        ]


def place(machine: str | None, memory_bytes: int | None, idle: bool, kernels: str) -> Place:
    """Choose the machine. machine: a name such as m4-max-64gb; None is this one.

    memory_bytes: instead of what it has. idle: as if nothing else ran. Raises UsageError.
    """
    from engine.fit import machine_specs
    from engine.fit.machine import this_machine
    from engine.kernels.select import selected

    if machine is not None:
        try:
            there, prior = machine_specs.simulate(machine, memory_bytes)
        except machine_specs.UnknownMachine as error:
            raise UsageError(f"--machine: {error}") from error
        return Place(there, selected(kernels, there.backend), None, prior)
    here = this_machine(idle=idle)
    there = here if memory_bytes is None else machine_specs.resized(here, memory_bytes)
    return Place(there, selected(kernels, there.backend), here)


def survey(
    name: str,
    reference: Reference,
    wishes: Wishes,
    machine: Machine,
    store: Store,
    connect: Callable[[], Hub] | None,
) -> Judged:
    """Judge one model by the best that is known of it. connect: None asks no hub.

    Raises what the hub raised, where nothing at all is known.
    """
    from catalog import CatalogError
    from catalog.hub.header_cache import HeaderCache

    entry, headers = reference.entry, HeaderCache(store.home)
    paths = store.find(reference)
    if paths:
        return judge_disk(name, reference, paths[0], wishes, machine)
    if entry is not None:
        from engine.architectures.registry import require_architecture

        require_context(name, entry.context or wishes.context or 0, wishes)
        require_architecture(entry.architecture)
    known = _known(name, reference, wishes, machine, headers)
    certain = known is not None and known.estimate and settled(reference.catalog_file, machine)
    if known is not None and (connect is None or reference.package or certain):
        return known
    if connect is None:
        raise UsageError(
            f"nothing is known of {name} on this machine",
            f"`conifer fit {name}` reads its header from the hub; it is kept from then on.",
        )
    try:
        return judge_hub(name, reference, wishes, machine, connect(), headers)
    except CatalogError as error:
        if known is None:
            raise
        console.say(f"conifer: {error}; judged by {known.source}")
        return known


def moves(judged: Judged, there: Place, wishes: Wishes, depth: int) -> BytesPerToken | None:
    """Count what one token moves at a depth; None where nothing says how much."""
    backend, kernels, kv_type = there.machine.backend, there.kernels, wishes.kv_type
    if judged.config is not None and judged.tensors is not None:
        from engine.fit.speed import bytes_per_token

        return bytes_per_token(judged.config, judged.tensors, backend, kernels, depth, kv_type)
    if judged.estimate is None:
        return None
    from engine.fit.estimate import estimate_bytes_per_token

    return estimate_bytes_per_token(judged.estimate, backend, kernels, depth, kv_type)


def speed(judged: Judged, there: Place, moved: BytesPerToken | None) -> Rate | None:
    """Predict how fast a model decodes that moves so much; what ran here is measured."""
    from engine.fit.estimate import GUESSED_LAYERS
    from engine.fit.speed import predict

    if moved is None:
        return None
    layers = judged.config.layers if judged.config else judged.estimate and judged.estimate.layers
    file = (judged.paths[0].name, judged.size_bytes) if judged.paths else ("", 0)
    return predict(
        moved,
        layers or GUESSED_LAYERS,
        there.bandwidth,
        there.machine.backend,
        there.kernels,
        own=there.ratios.get(file, ()),
        others=there.telling,
        estimated=judged.config is None,
    )


def _known(
    name: str, reference: Reference, wishes: Wishes, machine: Machine, headers: HeaderCache
) -> Judged | None:
    """Judge by what is here of a model that is not: its header, or else what the catalog knows."""
    from engine.errors import GGUFError
    from engine.fit.estimate import judge_estimate
    from engine.gguf.reader import merge_parts, read_header

    kept = headers.find(reference)
    if kept is not None:
        with suppress(GGUFError):  # cut short, or damaged on the disk
            metadata, tensors = merge_parts(
                [read_header(part.data, part.size_bytes, i) for i, part in enumerate(kept)]
            )
            judged = judge_header(name, reference.entry, metadata, tensors, wishes, machine)
            size_bytes = sum(part.size_bytes for part in kept)
            return replace(judged, size_bytes=size_bytes, source="the header as last seen")
    entry = reference.entry
    estimate = estimate_of(entry, reference.catalog_file) if entry else None
    if estimate is None:
        return None
    kernels, kv_type = wishes.kernels, wishes.kv_type
    verdict = judge_estimate(estimate, machine, wishes.context, kv_type, kernels)
    q8_fits = verdict.kind == "too_large" and kv_type != "q8"
    if q8_fits:
        q8_fits = (
            judge_estimate(estimate, machine, wishes.context, "q8", kernels).kind != "too_large"
        )
    return Judged(
        name,
        entry,
        verdict,
        size_bytes=estimate.size_bytes,
        package=reference.package,
        q8_fits=q8_fits,
        source="what the catalog knows",
        estimate=estimate,
    )
