"""Determine whether a model fits on a machine, and how large its context can be.

`fit` prints the verdict; `pull` and `run` enforce it. It depends only on the model's header and
the machine. No weights are read. All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache

from engine.fit.machine import GIVEN, Machine
from engine.fit.streaming import Plan, RoutedExperts, plan, routed_experts
from engine.gguf.reader import TensorInfo
from engine.kernels.fusion import fuses
from engine.kernels.select import selected
from engine.kernels.sizes import resident_bytes
from engine.limits import (
    INDEXER_BYTES,
    MAX_CHUNK,
    MIN_CHUNK,
    PIECE_BYTES,
    SCAN_CHUNK,
    SCORE_BYTES,
    STREAM_CHUNK,
)
from engine.nn.cache.spec import STEP, CacheSpec, kv_bytes, row_bytes, rows_held, token_bytes
from engine.nn.config import ModelConfig, used_tensors

MARGIN = 1.02  # computed memory use is accurate to about 2 %
RESERVE_SHARE = 0.04  # of the machine's memory, reserved for other programs
MIN_RESERVE = 512 << 20
UNREAD_SHARE = 0.03  # upper bound on draft layers in a file, which are not loaded
# Python, MLX and Conifer, and the tokenizer's share per vocabulary entry. Both were measured on
# Linux during a chat. A GPU adds its runtime.
PROGRAM, WORD_BYTES = 50 << 20, 512
GPU_RUNTIME = 256 << 20
DEFAULT_CONTEXT = 32_768
STREAM_CONTEXT = 8192  # of a model that streams: a larger cache would take the place of experts
# What the page cache holds of the program's files that none has read before: 80 to 115 MB were
# measured. The margin has room for the rest.
PROGRAM_FILES = 96 << 20
REPACKED_PIECE = 40 << 20  # for repacking eight million weights


@dataclass(frozen=True, slots=True)
class Need:
    """The memory required to run a model."""

    weights_bytes: int
    kv_bytes: int
    buffers_bytes: int
    program_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.buffers_bytes + self.program_bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model fits, at which context, and on which machine.

    need: with all weights in memory. context: assumed context, in tokens. largest_context: the
    largest context that does not make the model too large, or 0 if there is none. file_bytes: size
    of the tensors in the file; repacked weights may be larger. estimated: based on catalog facts,
    not on the header. plan: how memory is split if experts stay on the disk.
    """

    kind: str  # fits | tight | streams | too_large
    need: Need
    machine: Machine
    reserve_bytes: int
    context: int
    largest_context: int
    file_bytes: int
    estimated: bool = False
    plan: Plan | None = None

    @property
    def budget_bytes(self) -> int:
        return self.machine.budget_bytes


def judge(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    machine: Machine,
    context: int | None = None,
    kv_type: str = "f16",
    default_context: int | None = None,
    kernels: str = "auto",
) -> Verdict:
    """Return the verdict for a model, from its header.

    context: in tokens. None means the smallest of the model's maximum, `default_context`, 32,768
    and the largest context that fits. kernels: auto, native, blocks or stock.
    """
    most = min(config.context, default_context or config.context)
    need = needs(config, tensors, machine.backend, kv_type, kernels)
    file_bytes = sum(info.size_bytes for info in tensors.values())
    experts = streamed_experts(config, tensors, machine.backend, kernels)
    return judge_needs(need, machine, most, context, file_bytes, experts=experts)


def streamed_experts(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], backend: str, kernels: str
) -> RoutedExperts | None:
    """Return a model's experts if they can stay on the disk, with the longer chunks' buffers."""
    kernels = selected(kernels, backend)
    experts = routed_experts(config, tensors, kernels, backend)
    used = {info.name: info for info in used_tensors(config, tensors)}
    if experts is None:
        return None
    if kernels != "native" or not fuses(config, used):
        return replace(experts, chunk=MAX_CHUNK)
    longer = (STREAM_CHUNK - MAX_CHUNK) * _streamed_token_bytes(config, used)
    return replace(experts, buffers_bytes=longer)


