"""Suggest models and settings that fit, using catalog data only. Opens no files or sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catalog import CatalogFile, Entry
    from engine.fit.estimate import ModelEstimate
    from engine.fit.machine import Machine

USEFUL_CONTEXT = 8192  # tokens; a suggested model must fit with this context


def supported() -> frozenset[str]:
    """Return the architectures that the engine implements."""
    from engine.architectures.registry import ARCHITECTURES

    return frozenset(ARCHITECTURES)


def estimate_of(entry: Entry, facts: CatalogFile | None) -> ModelEstimate | None:
    """Build an estimate from a catalog entry. None if the file size is unknown."""
    from engine.fit.estimate import ModelEstimate
    from engine.nn.cache.spec import CacheSpec

    if facts is None or facts.size_bytes is None:
        return None
    layer_specs: tuple[CacheSpec, ...] = ()
    for count, values, window in entry.kv:
        layer_specs += count * (CacheSpec(buffers=((1, values),), window=window),)
    if entry.state_values:
        layer_specs += (CacheSpec(state_values=entry.state_values),)
    return ModelEstimate(
        size_bytes=facts.size_bytes,
        quant=facts.quant,
        context=entry.context,
        layers=entry.layers,
        total_parameters=entry.total_parameters,
        active_parameters=entry.active_parameters,
        layer_specs=layer_specs,
        parts=entry.parts,
        used=(entry.experts_used or 1) / (entry.experts or 1),
        experts=entry.experts or 0,
        routed_layers=entry.shape.experts[0] if entry.shape and entry.shape.experts else 0,
        kv_reuse=entry.shape.reuse if entry.shape else 0.0,
        scores=entry.shape.scores if entry.shape else 0,
    )


def size_kind(entry: Entry, quant: str | None, machine: Machine) -> str | None:
    """Return the verdict with a useful context: fits, tight, too_large, or None if unknown."""
    from engine.fit.estimate import judge_estimate

    estimate = estimate_of(entry, entry.file(quant))
    if estimate is None:
        return None
    context = min(USEFUL_CONTEXT, entry.context or USEFUL_CONTEXT)
    return judge_estimate(estimate, machine, context).kind


def sibling(entry: Entry, context: int) -> Entry | None:
    """Return another model of the same shape that supports a context of so many tokens."""
    from catalog import entries

    alike = [
        other
        for other in entries().values()
        if entry.shape is not None
        and (other.shape, other.experts) == (entry.shape, entry.experts)
        and (other.context or 0) >= context
        and other.kind != "base"
    ]
    return max(alike, key=lambda other: other.kind == "instruct", default=None)


def sizes_of(entry: Entry | None) -> dict[str, int]:
    """Return the file size in the catalog for each quantisation."""
    files = entry.files if entry else ()
    return {facts.quant: facts.size_bytes for facts in files if facts.size_bytes is not None}


def fitting_quants(entry: Entry, machine: Machine) -> dict[int, str]:
    """Return {file size: quantisation} for the catalog files that fit with a useful context."""
    from engine.fit.estimate import estimate_needs
    from engine.fit.memory import kind_of

    context = min(USEFUL_CONTEXT, entry.context or USEFUL_CONTEXT)
    found = {}
    for quant, size_bytes in sizes_of(entry).items():
        if (estimate := estimate_of(entry, entry.file(quant))) is not None:
            need = estimate_needs(estimate, machine.backend, "f16", "auto")(context)
            if kind_of(need, machine) == "fits":
                found[size_bytes] = quant
    return found
