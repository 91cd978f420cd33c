"""Experts that stay in the model's file: how a number of bytes of memory is divided among them.

A store holds the experts used last, of all layers together, in slots of whole pages. A prompt's
experts pass through a window of their own. Does not import MLX. Axes: E experts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DoesNotFit, FileShrank, ReadFailed
from engine.gguf.reader import TensorInfo
from engine.kernels.sizes import resident_bytes
from engine.nn.config.tensors import used_tensors

if TYPE_CHECKING:
    from engine.nn.config import ModelConfig

PAGE_BYTES = 4096  # direct reads start and end at multiples of it
WINDOW_BYTES, WINDOW_BUFFERS = 16 << 20, (2, 8)  # read ahead for a prompt: enough for a full queue
WINDOW_SHARE = 8  # a small budget's window has at most this part of it
SAME_KIND = 0.97  # layers share a kind of slot if their experts are this close in size
COPIES = 2  # of the chosen experts, for kernels that join them: the parts and the stack
JOINED_BYTES = 64 << 20  # of these copies, with experts for a prompt
SHRANK = -1  # in place of an errno
NO_EXPERTS = "expert_bytes is for models with experts; this one has none"

GATE, UP, DOWN = PARTS = range(3)  # GATE is also gate and up in one matrix
PART_NAMES = {"ffn_gate_up": GATE, "ffn_gate": GATE, "ffn_up": UP, "ffn_down": DOWN}


class ExpertsDoNotFit(DoesNotFit, ValueError):
    """The experts of a single token do not fit. least_bytes: what they need, with the window."""

    def __init__(self, least_bytes: int, given_bytes: int) -> None:
        super().__init__(
            f"the experts of one token need at least {least_bytes:,} bytes of memory, "
            f"not {given_bytes:,}"
        )
        self.least_bytes = least_bytes


@dataclass(frozen=True, slots=True)
class ExpertSource:
    """One projection of a layer's experts in the model's files. size_bytes: of one expert.

    parts, offsets: for each expert, which file has it and where. names: the tensor of each expert,
    or the one of all.
    """

    names: tuple[str, ...]
    size_bytes: int
    parts: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def span_bytes(self) -> int:
        """The most whole pages that contain one of the experts."""
        ends = (-(-(at + self.size_bytes) // PAGE_BYTES) * PAGE_BYTES for at in self.offsets)
        starts = (at - at % PAGE_BYTES for at in self.offsets)
        return max(end - start for start, end in zip(starts, ends, strict=True))

    def name(self, expert: int) -> str:
        """Return the tensor that has an expert."""
        return self.names[expert if len(self.names) > 1 else 0]


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """A layer's experts. layer: its block. sources: by part; None if there is none."""

    layer: int
    sources: tuple[ExpertSource | None, ...]

    @property
    def stored_bytes(self) -> int:
        """The size of all of them in the file."""
        sources = (source for source in self.sources if source)
        return sum(source.size_bytes * len(source.offsets) for source in sources)

    @property
    def slot_bytes(self) -> int:
        """The size of a slot for an expert."""
        return sum(source.span_bytes for source in self.sources if source)

    @property
    def buffer_bytes(self) -> int:
        """The size of a buffer for the inputs of an expert, or its output."""
        *inputs, down = (source.span_bytes if source else 0 for source in self.sources)
        return max(sum(inputs), down)


