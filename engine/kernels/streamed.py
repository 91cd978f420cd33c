"""The store of experts for kernels that hold them as MLX arrays.

The ids of a layer's chosen experts come to the host. Their arrays, those used last of all layers,
are joined to a small stack, and the kernels multiply with that. Axes: T tokens, k chosen experts.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from engine.errors import FileShrank, ReadFailed
from engine.gguf.reader import TensorInfo
from engine.kernels.base import QTensor
from engine.nn.direct import DirectFile
from engine.streaming import PARTS, LayerExperts, StoreStats

READERS = 8  # threads
POLL_S = 0.05  # how often a wait for the disk looks whether to stop


class Stack(QTensor, Protocol):
    """A stack of matrices (E, out, in) that can be joined with others of its form."""

    @property
    def size_bytes(self) -> int: ...

    def joined(self, stacks: Sequence[Any]) -> QTensor:
        """Return one stack of all these, which are like this one."""


Load = Callable[[memoryview, TensorInfo], Stack]
Expert = dict[int, Stack]  # by part, each of one matrix


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A projection of a layer's experts, which has no weights of its own. part: as in the plan.

    It never multiplies: a layer asks for a stack of the experts that it chose. The methods exist
    because a layer holds it in the place of a weight.
    """

    store: StreamedExperts
    layer: int
    part: int
    shape: tuple[int, ...]
    scales: mx.array | None  # (E,)
    scaled: Callable[[QTensor, mx.array], QTensor]  # applies them

    def stack(self, experts: Sequence[int]) -> QTensor:
        """Return some of the experts, which were fetched, as a stack."""
        stack = self.store.stack(self.part, experts)
        if self.scales is None:
            return stack
        return self.scaled(stack, self.scales[mx.array(list(experts))])

    def matmul(self, x: mx.array) -> mx.array:
        raise NotImplementedError("experts that stay in the file multiply as a stack")

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        return self.matmul(x)

    stack_matmul = rows = matmul


