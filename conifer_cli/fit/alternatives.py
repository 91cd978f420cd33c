"""Suggest models and settings that fit, from sizes in the catalog. Opens no files or sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catalog import CatalogFile, Entry
    from engine.fit.estimate import ModelEstimate
    from engine.fit.machine import Machine
    from engine.fit.memory import Verdict

USEFUL_CONTEXT = 8192


def supported() -> frozenset[str]:
    """Return the architectures that the engine implements."""
    from engine.architectures.registry import ARCHITECTURES

    return frozenset(ARCHITECTURES)


def best_moe(machine: Machine) -> Entry | None:
    """Return the largest Mixture-of-Experts chat model whose default file fits."""
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
    """Return what the catalog knows about a file; None if its size is unknown."""
    from engine.fit.estimate import ModelEstimate
    from engine.nn.cache_spec import CacheSpec

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
    )


def size_kind(entry: Entry, quant: str | None, machine: Machine) -> str | None:
    """Return fits, tight or too_large with a useful context; None if the size is unknown."""
    from engine.fit.estimate import judge_estimate

    estimate = estimate_of(entry, entry.file(quant))
    if estimate is None:
        return None
    return judge_estimate(estimate, machine, useful_context(entry)).kind


def useful_context(entry: Entry) -> int:
    """Return the smallest context, in tokens, for which a model is worth suggesting."""
    return min(USEFUL_CONTEXT, entry.context or USEFUL_CONTEXT)


def ways_out(name: str, entry: Entry | None, verdict: Verdict, q8_fits: bool) -> Iterator[str]:
    """Yield alternatives that fit, each with its command."""
    if verdict.largest_context:
        context = verdict.largest_context
        yield f"A context of {context:,} fits: `conifer run {name} -c {context}`"
    if q8_fits:
        yield f"An 8-bit KV cache fits: `conifer run {name} --kv-type q8`"
    smaller = _smaller_quant(entry, verdict) if entry else None
    if entry and smaller:
        yield f"A smaller quantisation fits: `conifer run {entry.id}:{smaller}`"
    best = best_moe(verdict.machine)
    if best and best != entry:
        yield f"The largest Mixture-of-Experts model that fits here: `conifer run {best.id}`"
    yield "`conifer fit` lists every model; --force tries anyway."


def _smaller_quant(entry: Entry, verdict: Verdict) -> str | None:
    """Return the largest smaller quantisation in the catalog that fits."""
    if entry.architecture not in supported():
        return None
    smaller = {
        facts.size_bytes: facts.quant
        for facts in entry.files
        if facts.size_bytes is not None
        and facts.size_bytes < verdict.file_bytes
        and size_kind(entry, facts.quant, verdict.machine) == "fits"
    }
    return smaller[max(smaller)] if smaller else None
