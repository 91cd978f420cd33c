"""Estimate memory use and decode rate from catalog facts, for a model that is not on this machine.

File and cache sizes are exact if the catalog lists them. Scratch buffers and unknown caches are
assumed to be large, because an estimate must not be more optimistic than the actual header.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from engine.fit.machine import Machine
from engine.fit.memory import DEFAULT_CONTEXT, Need, Verdict, judge_needs, program_bytes
from engine.fit.speed import BytesPerToken
from engine.kernels.select import selected
from engine.kernels.sizes import loaded_bytes, main_type
from engine.limits import SCORE_BYTES
from engine.nn.cache.spec import CacheSpec, kv_bytes, kv_read_bytes, token_bytes

ROWS_BYTES = 384 << 20  # for one prefill chunk in the widest models in the catalog
GUESSED_LAYERS = 48
GUESSED_VOCABULARY = 160_000
GUESSED = CacheSpec(buffers=((1, 1024),))  # for each layer, if the catalog does not list them


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """A model's catalog facts. None or an empty value means unknown.

    size_bytes: all parts of the file. layer_specs: one for each layer that has a cache.
    """

    size_bytes: int
    quant: str
    context: int | None = None
    layers: int | None = None
    total_parameters: int | None = None
    active_parameters: int | None = None
    layer_specs: tuple[CacheSpec, ...] = ()

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """What each layer caches, or a deliberately high guess if that is unknown."""
        return self.layer_specs or (GUESSED,) * (self.layers or GUESSED_LAYERS)


def judge_estimate(
    estimate: ModelEstimate,
    machine: Machine,
    context: int | None = None,
    kv_type: str = "f16",
    kernels: str = "auto",
) -> Verdict:
    """Return the verdict for an estimate. See `engine.fit.memory.judge`."""
    most = estimate.context or max(DEFAULT_CONTEXT, context or 0)
    need = estimate_needs(estimate, machine.backend, kv_type, kernels)
    return judge_needs(need, machine, most, context, estimate.size_bytes, estimated=True)


def estimate_needs(
    estimate: ModelEstimate, backend: str, kv_type: str, kernels: str
) -> Callable[[int], Need]:
    """Return a function that estimates the memory needed for a given context, in tokens."""
    weights_bytes = estimate_weights(estimate, backend, kernels)
    specs = estimate.cache_specs
    layer_bytes = sum(max(token_bytes(spec, kind) for spec in specs) for kind in (kv_type, "f32"))
    program = program_bytes(GUESSED_VOCABULARY, backend)

    @cache
    def need(context: int) -> Need:
        buffers = ROWS_BYTES + 2 * SCORE_BYTES + int(context * layer_bytes)
        return Need(weights_bytes, kv_bytes(specs, context, kv_type), buffers, program)

    return need


def estimate_weights(estimate: ModelEstimate, backend: str, kernels: str) -> int:
    """Estimate the size of the loaded weights in bytes."""
    kernels = selected(kernels, backend)
    quant, size_bytes, weights = estimate.quant, estimate.size_bytes, estimate.total_parameters
    return loaded_bytes(quant, size_bytes, weights, backend, kernels)


def estimate_bytes_per_token(
    estimate: ModelEstimate, backend: str, kernels: str, depth: int, kv_type: str
) -> BytesPerToken | None:
    """Estimate the bytes read for each token. Returns None if the parameter counts are unknown."""
    if not estimate.total_parameters or not estimate.active_parameters:
        return None
    share = estimate.active_parameters / estimate.total_parameters
    weights = int(estimate_weights(estimate, backend, kernels) * share)
    experts, shared = (weights, 0) if share < 1 else (0, weights)
    kv = kv_read_bytes(estimate.cache_specs, depth, kv_type)
    base = main_type(estimate.quant)
    types = {base: weights} if base and kernels == "native" else {}
    return BytesPerToken(experts, 0, shared, 0, kv_bytes=kv, types=types)
