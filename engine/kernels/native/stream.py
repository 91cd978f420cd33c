"""The store of experts for the native kernels, which read them from the file (core/store)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx

from engine.gguf.reader import TensorInfo
from engine.kernels.base import QTensor
from engine.streaming import ExpertSource, StorePlan, StoreStats, check_failure

READERS = 8  # threads; docs/decisions/0016-experts-from-the-disk.md has the measurement
NS = 1e-9
POLL_S = 1e-3


class NativeStore:
    """See `engine.streaming.ExpertStore`. files: the model's parts. wrap: makes a tensor."""

    def __init__(
        self,
        plan: StorePlan,
        files: tuple[Path, ...],
        native: ModuleType,
        wrap: Callable[[Any, tuple[int, ...]], QTensor],
    ) -> None:
        self.plan, self.layers, self.files = plan, plan.layers, files
        self.native, self.wrap = native, wrap
        self.check_stop: Callable[[], None] = lambda: None  # `stop` ends a step
        self.numbers = {one.layer: number for number, one in enumerate(plan.layers)}
        self.store = native.ExpertStore(
            [str(file) for file in files],
            [
                (kind, [_places(source) for source in one.sources])
                for kind, one in zip(plan.kind_of, plan.layers, strict=True)
            ],
            [(kind.size_bytes, kind.count) for kind in plan.kinds],
            plan.window_buffers,
            plan.buffer_bytes,
            READERS,
        )

    def tensor(
        self, layer: int, part: int, info: TensorInfo, scales: list[float] | None
    ) -> QTensor:
        count, rows, columns = info.shape
        number, kind = self.numbers[layer], info.type.id
        weight = self.native.Weight(self.store, number, part, kind, count, rows, columns, scales)
        return self.wrap(weight, info.shape)

    def stats(self) -> StoreStats:
        hits, misses, read, prompt_read, wait, prompt_wait, distances = self.store.stats
        held = self.plan.slots, self.store.held, self.store.held_bytes
        times = wait * NS, prompt_wait * NS
        return StoreStats(hits, misses, read, prompt_read, *times, *held, tuple(distances))

    @property
    def begun(self) -> int:
        return int(self.store.begun)

    def wait(self, result: mx.array, step: int, seconds: float) -> bool:
        if step:
            return bool(self.store.wait(step, seconds))
        until = time.perf_counter() + seconds  # layers that run one by one have no step
        while not self.native.ready(result) and time.perf_counter() < until:
            time.sleep(POLL_S)
        return bool(self.native.ready(result))

    def stop(self) -> None:
        self.store.stop()

    def resume(self) -> None:
        self.store.resume()

    def check(self) -> None:
        failure = self.store.failure
        if failure is not None:
            mx.synchronize()  # a step that runs ahead ends, too, before reads go on
            self.store.resume()
        check_failure(self.plan, self.files, failure)


def _places(source: ExpertSource | None) -> tuple[int, list[int], list[int]]:
    if source is None:
        return 0, [], []
    return source.size_bytes, list(source.parts), list(source.offsets)