def needs(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    backend: str,
    kv_type: str,
    kernels: str,
    weights_bytes: int | None = None,
) -> Callable[[int], Need]:
    """Return a function that computes the memory needed for a given context, in tokens.

    weights_bytes: the size of the weights if the model is in another quantisation. None means the
    size of these tensors.
    """
    kernels = selected(kernels, backend)
    tensors = {info.name: info for info in used_tensors(config, tensors)}
    if weights_bytes is None:
        weights_bytes = sum(resident_bytes(info, backend, kernels) for info in tensors.values())
    program = program_bytes(config.vocab, backend)

    @cache
    def need(context: int) -> Need:
        buffers = buffer_bytes(config, tensors, backend, context, kv_type, kernels)
        return Need(weights_bytes, kv_bytes(config.cache_specs, context, kv_type), buffers, program)

    return need


def judge_needs(
    need: Callable[[int], Need],
    machine: Machine,
    most: int,
    context: int | None,
    file_bytes: int,
    estimated: bool = False,
    experts: RoutedExperts | None = None,
) -> Verdict:
    """Return the verdict, given `need`, which computes the memory needed for a context.

    most: the model's maximum context. experts: those that can stay on the disk.
    """
    largest = _largest(lambda tokens: kind_of(need(tokens), machine) != "too_large", most)
    at = context
    if at is None:
        roomy = _largest(lambda tokens: kind_of(need(tokens), machine) == "fits", most)
        at = min(most, DEFAULT_CONTEXT, roomy or largest or most)
    found, reserve = need(at), reserve_bytes(machine)
    kind = kind_of(found, machine)
    verdict = Verdict(kind, found, machine, reserve, at, largest, file_bytes, estimated)
    if kind != "too_large" or experts is None:
        return verdict

    def split(tokens: int) -> Plan | None:
        return stream_plan(need(tokens), experts, machine, tokens)

    most_streaming = _largest(lambda tokens: split(tokens) is not None, most)
    at = context or min(most, STREAM_CONTEXT, most_streaming or most)
    if (found_plan := split(at)) is None:
        return verdict
    return replace(
        verdict,
        kind="streams",
        need=need(at),
        context=at,
        largest_context=most_streaming,
        plan=replace(found_plan, fits_context=largest),
    )


def stream_plan(need: Need, experts: RoutedExperts, machine: Machine, context: int) -> Plan | None:
    """Split a machine's budget between all but experts, and some of them; None if too small.

    need: with all experts in memory, for this context.
    """
    longer = min(STREAM_CHUNK, context) - min(MAX_CHUNK, context)  # tokens in a chunk
    buffers = experts.buffers_bytes * longer // (STREAM_CHUNK - MAX_CHUNK)
    files = 0 if experts.joins else PROGRAM_FILES
    resident = need.total_bytes - experts.size_bytes + buffers + files
    reserve = reserve_bytes(machine)
    return plan(experts, int(MARGIN * resident), machine.budget_bytes, reserve)


def judge_size(size_bytes: int, machine: Machine) -> Verdict:
    """Return a verdict from the file size alone. Only `surely_too_large` is certain."""
    need = Need(size_bytes, 0, 0, PROGRAM)
    kind, reserve = kind_of(need, machine), reserve_bytes(machine)
    return Verdict(kind, need, machine, reserve, 0, 0, size_bytes, estimated=True)


def surely_too_large(size_bytes: int, machine: Machine) -> bool:
    """Return True if a file of this size is too large, whatever its header contains."""
    need = Need(int((1 - UNREAD_SHARE) * size_bytes), 0, 0, PROGRAM)
    return kind_of(need, machine) == "too_large"


def program_bytes(vocab: int, backend: str) -> int:
    """Return the memory Conifer itself uses, with a vocabulary of `vocab` tokens."""
    return PROGRAM + WORD_BYTES * vocab + (GPU_RUNTIME if backend != "cpu" else 0)


def kind_of(need: Need, machine: Machine) -> str:
    """Return fits, tight or too_large. All verdicts use this rule."""
    if MARGIN * need.total_bytes + reserve_bytes(machine) <= machine.budget_bytes:
        return "fits"
    return "tight" if need.total_bytes <= machine.budget_bytes else "too_large"


def reserve_bytes(machine: Machine) -> int:
    """Return how much memory must stay free for the verdict to be "fits".

    A budget that the user gave is not shared with other programs.
    """
    if machine.limited_by == GIVEN:
        return 0
    return max(MIN_RESERVE, int(machine.memory_bytes * RESERVE_SHARE))


