"""Suggest models and settings that fit, using catalog data only. Opens no files or sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catalog import CatalogFile, Entry
    from engine.fit.estimate import ModelEstimate
    from engine.fit.machine import Machine
    from engine.fit.memory import Verdict

USEFUL_CONTEXT = 8192  # tokens; a suggested model must fit with this context


def supported() -> frozenset[str]:
    """Return the architectures that the engine implements."""
    from engine.architectures.registry import ARCHITECTURES

    return frozenset(ARCHITECTURES)


def best_moe(machine: Machine) -> Entry | None:
    """Return the largest MoE chat model whose default file fits."""
    from catalog import entries

    fitting = [
        entry
        for entry in entries().values()
        if entry.moe
        and entry.kind != "base"
        and entry.architecture in supported()
        and size_kind(entry, None, machine) == "fits"
    ]
    return max(fitting, key=lambda entry: entry.total_parameters or 0, default=None)


def estimate_of(entry: Entry, facts: CatalogFile | None) -> ModelEstimate | None:
    """Build an estimate from a catalog entry. None if the file size is unknown."""
    from engine.fit.estimate import ModelEstimate
    from engine.nn.cache.spec import CacheSpec

    if facts is None or facts.size_bytes is None:
        return None
    layer_specs = [
        CacheSpec(buffers=((1, values),), window=window)
        for count, values, window in entry.kv
        for _ in range(count)
    ]
    if entry.state_values:
        layer_specs.append(CacheSpec(state_values=entry.state_values))
    return ModelEstimate(
        size_bytes=facts.size_bytes,
        quant=facts.quant,
        context=entry.context,
        layers=entry.layers,
        total_parameters=entry.total_parameters,
        active_parameters=entry.active_parameters,
        layer_specs=tuple(layer_specs),
        parts=entry.parts,
        used=(entry.experts_used or 1) / (entry.experts or 1),
        routed_layers=entry.shape.experts[0] if entry.shape and entry.shape.experts else 0,
        kv_reuse=entry.shape.reuse if entry.shape else 0.0,
    )


def size_kind(entry: Entry, quant: str | None, machine: Machine) -> str | None:
    """Return the verdict with a useful context: fits, tight, too_large, or None if unknown."""
    from engine.fit.estimate import judge_estimate

    estimate = estimate_of(entry, entry.file(quant))
    if estimate is None:
        return None
    context = min(USEFUL_CONTEXT, entry.context or USEFUL_CONTEXT)
    return judge_estimate(estimate, machine, context).kind


def sizes_of(entry: Entry | None) -> dict[str, int]:
    """Return the file size in the catalog for each quantisation."""
    files = entry.files if entry else ()
    return {facts.quant: facts.size_bytes for facts in files if facts.size_bytes is not None}


def fitting_quants(entry: Entry, machine: Machine) -> dict[int, str]:
    """Return {file size: quantisation} for the catalog files that fit with a useful context."""
    return {
        size_bytes: quant
        for quant, size_bytes in sizes_of(entry).items()
        if size_kind(entry, quant, machine) == "fits"
    }


def ways_out(name: str, entry: Entry | None, verdict: Verdict, q8_fits: bool) -> Iterator[str]:
    """Yield hints for a model that does not fit, each with a command or option to use."""
    if verdict.largest_context:
        context = verdict.largest_context
        yield f"A context of {context:,} tokens fits: `conifer run {name} -c {context}`"
    if q8_fits:
        yield f"The model fits with an 8-bit KV cache: `conifer run {name} --kv-type q8`"
    if entry and entry.architecture in supported():
        fitting = fitting_quants(entry, verdict.machine)
        smaller = [size_bytes for size_bytes in fitting if size_bytes < verdict.file_bytes]
        if smaller:
            quant = fitting[max(smaller)]
            yield f"A smaller quantisation fits: `conifer run {entry.id}:{quant}`"
    best = best_moe(verdict.machine)
    if best and best != entry:
        yield f"The largest MoE model that fits this machine: `conifer run {best.id}`"
    yield "Run `conifer fit` to list every model, or pass --force to skip this check."
