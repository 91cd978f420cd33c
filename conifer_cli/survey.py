"""What `fit` asks: a verdict for any machine, here or elsewhere, from the best that is known.

A file on the disk is judged by its header; else the header on the hub is, or the one that was read
from there last; else what the catalog knows is an estimate. Beside the verdict: how fast the model
will be. No weight is read, and what the network withholds is no failure while anything is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from conifer_cli import ledger, terminal
from conifer_cli.errors import UsageError
from conifer_cli.suggest import sketch_of
from conifer_cli.verdict import Judged, Wishes, judge_disk, judge_header, judge_hub, require_context

if TYPE_CHECKING:
    from catalog import Entry, Reference
    from catalog.headers import Headers
    from catalog.hub import Hub
    from catalog.store import Store
    from engine.machine import Machine
    from engine.memory import Need
    from engine.speed import Bandwidth, Rate, Traffic

RUNGS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)  # contexts of the ladder


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
            return ledger.bandwidth_of(self.here)
        assert self.prior is not None
        return self.prior

    @cached_property
    def ratios(self) -> dict[tuple[str, int], list[float]]:
        """What real runs took here, by file, as a multiple of what the priors say."""
        return ledger.ratios(self.here, self.kernels, self.bandwidth) if self.here else {}

    @property
    def telling(self) -> list[float]:
        """The same of the files that are large enough to say something of others, one each."""
        return [
            ledger.median(ratios) or 1.0
            for (_, size_bytes), ratios in self.ratios.items()
            if size_bytes >= ledger.TELLING_BYTES
        ]


@dataclass(frozen=True)
class Rung:
    """One quantisation of the ladder: its size, and for each context a verdict and a rate.

    known: this is the one whose header was read; the others are judged in proportion.
    """

    quant: str
    size_bytes: int
    known: bool
    steps: tuple[tuple[int, str, Rate | None], ...]  # context, kind, rate at its end


def place(machine: str | None, memory_bytes: int | None, idle: bool, kernels: str) -> Place:
    """Choose the machine. machine: a name such as m4-max-64gb; None is this one.

    memory_bytes: instead of what it has. idle: as if nothing else ran. Raises UsageError.
    """
    from engine import chips
    from engine.kernels import selected
    from engine.machine import this_machine

    if machine is not None:
        try:
            there, prior = chips.simulate(machine, memory_bytes)
        except chips.UnknownMachine as error:
            raise UsageError(f"--machine: {error}") from error
        return Place(there, selected(kernels, there.backend), None, prior)
    here = this_machine(idle=idle)
    there = here if memory_bytes is None else chips.resized(here, memory_bytes)
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
    from catalog.headers import Headers

    entry, headers = reference.entry, Headers(store.home)
    paths = store.find(reference)
    if paths:
        return judge_disk(name, reference, paths[0], wishes, machine)
    if entry is not None:
        from engine.models import require_architecture

        require_context(name, entry.context or wishes.context or 0, wishes)
        require_architecture(entry.architecture)
    known = _known(name, reference, wishes, machine, headers)
    if known is not None and (connect is None or reference.package or _certain(known, machine)):
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
        terminal.say(f"conifer: {error}; judged by {known.source}")
        return known


def moves(judged: Judged, there: Place, wishes: Wishes, depth: int) -> Traffic | None:
    """Count what one token moves at a depth; None where nothing says how much."""
    backend, kernels, kv_type = there.machine.backend, there.kernels, wishes.kv_type
    if judged.config is not None and judged.tensors is not None:
        from engine.speed import traffic

        return traffic(judged.config, judged.tensors, backend, kernels, depth, kv_type)
    if judged.sketch is None:
        return None
    from engine.sketch import sketch_traffic

    return sketch_traffic(judged.sketch, backend, kernels, depth, kv_type)


def speed(judged: Judged, there: Place, moved: Traffic | None) -> Rate | None:
    """Predict how fast a model decodes that moves so much; what ran here is measured."""
    from engine.sketch import GUESSED_LAYERS
    from engine.speed import predict

    if moved is None:
        return None
    layers = judged.config.layers if judged.config else judged.sketch and judged.sketch.layers
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


def ladder(judged: Judged, there: Place, wishes: Wishes, sizes: Mapping[str, int]) -> list[Rung]:
    """Judge quantisations by contexts. sizes: of the files that there are, by quantisation.

    That which was judged itself is exact; another one's weights are taken in proportion to it.
    """
    from engine.memory import kind_of

    contexts = _contexts(judged)
    quant = judged_quant(judged)
    rungs = []
    files = {**sizes, quant: judged.size_bytes}
    for name, size_bytes in sorted(files.items(), key=lambda pair: pair[1]):
        need, share = _other(judged, there, wishes, name, size_bytes)
        steps = []
        for context in contexts:
            kind = kind_of(need(context), there.machine)
            moved = moves(judged, there, wishes, context)
            rate = None
            if kind != "too_large" and moved is not None:
                of_it = judged if share == 1 else replace(judged, paths=())
                rate = speed(of_it, there, moved.scaled(share))
            steps.append((context, kind, rate))
        rungs.append(Rung(name, size_bytes, name == quant, tuple(steps)))
    return rungs


def judged_quant(judged: Judged) -> str:
    """Name the quantisation of what was judged."""
    from catalog.names import label

    if judged.sketch is not None:
        return judged.sketch.quant
    first = judged.paths[0].name if judged.paths else judged.remote[0].name if judged.remote else ""
    return label(first) or "this file"


def sizes_of(entry: Entry | None) -> dict[str, int]:
    """Say which quantisations the catalog knows, and their sizes."""
    files = entry.files if entry else ()
    return {facts.quant: facts.size_bytes for facts in files if facts.size_bytes is not None}


def _other(
    judged: Judged, there: Place, wishes: Wishes, quant: str, size_bytes: int
) -> tuple[Callable[[int], Need], float]:
    """Give the need of a quantisation as a function of the context, and its share of the bytes."""
    from engine.kernels import growth
    from engine.memory import needs
    from engine.sketch import sketch_needs

    backend, kernels, mine = there.machine.backend, there.kernels, judged_quant(judged)
    if judged.config is None or judged.tensors is None:
        assert judged.sketch is not None
        sketch = replace(judged.sketch, quant=quant, size_bytes=size_bytes)
        need = sketch_needs(sketch, backend, wishes.kv_type, kernels)
        held = need(1).weights_bytes
    else:
        held = judged.verdict.need.weights_bytes
        if quant != mine:
            grown = growth(quant, backend, kernels) / growth(mine, backend, kernels)
            held = int(held * size_bytes / judged.size_bytes * grown)
        need = needs(judged.config, judged.tensors, backend, wishes.kv_type, kernels, held)
    return need, held / judged.verdict.need.weights_bytes


def _contexts(judged: Judged) -> list[int]:
    """Choose contexts for the ladder: the usual ones, the model's own, and the one judged for."""
    own = judged.config.context if judged.config else judged.sketch and judged.sketch.context
    known = judged.entry.context if judged.entry else None
    most = min(own or RUNGS[-1], known or RUNGS[-1])
    usual = [context for context in RUNGS if context < most]
    return sorted({*usual, min(most, RUNGS[-1]), judged.verdict.context})


def _known(
    name: str, reference: Reference, wishes: Wishes, machine: Machine, headers: Headers
) -> Judged | None:
    """Judge by what is here of a model that is not: its header, or else what the catalog knows."""
    from engine.errors import GGUFError
    from engine.gguf import merge_parts, read_header
    from engine.sketch import judge_sketch

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
    sketch = sketch_of(entry, reference.facts) if entry else None
    if sketch is None:
        return None
    kernels, kv_type = wishes.kernels, wishes.kv_type
    verdict = judge_sketch(sketch, machine, wishes.context, kv_type, kernels)
    q8_fits = verdict.kind == "too_large" and kv_type != "q8"
    if q8_fits:
        q8_fits = judge_sketch(sketch, machine, wishes.context, "q8", kernels).kind != "too_large"
    return Judged(
        name,
        entry,
        verdict,
        size_bytes=sketch.size_bytes,
        package=reference.package,
        q8_fits=q8_fits,
        source="what the catalog knows",
        sketch=sketch,
    )


def _certain(known: Judged, machine: Machine) -> bool:
    """Tell whether no header could change the verdict: the file alone is too large."""
    from engine.memory import judge_size

    return known.sketch is not None and judge_size(known.size_bytes, machine).kind == "too_large"