def buffer_bytes(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    backend: str,
    context: int,
    kv_type: str,
    kernels: str,
) -> int:
    """Estimate the peak scratch memory, which the last prefill chunk of a full context uses.

    The result never shrinks as the context grows: even when `prefill_chunk` halves the chunk,
    attention scores are counted up to their limit. Fused native layers need neither a float32 copy
    of the cache nor stored attention scores.
    """
    chunk = min(MAX_CHUNK, context)
    native = kernels == "native"
    fused = native and fuses(config, tensors)
    mixed = _mixer_values(config, native, fused)
    embedded = 3 * config.layers * config.per_layer_width
    # Streams, what is read of them and added to them, and the copy that is normalised.
    width = (4 + 4 * config.streams.count if config.streams else 4) * config.width
    rows = 4 * chunk * (width + mixed + _hidden_values(config, fused) + embedded)
    size_bytes = rows + 6 * 4 * config.vocab  # plus the logits
    if fused:
        return size_bytes + _index_bytes(config, chunk, context)
    if config.latent and config.latent.indexer:  # indexer scores and float32 keys
        size_bytes += 3 * INDEXER_BYTES + 4 * context * config.latent.indexer.dims
    if config.blocks and any(config.blocks.ratios):
        size_bytes += 3 * INDEXER_BYTES
    if native and config.latent:
        return size_bytes
    one_row = 4 * max(config.heads) * context
    scores = 2 * max(min(one_row * chunk, SCORE_BYTES), one_row * min(MIN_CHUNK, chunk))
    layers = config.cache_specs
    widened = max(_read_bytes(layer, context, "f32") for layer in layers)
    if kv_type != "f32":  # one layer's keys and values in float32
        widened += max(_read_bytes(layer, context, kv_type) for layer in layers)
    size_bytes += scores + int(widened)
    if native:
        return size_bytes
    # On a CPU, half-precision matrices are multiplied in float32. Expert stacks are on any device.
    halves = [t for t in tensors.values() if t.type.name in ("F16", "BF16")]
    widest = max((t.size_bytes for t in halves if backend == "cpu" or len(t.shape) == 3), default=0)
    numbers = 2 * PIECE_BYTES if kernels == "blocks" else 0  # weights as a prompt multiplies them
    return max(size_bytes + 2 * widest + numbers, _loading_bytes(tensors, backend, kernels))


def _read_bytes(layer: CacheSpec, context: int, kv_type: str) -> float:
    """Return at most how many bytes of a layer's cache are read at a time."""
    if layer.parts:
        return sum(rows_held(part, context) * row_bytes(part, kv_type) for part in layer.parts)
    return context * token_bytes(layer, kv_type)


def _loading_bytes(tensors: Mapping[str, TensorInfo], backend: str, kernels: str) -> int:
    """Return the extra memory that loading needs.

    Beside its copy, the largest tensor is in memory as a part of the mapped file. Repacking holds a
    second copy of the largest matrix, and working space for the piece being repacked.
    """
    blocks = [info for info in tensors.values() if info.type.name not in ("F32", "F16", "BF16")]
    held = [resident_bytes(info, backend, kernels) for info in blocks]
    repacked = 0 if kernels == "blocks" else REPACKED_PIECE
    return max(held) + repacked if held else 0


def _mixer_values(config: ModelConfig, native: bool, fused: bool) -> int:
    """Return how many values attention and recurrent layers store per prompt token."""
    recurrent = _recurrent_values(config, native)
    if not (fused and config.latent):
        pairs = zip(config.heads, _head_values(config), strict=True)
        return max(recurrent, *(count * values for count, values in pairs))
    latent = _latent_values(config)
    if config.recurrent is None:
        return latent
    # Each has buffers of its own, but for a gate and what it mixes.
    return latent + 11 * config.recurrent.inner - 2 * config.recurrent.inner


def _latent_values(config: ModelConfig) -> int:
    """Return how many values fused latent attention stores per prompt token.

    For each head: a query, what it is compared with, a sum of latents, its value, and the inputs of
    three products in 8 bits, with scales.
    """
    latent = config.latent
    assert latent is not None
    row, nope = latent.rank + config.rope.dims, latent.key_dim - config.rope.dims
    products = nope + latent.rank + latent.value_dim
    head = latent.key_dim + row + latent.rank + latent.value_dim + products // 3
    return max(config.heads) * head + 2 * row + latent.query_rank


