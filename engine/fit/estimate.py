"""A model before its header was read: judged by the size of its file and what else is known of it.

The file's size is what it is; what a layer keeps is as published. Buffers are taken for large, and
where nothing says what layers keep, it is taken to be much: an estimate should not promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from engine.fit.machine import Machine
from engine.fit.memory import (
    DEFAULT_CONTEXT,
    Need,
    Verdict,
    judge_needs,
    program_bytes,
)
from engine.fit.speed import BytesPerToken
from engine.kernels.select import selected
from engine.kernels.sizes import loaded_size_ratio
from engine.limits import SCORE_BYTES
from engine.nn.cache_spec import CacheSpec, kv_bytes, kv_read_bytes, token_bytes

ROWS_BYTES = 384 << 20  # of one prefill chunk, in the widest models of the catalog
GUESSED_LAYERS = 48
GUESSED_VOCABULARY = 160_000
GUESSED = CacheSpec(buffers=((1, 1024),))  # of every layer, where nothing is known


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """What is known of a model without its header; None or empty is not known.

    size_bytes: of the file, all parts. layer_specs: what each layer caches; layers that cache
    nothing are left out.
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
        """What each layer caches, or a guess on the high side."""
        return self.layer_specs or (GUESSED,) * (self.layers or GUESSED_LAYERS)


def judge_estimate(
    estimate: ModelEstimate,
    machine: Machine,
    context: int | None = None,
    kv_type: str = "f16",
    kernels: str = "auto",
) -> Verdict:
    """Judge as `engine.fit.memory.judge` does, by an estimate."""
    most = estimate.context or max(DEFAULT_CONTEXT, context or 0)
    need = estimate_needs(estimate, machine.backend, kv_type, kernels)
    return judge_needs(need, machine, most, context, estimate.size_bytes, estimated=True)


def estimate_needs(
    estimate: ModelEstimate, backend: str, kv_type: str, kernels: str
) -> Callable[[int], Need]:
    """Give the estimated need as a function of the context, in tokens."""
    weights_bytes = estimate_weights(estimate, backend, kernels)
    stored = max(token_bytes(spec, kv_type) for spec in estimate.cache_specs)
    widened = max(token_bytes(spec, "f32") for spec in estimate.cache_specs)
    program = program_bytes(GUESSED_VOCABULARY, backend)

    @cache
    def need(context: int) -> Need:
        kv = kv_bytes(estimate.cache_specs, context, kv_type)
        scores = 2 * SCORE_BYTES + int(context * (stored + widened))
        return Need(weights_bytes, kv, ROWS_BYTES + scores, program)

    return need


def estimate_weights(estimate: ModelEstimate, backend: str, kernels: str) -> int:
    """Estimate what the weights take once loaded."""
    return int(
        estimate.size_bytes * loaded_size_ratio(estimate.quant, backend, selected(kernels, backend))
    )


def estimate_bytes_per_token(
    estimate: ModelEstimate, backend: str, kernels: str, depth: int, kv_type: str
) -> BytesPerToken | None:
    """Estimate what one token moves: of the weights, the share of the active parameters.

    None where nothing says how many of them there are.
    """
    if not estimate.total_parameters or not estimate.active_parameters:
        return None
    share = estimate.active_parameters / estimate.total_parameters
    weights = int(estimate_weights(estimate, backend, kernels) * share)
    return BytesPerToken(
        experts_bytes=weights if share < 1 else 0,
        attention_bytes=0,
        shared_bytes=0 if share < 1 else weights,
        head_bytes=0,
        kv_bytes=kv_read_bytes(estimate.cache_specs, depth, kv_type),
    )
