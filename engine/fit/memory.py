"""Whether a model fits this machine, with how much context: the one verdict.

`fit` prints it, `pull` and `run` enforce it. It is arithmetic on the header and the machine; no
weight is read. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from engine.fit.machine import Machine
from engine.gguf.reader import TensorInfo
from engine.kernels.fusion import fuses
from engine.kernels.select import selected
from engine.kernels.sizes import resident_bytes
from engine.limits import INDEXER_BYTES, MAX_CHUNK, MIN_CHUNK, SCAN_CHUNK, SCORE_BYTES
from engine.nn.cache_spec import STEP, kv_bytes, token_bytes
from engine.nn.config import ModelConfig, used_tensors

MARGIN = 1.02  # the need is known to about 2 %
RESERVE_SHARE = 0.04  # of the machine's memory, for everything else that runs
MIN_RESERVE = 512 << 20
UNREAD_SHARE = 0.03  # of a file at most is of layers that only draft, which are not loaded
# Python, MLX and this program, and for each word of the vocabulary what the tokenizer keeps, as
# measured on Linux in a conversation; a GPU has its runtime on top.
PROGRAM, WORD_BYTES = 66 << 20, 512
GPU_RUNTIME = 256 << 20
DEFAULT_CONTEXT = 32_768
REPACKED_PIECE = 40 << 20  # eight million weights on their way from one form to the other


@dataclass(frozen=True, slots=True)
class Need:
    """What running the model takes."""

    weights_bytes: int
    kv_bytes: int
    buffers_bytes: int
    program_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weights_bytes + self.kv_bytes + self.buffers_bytes + self.program_bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Fits, tight or too large; for how much context, and of which budget.

    context: tokens it was judged for. largest_context: the most that is not too large, 0 for none.
    file_bytes: the block bytes in the file, which repacked weights may exceed.
    estimated: judged without the header, by what is known of the model.
    """

    kind: str  # fits | tight | too_large
    need: Need
    machine: Machine
    reserve_bytes: int
    context: int
    largest_context: int
    file_bytes: int
    estimated: bool = False

    @property
    def budget_bytes(self) -> int:
        """What the machine can give."""
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
    """Judge a model by its header.

    context: tokens asked for; None is the smallest of the model's own, `default_context`, 32,768
    and the largest that fits. kernels: what it will be loaded with, auto, native or stock.
    """
    most = min(config.context, default_context or config.context)
    need = needs(config, tensors, machine.backend, kv_type, kernels)
    file_bytes = sum(info.size_bytes for info in tensors.values())
    return judge_needs(need, machine, most, context, file_bytes)


def needs(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    backend: str,
    kv_type: str,
    kernels: str,
    weights_bytes: int | None = None,
) -> Callable[[int], Need]:
    """Give the need as a function of the context, in tokens.

    weights_bytes: of the same model in another quantisation; None is what these tensors take.
    """
    kernels = selected(kernels, backend)
    if weights_bytes is None:
        used = used_tensors(config, tensors)
        weights_bytes = sum(resident_bytes(info, backend, kernels) for info in used)
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
) -> Verdict:
    """Judge what is needed for a context. most: the context of the model itself."""
    largest = _largest(lambda tokens: kind_of(need(tokens), machine) != "too_large", most)
    if context is None:
        roomy = _largest(lambda tokens: kind_of(need(tokens), machine) == "fits", most)
        context = min(most, DEFAULT_CONTEXT, roomy or largest or most)
    return Verdict(
        kind=kind_of(need(context), machine),
        need=need(context),
        machine=machine,
        reserve_bytes=reserve_bytes(machine),
        context=context,
        largest_context=largest,
        file_bytes=file_bytes,
        estimated=estimated,
    )


def judge_size(size_bytes: int, machine: Machine) -> Verdict:
    """Judge a file by its size alone: only what is `surely_too_large` is certain."""
    need = Need(size_bytes, 0, 0, PROGRAM)
    kind, reserve = kind_of(need, machine), reserve_bytes(machine)
    return Verdict(kind, need, machine, reserve, 0, 0, size_bytes, estimated=True)


def surely_too_large(size_bytes: int, machine: Machine) -> bool:
    """Say whether a file of this size is too large whatever its header says."""
    need = Need(int((1 - UNREAD_SHARE) * size_bytes), 0, 0, PROGRAM)
    return kind_of(need, machine) == "too_large"


def program_bytes(vocab: int, backend: str) -> int:
    """Say what takes memory beside the model, given the words of its vocabulary."""
    return PROGRAM + WORD_BYTES * vocab + (GPU_RUNTIME if backend != "cpu" else 0)