def _head_values(config: ModelConfig) -> list[int]:
    """Return how many values each layer's attention stores per head and token."""
    if config.latent is None:
        return [2 * sum(config.head_dims(layer)) for layer in range(config.layers)]
    rank, rope_dims = config.latent.rank, config.rope.dims
    values = 2 * (2 * rank + rope_dims) + config.latent.key_dim + config.latent.value_dim
    return [values] * config.layers


def _index_bytes(config: ModelConfig, chunk: int, context: int) -> int:
    """Return what a fused indexer stores: queries, scores of all tokens, and what it chose."""
    if not config.latent or not config.latent.indexer:
        return 0
    indexer, row = config.latent.indexer, config.latent.rank + config.rope.dims
    return (
        4 * chunk * (indexer.heads * indexer.dims + indexer.top)
        + 8 * context
        + (6 * indexer.top * row)
    )


def _hidden_values(config: ModelConfig, fused: bool) -> int:
    """Return how many values a feed-forward layer stores per token.

    Fused layers share what gates give; what `up` gives is stored for all tokens only in dense
    layers and shared experts, and not by kernels that read tiles.
    """
    experts = config.experts
    if fused:
        dense = max(
            (width for layer, width in enumerate(config.feed_forward) if not config.routed(layer)),
            default=0,
        )
        routed = experts.used * experts.width if experts else 0
        shared = experts.shared_width if experts else 0
        return max(dense, routed) + dense + 2 * shared
    if experts is None:
        return 3 * max(config.feed_forward)
    routed = experts.used * (3 * experts.width + 2 * config.width)
    return max(3 * max(config.feed_forward), routed + 3 * experts.shared_width)


def _streamed_token_bytes(config: ModelConfig, tensors: Collection[str]) -> int:
    """Return what a token adds to the buffers of a chunk that is longer than `MAX_CHUNK`.

    Only experts take such a chunk at once; the other layers take `MAX_CHUNK` tokens of it at a
    time. tensors: their names.
    """
    experts, width = config.experts, config.width
    assert experts is not None
    # The stream before and after the layers, what is normalised of it, and an array that MLX keeps.
    copies, inputs = 4, [width, *experts.used * [experts.width]]
    if not any(name.endswith(".ffn_norm.weight") for name in tensors):
        copies += 1  # the residual sum, in an array of its own
    if any(".post_ffw_norm" in name for name in tensors):
        copies += 3  # such a sum, a result before its norm, and what the router reads
        inputs.append(width)
    if experts.shared_width:
        copies += 1
        inputs += [width, experts.shared_width]
    hidden = experts.used * experts.width + 2 * experts.shared_width + 2 * experts.latent_width
    embedded = 3 * config.layers * config.per_layer_width
    # Scores; ids, weights and their order; the ids of all layers, as they are counted for /experts.
    routes = experts.count + (4 + 3 * config.layers) * experts.used + 1
    return 4 * (copies * width + hidden + embedded + routes) + sum(map(_input_bytes, inputs))


def _input_bytes(values: int) -> int:
    """Return the size of a product's input in 8 bits, with its scales and sums, for one token."""
    padded = -(-values // 256) * 256
    return padded + 7 * 4 * padded // 32 + 64


def _recurrent_values(config: ModelConfig, native: bool) -> int:
    """Return how many values a recurrent layer stores per prompt token."""
    recurrent = config.recurrent
    if recurrent is None:
        return 0
    if recurrent.kind == "conv":
        return 8 * config.width
    channels = recurrent.inner + 2 * recurrent.groups * recurrent.state
    values = 3 * channels + 5 * recurrent.inner  # projected (two copies) and mixed values
    if recurrent.kind == "kda":  # steps and decays of each channel, and the gate of each value
        values += 5 * recurrent.inner
    if native:
        return values
    # For each chunk: pairwise products of its tokens, and the delta rule's keys, which decays of
    # channels multiply in several ways.
    keys = 10 if recurrent.kind == "kda" else 2
    return values + recurrent.heads * (6 * SCAN_CHUNK + keys * recurrent.state)


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest context, rounded down to a cache step, for which `holds` is true, or 0."""
    if holds(most):
        return most
    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle * STEP) else (low, middle - 1)
    return low * STEP
