"""Estimate memory use and decode rate from catalog facts, for a model that is not on this machine.

File and cache sizes are exact if the catalog lists them. Scratch buffers and unknown caches are
assumed to be large, because an estimate must not be more optimistic than the actual header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby

from engine.fit.machine import Machine
from engine.fit.memory import DEFAULT_CONTEXT, Need, Verdict, judge_needs, program_bytes
from engine.fit.speed import BytesPerToken
from engine.fit.streaming import RoutedExperts, guessed_experts
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.select import selected
from engine.kernels.sizes import FP4, loaded_bytes, main_type
from engine.limits import SCORE_BYTES
from engine.nn.cache.spec import CacheSpec, kv_bytes, kv_read_bytes, token_bytes

ROWS_BYTES = 384 << 20  # for one prefill chunk in the widest models in the catalog
EIGHT, SIX, FOUR = 8.5, 6.5625, 4.5  # bits per weight of Q8_0, Q6_K and Q4_0
MORE_BITS = 0.35  # that attention has in a mix such as Q4_K_M, on average
GUESSED_LAYERS = 48
GUESSED_VOCABULARY = 160_000
GUESSED = CacheSpec(buffers=((1, 1024),))  # for each layer, if the catalog does not list them


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """A model's catalog facts. None or an empty value means unknown.

    size_bytes: all parts of the file. layer_specs: one for each layer that has a cache. parts: how
    many weights are routed experts, attention, shared, head, an embedding that is not the head, and
    embeddings of n-grams.
    used: the share of the experts that a token uses. experts: how many a layer has.
    routed_layers, kv_reuse: see `BytesPerToken`. scores: see `engine.fit.prefill.PromptWork`.
    """

    size_bytes: int
    quant: str
    context: int | None = None
    layers: int | None = None
    total_parameters: int | None = None
    active_parameters: int | None = None
    layer_specs: tuple[CacheSpec, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    used: float = 1.0
    experts: int = 0
    routed_layers: int = 0
    kv_reuse: float = 0.0
    scores: int = 0

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
    experts = estimated_experts(estimate, machine.backend, kernels)
    return judge_needs(
        need, machine, most, context, estimate.size_bytes, estimated=True, experts=experts
    )


def estimated_experts(estimate: ModelEstimate, backend: str, kernels: str) -> RoutedExperts | None:
    """Estimate the size of the experts; None if it is unknown, or they cannot stay on the disk."""
    sizes = _sizes(estimate) if estimate.parts else None
    if sizes is None or not estimate.experts:
        return None
    growth = estimate_weights(estimate, backend, kernels) / estimate.size_bytes
    size_bytes = int(growth * sizes["experts"] / estimate.used)
    used = round(estimate.used * estimate.experts)
    chosen = selected(kernels, backend)
    file_bytes = int(sizes["experts"] / estimate.used)
    routed = estimate.routed_layers, estimate.experts, used
    guess = guessed_experts(*routed, size_bytes, chosen, file_bytes)
    if chosen != "native":
        return guess
    more = 2 * ROWS_BYTES  # only experts take a longer chunk at once: 0.5 MB a token
    return replace(guess, buffers_bytes=more) if guess else None


def estimate_needs(
    estimate: ModelEstimate, backend: str, kv_type: str, kernels: str
) -> Callable[[int], Need]:
    """Return a function that estimates the memory needed for a given context, in tokens."""
    weights_bytes = estimate_weights(estimate, backend, kernels)
    layers = [(spec, len([*alike])) for spec, alike in groupby(estimate.cache_specs)]
    specs = [spec for spec, _ in layers]
    layer_bytes = sum(max(token_bytes(spec, kind) for spec in specs) for kind in (kv_type, "f32"))
    program = program_bytes(GUESSED_VOCABULARY, backend)

    @cache
    def need(context: int) -> Need:
        buffers = ROWS_BYTES + 2 * SCORE_BYTES + int(context * layer_bytes)
        kv = sum(count * kv_bytes((spec,), context, kv_type) for spec, count in layers)
        return Need(weights_bytes, kv, buffers, program)

    return need


def estimate_weights(estimate: ModelEstimate, backend: str, kernels: str) -> int:
    """Estimate the size of the loaded weights in bytes."""
    kernels = selected(kernels, backend)
    quant, size_bytes, weights = estimate.quant, estimate.size_bytes, estimate.total_parameters
    return loaded_bytes(quant, size_bytes, weights, backend, kernels)


def estimate_bytes_per_token(
    estimate: ModelEstimate, backend: str, kernels: str, depth: int, kv_type: str
) -> BytesPerToken | None:
    """Estimate the bytes read for each token, from the model's shapes if they are known.

    Returns None if the parameter counts are unknown, too.
    """
    sizes = _sizes(estimate)
    if sizes is None:
        return None
    growth = estimate_weights(estimate, backend, kernels) / estimate.size_bytes
    read = {f"{part}_bytes": int(growth * size_bytes) for part, size_bytes in sizes.items()}
    weights = sum(read.values())
    base = main_type(estimate.quant)
    return BytesPerToken(
        **read,
        kv_bytes=kv_read_bytes(estimate.cache_specs, depth, kv_type),
        types={base: weights} if base and kernels == "native" else {},
        routed_layers=estimate.routed_layers,
        kv_reuse=estimate.kv_reuse,
    )


def part_bits(quant: str) -> tuple[float, float, float]:
    """Return the usual bits per weight of a file's attention, head and embedding.

    A mix gives some of its attention more bits than its name says, and its head six at least. MXFP4
    files keep eight bits for all but the experts.
    """
    base = main_type(quant)
    if base is None or base in FP4:
        return EIGHT, EIGHT, EIGHT
    kind = TYPE_BY_NAME[base]
    bits = 8 * kind.size_bytes / kind.weights
    return (bits, bits, bits) if bits >= SIX else (bits + MORE_BITS, SIX, bits)


def _sizes(estimate: ModelEstimate) -> dict[str, float] | None:
    """Return the bytes of the file that one token reads, by purpose; None if unknown."""
    parts, total, active = estimate.parts, estimate.total_parameters, estimate.active_parameters
    if not parts:
        if not total or not active:
            return None
        share = active / total
        used = estimate.size_bytes * share
        experts = used if share < 1 else 0.0
        return {"experts": experts, "attention": 0.0, "shared": used - experts, "head": 0.0}
    attention_bits, head_bits, embedding_bits = part_bits(estimate.quant)
    # Rows of n-grams are too short for blocks of 256, so they get types of more bits.
    row_bits = FOUR if embedding_bits <= FOUR else EIGHT
    tables = parts["embedding"] * embedding_bits + parts.get("ngrams", 0) * row_bits
    embedding = tables / 8
    bits = {"attention": attention_bits, "shared": attention_bits, "head": head_bits}
    always = {part: parts[part] * bits[part] / 8 for part in bits}
    rest = estimate.size_bytes - embedding - sum(always.values())
    if parts["routed"]:
        return {"experts": max(0.0, rest) * estimate.used, **always}
    scale = (estimate.size_bytes - embedding) / sum(always.values())  # a dense model reads the rest
    return {"experts": 0.0, **{part: scale * size_bytes for part, size_bytes in always.items()}}