@dataclass(frozen=True, slots=True)
class SlotKind:
    """Slots of one size. count: how many there are."""

    size_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class StorePlan:
    """How the memory for experts is divided. kinds: of slots. kind_of: each layer's kind."""

    layers: tuple[LayerExperts, ...]
    kinds: tuple[SlotKind, ...]
    kind_of: tuple[int, ...]
    window_buffers: int
    buffer_bytes: int

    @property
    def slots(self) -> int:
        """How many experts the store holds at most."""
        return sum(kind.count for kind in self.kinds)

    @property
    def size_bytes(self) -> int:
        """All of the memory: slots and window."""
        slots = sum(kind.size_bytes * kind.count for kind in self.kinds)
        return slots + self.window_buffers * self.buffer_bytes


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store has done since it was made. Subtract two of them for what happened in between.

    hits, misses: choices of decoded tokens whose expert was in memory, and whose was not.
    bytes_read, prompt_bytes_read: from the disk; the second is the part of it for prompts.
    wait_s, prompt_wait_s: seconds in which the computation of a decoded token, or of a prompt, had
    to wait for the disk. slots, held, held_bytes: how many experts there is room for; how many are
    in memory, and the size of their slots. distances: how often a layer had chosen 0, 1, 2 ...
    other experts since it last chose an expert; the last number counts first choices.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    prompt_bytes_read: int = 0
    wait_s: float = 0.0
    prompt_wait_s: float = 0.0
    slots: int = 0
    held: int = 0
    held_bytes: int = 0
    distances: tuple[int, ...] = ()

    def __sub__(self, before: StoreStats) -> StoreStats:
        """Return what happened since `before`."""
        old = before.distances or (0,) * len(self.distances)
        return StoreStats(
            self.hits - before.hits,
            self.misses - before.misses,
            self.bytes_read - before.bytes_read,
            self.prompt_bytes_read - before.prompt_bytes_read,
            self.wait_s - before.wait_s,
            self.prompt_wait_s - before.prompt_wait_s,
            self.slots,
            self.held,
            self.held_bytes,
            tuple(new - past for new, past in zip(self.distances, old, strict=True)),
        )

    @property
    def hit_rate(self) -> float:
        """The share of choices whose expert was in memory; 0 before any."""
        return self.hits / max(1, self.hits + self.misses)


def expert_layers(
    config: ModelConfig, tensors: Mapping[str, TensorInfo]
) -> tuple[LayerExperts, ...]:
    """Return where the experts of each layer are, from a header."""
    if config.experts is None:
        return ()
    count = config.experts.count
    read = {info.name: info for info in used_tensors(config, tensors)}
    found = []
    for layer in range(config.layers):
        sources: list[ExpertSource | None] = [None for _ in PARTS]
        for name, part in PART_NAMES.items():
            source = _source(read, f"blk.{layer}.{name}", count)
            sources[part] = source or sources[part]
        if sources[DOWN]:
            found.append(LayerExperts(layer, tuple(sources)))
    return tuple(found)


def _source(tensors: Mapping[str, TensorInfo], prefix: str, count: int) -> ExpertSource | None:
    stack = tensors.get(f"{prefix}_exps.weight")
    if stack is not None:
        size = stack.size_bytes // count
        offsets = tuple(range(stack.offset, stack.offset + count * size, size))
        return ExpertSource((stack.name,), size, (stack.part,) * count, offsets)
    names = [f"{prefix}.{expert}.weight" for expert in range(count)]
    if any(name not in tensors for name in names):
        return None
    infos = [tensors[name] for name in names]
    return ExpertSource(
        tuple(names),
        infos[0].size_bytes,
        tuple(info.part for info in infos),
        tuple(info.offset for info in infos),
    )


def least_bytes(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    kernels: str = "native",
    device: str = "cpu",
) -> int:
    """Return the least memory for experts: those of one token in a layer, and a small window.

    0 for a model without experts. device, kernels: as in `resident_bytes`.
    """
    layers = expert_layers(config, tensors)
    if not layers or config.experts is None:
        return 0
    if kernels != "native":
        sizes = loaded_sizes(config, tensors, kernels, device)
        return COPIES * config.experts.used * max(sizes.values())
    slot = max(layer.slot_bytes for layer in layers)
    return config.experts.used * slot + WINDOW_BUFFERS[0] * _buffer_bytes(layers)


def most_bytes(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    kernels: str = "native",
    device: str = "cpu",
) -> int:
    """Return the memory that holds all experts, with a full window. Arguments as `least_bytes`."""
    layers = expert_layers(config, tensors)
    if not layers or config.experts is None:
        return 0
    if kernels != "native":
        loaded = loaded_sizes(config, tensors, kernels, device)
        least = least_bytes(config, tensors, kernels, device)
        return least + config.experts.count * sum(loaded.values())
    sizes = _kind_sizes(layers)
    slots = config.experts.count * sum(sizes[kind] for kind in _kinds_of(layers, sizes))
    return slots + _most_buffers(layers) * _buffer_bytes(layers)


