"""Protocols between a model's graph and the kernels that execute it.

Axes: T tokens, E experts, k chosen experts, L cached tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from engine.gguf.reader import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from engine.nn.config import ModelConfig
    from engine.sampling import Settings
    from engine.streaming import LayerExperts, StoreStats


@dataclass(frozen=True, slots=True)
class Rows:
    """Cached vectors for a single head, in their storage type."""

    values: mx.array  # (L, d) float16, float32 or int8
    scales: mx.array | None = None  # (L, d / group) float16; for int8 values only

    def take(self, ids: mx.array | slice) -> Rows:
        """Return the rows for some tokens: ids (n,), or a slice."""
        return Rows(self.values[ids], None if self.scales is None else self.scales[ids])

    def floats(self) -> mx.array:
        """Return the values as (L, d) float32. Leading axes are allowed."""
        values = self.values.astype(mx.float32)
        if self.scales is None:
            return values
        group = values.shape[-1] // self.scales.shape[-1]
        grouped = values.reshape(*self.scales.shape, group)
        return (grouped * self.scales[..., None]).reshape(values.shape)


class QTensor(Protocol):
    """A weight matrix (out, in), or a stack of matrices (E, out, in), in any storage format."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def matmul(self, x: mx.array) -> mx.array:
        """Multiply: x (T, in) -> (T, out)."""

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        """Multiply by the chosen experts: x (T, 1 or k, in), ids (T, k) -> (T, k, out)."""

    def stack_matmul(self, x: mx.array) -> mx.array:
        """Multiply by every matrix in a stack: x (T, E, in) -> (T, E, out)."""

    def rows(self, ids: mx.array) -> mx.array:
        """Look up rows: ids (T,) -> (T, in)."""


class ExpertStore(Protocol):
    """The experts of a loaded model that stay in its file.

    check_stop: called while a step waits for the disk, unless `stop` ends steps. What it raises
    ends the step.
    """

    layers: tuple[LayerExperts, ...]
    check_stop: Callable[[], None]

    def tensor(
        self, layer: int, part: int, info: TensorInfo, scales: list[float] | None
    ) -> QTensor:
        """Return a projection of a block's experts."""

    def stats(self) -> StoreStats: ...

    @property
    def begun(self) -> int:
        """The number of the last step that was built; 0 if they are not counted."""

    def wait(self, result: mx.array, step: int, seconds: float) -> bool:
        """Wait until a step needs no more experts. Returns False after `seconds`.

        step: as `begun` when it was built. result: of the step, after `async_eval`.
        """

    def stop(self) -> None:
        """End the current step as soon as possible. Its results are undefined."""

    def resume(self) -> None:
        """Allow further steps after `stop`. No step may be running."""

    def check(self) -> None:
        """Raise FileShrank or ReadFailed if a read failed since the last check."""


class Kernels(Protocol):
    """A way to store and multiply weights on one device."""

    name: str  # native | blocks | stock
    groups_by_expert: bool  # gather_matmul groups rows by expert
    fallback_reason: str | None  # why `auto` chose the slower stock kernels
    refusals: Mapping[str, str | None]  # block types tried on this GPU, and why they were refused
    in_place: bool  # weights are read from the mapped file, not copied
    block_tokens: int  # experts use other kernels in whole blocks of a prompt; 0: never

    def reading(self) -> AbstractContextManager[object]:
        """Return a context in which every step is part of a prompt, even one of a single token."""

    @property
    def isa(self) -> str | None:
        """The instruction set that native kernels use, such as AVX2; None for stock kernels."""

    @property
    def dtype(self) -> mx.Dtype:
        """The data type of activations."""

    def load(self, blocks: memoryview, info: TensorInfo, scales: mx.array | None = None) -> QTensor:
        """Create a weight from its GGUF blocks. `blocks` must not change afterwards.

        scales: a factor for a matrix, (1,), or for each matrix of a stack, (E,).
        """

    def store(
        self,
        config: ModelConfig,
        tensors: Mapping[str, TensorInfo],
        expert_bytes: int,
        files: tuple[Path, ...],
    ) -> ExpertStore:
        """Create a store for experts that stay in the model's files. Errors as `plan_store`."""

    def convolve(
        self, x: mx.array, tail: mx.array, taps: mx.array, bias: mx.array | None, activate: bool
    ) -> tuple[mx.array, mx.array]:
        """See `engine.nn.scan.convolve`."""

    def scan(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        log_decay: mx.array,
        state: mx.array,
        beta: mx.array | None = None,
        eps: float = 0.0,
    ) -> tuple[mx.array, mx.array]:
        """See `engine.nn.scan.scan`."""

    def gated_norm(
        self, y: mx.array, gate: mx.array, weight: mx.array, eps: float, gate_first: bool
    ) -> mx.array:
        """See `engine.nn.scan.gated_norm`."""

    def latent_attention(self, q: mx.array, rows: Rows, value_dim: int) -> mx.array:
        """Compute causal attention for all heads over one shared row per token.

        q: (T, H, d), scaled. rows: (L, d); the last T belong to the new tokens. The first
        `value_dim` entries of a row are its value. Returns (T, H, value_dim).
        """

    def sample(self, logits: mx.array, settings: Settings, bits: int) -> mx.array:
        """See `engine.sampling.sample`. The same random bits may select a different token."""