class StreamedExperts:
    """See `engine.streaming.ExpertStore`.

    load: turns the blocks of an expert into a stack of one. scaled: gives a stack its factors.
    capacity_bytes: for the experts in memory; at_once: how many of a layer run at a time.
    """

    def __init__(
        self,
        layers: tuple[LayerExperts, ...],
        files: tuple[Path, ...],
        load: Load,
        scaled: Callable[[QTensor, mx.array], QTensor],
        capacity_bytes: int,
        at_once: int,
    ) -> None:
        self.layers, self.at_once, self.capacity_bytes = layers, at_once, capacity_bytes
        self.check_stop: Callable[[], None] = lambda: None
        self._numbers = {one.layer: number for number, one in enumerate(layers)}
        self._files = [DirectFile(path) for path in files]
        self._load, self._scaled = load, scaled
        self._infos: dict[tuple[int, int], TensorInfo] = {}  # of one expert
        self._held: OrderedDict[tuple[int, int], Expert] = OrderedDict()
        self._sizes: dict[tuple[int, int], int] = {}
        self._held_bytes = 0
        self._current: Mapping[int, Expert] = {}
        self._recent: list[list[int]] = [[] for _ in layers]
        self._distances: Counter[int] = Counter()
        self._stats = StoreStats()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="experts")

    def tensor(
        self, layer: int, part: int, info: TensorInfo, scales: list[float] | None
    ) -> StoredTensor:
        one = replace(info, shape=(1, *info.shape[1:]))
        self._infos[self._numbers[layer], part] = one
        factors = None if scales is None else mx.array(scales)
        number = self._numbers[layer]
        return StoredTensor(self, number, part, info.shape, factors, self._scaled)

    def fetch(self, layer: int, experts: Sequence[int], decodes: bool) -> None:
        """Bring experts of a layer into memory for `stack`, at most `at_once` of them.

        decodes: they were chosen for a decoded token; those of a prompt push nothing out. Raises
        FileShrank, ReadFailed, or what `check_stop` raises.
        """
        keys = [(layer, expert) for expert in experts]
        missing = [key for key in keys if key not in self._held]
        read = self._read(missing, decodes)
        self._current = {
            expert: self._held.get((layer, expert)) or read[layer, expert] for expert in experts
        }
        if decodes:
            self._record(layer, experts)
            self._stats = replace(
                self._stats,
                hits=self._stats.hits + len(keys) - len(missing),
                misses=self._stats.misses + len(missing),
            )
            for key in keys:
                if key in self._held:
                    self._held.move_to_end(key)
        for key, expert in read.items():
            self._keep(key, expert, decodes)

    def stack(self, part: int, experts: Sequence[int]) -> QTensor:
        """Return a part of the fetched experts as a stack, in this order."""
        parts = [self._current[expert][part] for expert in experts]
        return parts[0].joined(parts)

    def _keep(self, key: tuple[int, int], expert: Expert, pushes: bool) -> None:
        size = sum(part.size_bytes for part in expert.values())
        while pushes and self._held and self._held_bytes + size > self.capacity_bytes:
            oldest, _ = self._held.popitem(last=False)
            self._held_bytes -= self._sizes.pop(oldest)
        if self._held_bytes + size <= self.capacity_bytes:
            self._held[key], self._sizes[key] = expert, size
            self._held_bytes += size

    def _read(
        self, keys: Sequence[tuple[int, int]], decodes: bool
    ) -> dict[tuple[int, int], Expert]:
        jobs = {
            (key, part): self._pool.submit(self._blocks, *key, part)
            for part in PARTS
            for key in keys
            if self.layers[key[0]].sources[part] is not None
        }
        found: dict[tuple[int, int], Expert] = {key: {} for key in keys}
        size, waited = 0, 0.0
        try:
            for (key, part), job in jobs.items():
                waited += self._wait(job)
                blocks = job.result()
                size += len(blocks)
                found[key][part] = self._load(blocks, self._infos[key[0], part])
        finally:
            for job in jobs.values():
                job.cancel()
        old = self._stats
        self._stats = replace(
            old,
            bytes_read=old.bytes_read + size,
            prompt_bytes_read=old.prompt_bytes_read + (0 if decodes else size),
            wait_s=old.wait_s + (waited if decodes else 0),
            prompt_wait_s=old.prompt_wait_s + (0 if decodes else waited),
        )
        return found

    def _wait(self, job: Future[memoryview]) -> float:
        started = time.perf_counter()
        while wait([job], POLL_S).not_done:
            self.check_stop()
        return time.perf_counter() - started

    def _blocks(self, layer: int, expert: int, part: int) -> memoryview:
        source = self.layers[layer].sources[part]
        assert source is not None
        start = source.offsets[expert]
        try:
            return self._files[source.parts[expert]].blocks(start, start + source.size_bytes)
        except (FileShrank, ReadFailed) as error:
            where = f"tensor {source.name(expert)!r}, expert {expert}"
            raise type(error)(f"{where}, byte {start:,}: {error}") from error

    def _record(self, layer: int, experts: Sequence[int]) -> None:
        recent = self._recent[layer]
        for expert in experts:
            if expert in recent:
                self._distances[recent.index(expert)] += 1
                recent.remove(expert)
            else:
                self._distances[-1] += 1
            recent.insert(0, expert)

    def stats(self) -> StoreStats:
        count = max(len(source.offsets) for one in self.layers for source in one.sources if source)
        distances = (*(self._distances[at] for at in range(count)), self._distances[-1])
        held = len(self._held)
        mean = self._held_bytes // held if held else self.capacity_bytes
        slots = min(count * len(self.layers), max(held, self.capacity_bytes // max(1, mean)))
        return replace(
            self._stats,
            slots=slots,
            held=held,
            held_bytes=self._held_bytes,
            distances=distances,
        )

    @property
    def begun(self) -> int:
        return 0

    def wait(self, result: mx.array, step: int, seconds: float) -> bool:
        return True  # a step's experts were read when it was built

    def stop(self) -> None:
        """Do nothing: `check_stop` ends a step."""

    def resume(self) -> None:
        """Do nothing: `check_stop` ends a step."""

    def check(self) -> None:
        """Do nothing: a failed read raises where it happens."""