def kind_of(need: Need, machine: Machine) -> str:
    """Say whether a need fits, is tight or too_large: the rule that all verdicts follow."""
    if MARGIN * need.total_bytes + reserve_bytes(machine) <= machine.budget_bytes:
        return "fits"
    return "tight" if need.total_bytes <= machine.budget_bytes else "too_large"


def reserve_bytes(machine: Machine) -> int:
    """Say what must be left over for "fits"."""
    return max(MIN_RESERVE, int(machine.memory_bytes * RESERVE_SHARE))


def buffer_bytes(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    backend: str,
    context: int,
    kv_type: str,
    kernels: str,
) -> int:
    """Estimate the scratch memory at its highest, while the last chunk of a full context runs.

    It never falls as the context grows: where `prefill_chunk` halves a chunk, the bound stays.
    The native kernels widen nothing and keep no scores where they run layers of their own.
    """
    chunk = min(MAX_CHUNK, context)
    heads = config.heads * _head_values(config)
    native = kernels == "native"
    mixed = max(heads, _recurrent_values(config, native))
    logits = 6 * 4 * config.vocab
    fused = native and fuses(config, tensors)
    rows = 4 * chunk * (4 * config.width + mixed + _hidden_values(config, fused))
    if fused:
        return rows + logits
    indexing = 0
    if config.latent and config.latent.indexer:  # scores of its heads, and its keys in float32
        indexing = 3 * INDEXER_BYTES + 4 * context * config.latent.indexer.dims
    if native and config.latent:
        return rows + logits + indexing
    one_row = 4 * config.heads * context
    scores = 2 * max(min(one_row * chunk, SCORE_BYTES), one_row * min(MIN_CHUNK, chunk))
    layers = config.cache_specs
    widened = context * max(token_bytes(layer, "f32") for layer in layers)
    if kv_type != "f32":  # one layer's keys and values, as the attention wants them
        widened += context * max(token_bytes(layer, kv_type) for layer in layers)
    if native:
        return scores + int(widened) + rows + logits + indexing
    # Multiplied in float32: every half-precision matrix on a CPU, a stack of experts anywhere.
    halves = [t for t in tensors.values() if t.type.name in ("F16", "BF16")]
    widest = max((t.size_bytes for t in halves if backend == "cpu" or len(t.shape) == 3), default=0)
    running = scores + int(widened) + rows + logits + indexing + 2 * widest
    return max(running, _loading_bytes(tensors, backend))


def _loading_bytes(tensors: Mapping[str, TensorInfo], backend: str) -> int:
    """Say what repacking holds beside the weights: its largest matrix once more, and a piece."""
    blocks = [info for info in tensors.values() if info.type.name not in ("F32", "F16", "BF16")]
    held = [resident_bytes(info, backend, "stock") for info in blocks]
    return max(held) + REPACKED_PIECE if held else 0


def _head_values(config: ModelConfig) -> int:
    """Count the values of one head, for one token, that attention holds at a time."""
    if config.latent is None:
        return 2 * (config.key_dim + config.value_dim)
    rank, turned = config.latent.rank, config.rope.dims
    return 2 * (2 * rank + turned) + config.latent.key_dim + config.latent.value_dim


def _hidden_values(config: ModelConfig, fused: bool) -> int:
    """Count the values of one token that a feed-forward part holds at a time.

    Where all layers are one task, an expert is done with before the next begins.
    """
    experts = config.experts
    if experts is None:
        return max(config.feed_forward) * (1 if fused else 3)
    if fused:
        routed = experts.used * experts.width + experts.shared_width
        return max(*config.feed_forward, routed)
    routed = experts.used * (3 * experts.width + 2 * config.width)
    return max(3 * max(config.feed_forward), routed + 3 * experts.shared_width)


def _recurrent_values(config: ModelConfig, native: bool) -> int:
    """Count the values that a recurrent layer holds for one token of a prompt at a time."""
    recurrent = config.recurrent
    if recurrent is None:
        return 0
    if recurrent.kind == "conv":
        return 8 * config.width
    channels = recurrent.inner + 2 * recurrent.groups * recurrent.state
    values = 3 * channels + 5 * recurrent.inner  # projected, in both forms, and mixed
    if native:
        return values
    # In chunks: what each token of one has to do with every other, and the delta rule's keys.
    return values + recurrent.heads * (6 * SCAN_CHUNK + 2 * recurrent.state)


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Find the most tokens, in steps of the cache, for which `holds`; 0 for none."""
    if holds(most):
        return most
    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle * STEP) else (low, middle - 1)
    return low * STEP