def plan_store(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], expert_bytes: int
) -> StorePlan:
    """Divide `expert_bytes` among slots and window.

    Layers with experts of about the same size share a kind of slot. If the budget is too small for
    several kinds, there is one. Raises ExpertsDoNotFit if it is smaller than `least_bytes`, and
    ValueError for a model without experts.
    """
    layers = expert_layers(config, tensors)
    if not layers or config.experts is None:
        raise ValueError(NO_EXPERTS)
    least = least_bytes(config, tensors)
    if expert_bytes < least:
        raise ExpertsDoNotFit(least, expert_bytes)
    count, used, buffer = config.experts.count, config.experts.used, _buffer_bytes(layers)
    fewest, _ = WINDOW_BUFFERS
    buffers = max(fewest, min(_most_buffers(layers), expert_bytes // WINDOW_SHARE // buffer))
    room = expert_bytes - buffers * buffer
    sizes = _kind_sizes(layers)
    kind_of = _kinds_of(layers, sizes)
    everything = count * sum(sizes[kind] for kind in kind_of)
    most = [count * kind_of.count(kind) for kind in range(len(sizes))]
    share = min(1.0, room / everything)
    held = [int(share * whole) for whole in most]
    if min(held) < used:
        sizes, kind_of = [max(sizes)], [0] * len(layers)
        held = [min(room // sizes[0], count * len(layers))]
    kinds = tuple(SlotKind(size, n) for size, n in zip(sizes, held, strict=True))
    return StorePlan(layers, kinds, tuple(kind_of), buffers, buffer)


def divide_bytes(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    expert_bytes: int,
    kernels: str,
    device: str,
) -> tuple[int, int]:
    """Divide `expert_bytes` for kernels that join the chosen experts to a stack.

    Returns how many experts of a layer run at a time, and the bytes for those that stay in memory.
    Errors as `plan_store`.
    """
    if config.experts is None or not expert_layers(config, tensors):
        raise ValueError(NO_EXPERTS)
    least = least_bytes(config, tensors, kernels, device)
    if expert_bytes < least:
        raise ExpertsDoNotFit(least, expert_bytes)
    used = config.experts.used
    copies = COPIES * max(loaded_sizes(config, tensors, kernels, device).values())
    at_once = max(used, min(config.experts.count, JOINED_BYTES // copies))
    at_once = max(used, min(at_once, expert_bytes // WINDOW_SHARE // copies))
    if expert_bytes >= most_bytes(config, tensors, kernels, device):
        at_once = used  # so that all experts stay in memory
    return at_once, expert_bytes - at_once * copies


def loaded_sizes(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], kernels: str, device: str
) -> dict[int, int]:
    """Return the size of an expert in each layer, once loaded."""
    sizes: dict[int, int] = {}
    for one in expert_layers(config, tensors):
        infos = [
            tensors[name]
            for source in one.sources
            if source
            for name in dict.fromkeys(source.names)
        ]
        assert config.experts is not None
        total = sum(resident_bytes(info, device, kernels) for info in infos)
        sizes[one.layer] = -(-total // config.experts.count)
    return sizes


def _buffer_bytes(layers: tuple[LayerExperts, ...]) -> int:
    return max(layer.buffer_bytes for layer in layers)


def _most_buffers(layers: tuple[LayerExperts, ...]) -> int:
    fewest, most = WINDOW_BUFFERS
    return max(fewest, min(most, math.ceil(WINDOW_BYTES / _buffer_bytes(layers))))


def _kind_sizes(layers: tuple[LayerExperts, ...]) -> list[int]:
    """Return the sizes of slots, the largest first."""
    sizes: list[int] = []
    for size in sorted({layer.slot_bytes for layer in layers}, reverse=True):
        if not sizes or size < SAME_KIND * sizes[-1]:
            sizes.append(size)
    return sizes


def _kinds_of(layers: tuple[LayerExperts, ...], sizes: list[int]) -> list[int]:
    """Return the kind of each layer: the smallest size that has room for its experts."""
    return [max(i for i, size in enumerate(sizes) if size >= one.slot_bytes) for one in layers]


def check_failure(
    plan: StorePlan, files: tuple[Path, ...], failure: tuple[int, int, int, int, int] | None
) -> None:
    """Raise the error for a failed read. failure: (errno or SHRANK, layer, expert, part, offset).

    layer: among those with experts.
    """
    if failure is None:
        return
    error, layer, expert, part, offset = failure
    source = plan.layers[layer].sources[part]
    assert source is not None
    file = files[source.parts[expert]].name
    where = f"tensor {source.name(expert)!r}, expert {expert}, byte {offset:,} of {file}"
    if error == SHRANK:
        raise FileShrank(f"{file} shrank while it was in use: it ends before {where}")
    raise ReadFailed(f"the disk failed to read {where}: {os.strerror(error)}")
