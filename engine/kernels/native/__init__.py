"""Native kernels: C++ for CPUs. They read GGUF blocks in place from the mapped file.

Python checks shapes and types before calling C++. Activations are float32. A product with quantised
weights rounds the activations to 8 bits in groups of 32, or to bfloat16 if the tokens are a
prompt's and the processor supports AMX.

Axes: T tokens, E experts, k chosen experts.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.device import cores
from engine.errors import BackendError
from engine.gguf.reader import TensorInfo
from engine.kernels.base import Rows
from engine.kernels.native.stream import NativeStore
from engine.limits import lacks_threads
from engine.streaming import plan_store

if TYPE_CHECKING:
    from engine.kernels.base import ExpertStore
    from engine.kernels.native import _native
    from engine.nn.config import ModelConfig
    from engine.sampling import Settings

MAX_TAPS = 64  # per convolution; same value as in core/recurrent/recurrence.h
BUILT_FOR = Path(__file__).with_name("mlx-version")


@cache
def unavailable_reason() -> str | None:
    """Return why the extension cannot be loaded, or None if it can."""
    try:
        _extension()
    except BackendError as error:
        return str(error)
    return None


def isa() -> str:
    """Return the instruction sets the kernels use on this machine, such as `AVX-512 VNNI, AMX`."""
    return _extension().isa()


def best_isa() -> str:
    """Return the id of the best instruction set that this processor supports, such as `avx2`."""
    return _extension().isas()[-1]


def check_isa(name: str) -> str:
    """Return the name of an instruction set. Raises BackendError if it cannot be used here."""
    known = _extension().isas()
    if name not in known:
        raise BackendError(
            f"this processor's instruction sets are {', '.join(known)}, not {name!r}"
        )
    return name


def _start_threads(native: ModuleType, count: int) -> None:
    """Start the pool with `count` threads, or fewer if the system allows no more."""
    while count:
        try:
            native.set_threads(count)
            break
        except RuntimeError as error:
            if not lacks_threads(error):
                raise
            count //= 2  # leaves some for MLX


def watch(mapped: memoryview) -> _native.Watch | None:
    """Watch a mapped file for lost pages. Returns None if the extension cannot be loaded."""
    return _extension().Watch(mapped) if unavailable_reason() is None else None


def _extension() -> ModuleType:
    if not BUILT_FOR.exists():
        raise BackendError("the native CPU kernels are not part of this build")
    built, running = BUILT_FOR.read_text().strip(), mx.__version__  # type: ignore[attr-defined]
    if built != running:  # array layouts may differ, so do not load the extension
        raise BackendError(
            f"the native CPU kernels were built for MLX {built}, but {running} is installed"
        )
    try:
        return importlib.import_module("engine.kernels.native._native")
    except ImportError as error:
        raise BackendError(f"the native CPU kernels failed to load: {error}") from error


@dataclass(frozen=True, slots=True)
class NativeTensor:
    """A matrix or stack, stored as GGUF blocks."""

    weight: _native.Weight
    shape: tuple[int, ...]
    native: ModuleType

    def matmul(self, x: mx.array) -> mx.array:
        if not len(self.shape) == x.ndim == 2 or x.shape[1] != self.shape[1]:
            raise ValueError(f"matmul: x {x.shape} does not match the weight {self.shape}")
        return self.native.matmul(_floats(x), self.weight)

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        fits = len(self.shape) == x.ndim == 3 and ids.ndim == 2
        fits = fits and x.shape[2] == self.shape[2] and x.shape[0] == ids.shape[0]
        if not fits or x.shape[1] not in (1, ids.shape[1]):
            raise ValueError(
                f"gather_matmul: shapes do not match: {x.shape}, {ids.shape}, {self.shape}"
            )
        return self.native.gather_matmul(_floats(x), _ids(ids), self.weight)

    def stack_matmul(self, x: mx.array) -> mx.array:
        if len(self.shape) != 3 or x.ndim != 3 or x.shape[1:] != (self.shape[0], self.shape[2]):
            raise ValueError(f"stack_matmul: x {x.shape} does not match the stack {self.shape}")
        return self.gather_matmul(x, mx.broadcast_to(mx.arange(x.shape[1]), x.shape[:2]))

    def rows(self, ids: mx.array) -> mx.array:
        if len(self.shape) != 2 or ids.ndim != 1:
            raise ValueError(
                f"rows: expected one-dimensional ids and a matrix, got {ids.shape}, {self.shape}"
            )
        return self.native.rows(_ids(ids), self.weight)


class NativeKernels:
    """Kernels written in C++ for CPUs. Raises BackendError if the extension does not load.

    All models in this process share the thread pool and the instruction set. threads: size of the
    pool; None means one per available core. isa: an instruction set, such as avx2; None means the
    best.
    """

    name = "native"
    groups_by_expert = True
    in_place = True
    dtype = mx.float32
    fallback_reason: str | None = None
    refusals: Mapping[str, str | None] = MappingProxyType({})

    def __init__(self, threads: int | None, isa: str | None = None) -> None:
        self.native = _extension()
        self.native.use_isa(None if isa is None else check_isa(isa))
        self.isa: str = self.native.isa()
        _start_threads(self.native, threads or cores())
        # Without tiles, the number of tokens never selects the kernel.
        self.block_tokens: int = self.native.block_tokens() if "AMX" in self.isa else 0
        mx.set_default_device(mx.cpu)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.native.set_prompt(True)
        try:
            yield
        finally:
            self.native.set_prompt(False)

    def load(
        self, blocks: memoryview, info: TensorInfo, scales: mx.array | None = None
    ) -> NativeTensor:
        *stack, rows, columns = info.shape
        if len(stack) > 1 or columns % info.type.weights or blocks.nbytes != info.size_bytes:
            message = (
                f"tensor {info.name!r}: {blocks.nbytes:,} bytes do not match shape {info.shape}"
            )
            raise ValueError(message)
        experts = stack[0] if stack else 1
        factors = None if scales is None else scales.tolist()
        weight = self.native.Weight(blocks, info.type.id, experts, rows, columns, factors)
        return NativeTensor(weight, info.shape, self.native)

    def store(
        self,
        config: ModelConfig,
        tensors: Mapping[str, TensorInfo],
        expert_bytes: int,
        files: tuple[Path, ...],
    ) -> ExpertStore:
        def wrap(weight: _native.Weight, shape: tuple[int, ...]) -> NativeTensor:
            return NativeTensor(weight, shape, self.native)

        return NativeStore(plan_store(config, tensors, expert_bytes), files, self.native, wrap)

    def latent_attention(self, q: mx.array, rows: Rows, value_dim: int) -> mx.array:
        values, scales = rows.values, rows.scales
        fits = q.ndim == 3 and values.ndim == 2 and q.shape[2] == values.shape[1] >= value_dim > 0
        if not fits or not q.shape[0] <= values.shape[0]:
            shapes = f"q {q.shape}, rows {values.shape}, value_dim {value_dim}"
            raise ValueError(f"latent_attention: shapes do not match: {shapes}")
        if scales is not None:
            fits = values.dtype == mx.int8 and scales.dtype == mx.float16
            groups = values.shape[1] // math.gcd(values.shape[1], 32)
            if not fits or scales.shape != (values.shape[0], groups):
                raise ValueError(
                    f"latent_attention: {values.dtype} rows do not match the scales {scales.shape}"
                )
        elif values.dtype != mx.float16:
            values = _floats(values)
        return self.native.latent_attention(_floats(q), values, scales, value_dim)

    def convolve(
        self, x: mx.array, tail: mx.array, taps: mx.array, bias: mx.array | None, activate: bool
    ) -> tuple[mx.array, mx.array]:
        _require_shape("taps", taps, (min(taps.shape[0], MAX_TAPS), x.shape[1]))
        _require_shape("tail", tail, (taps.shape[0] - 1, x.shape[1]))
        if bias is not None:
            _require_shape("bias", bias, x.shape[1:])
            bias = _floats(bias)
        return self.native.convolve(_floats(x), _floats(tail), _floats(taps), bias, activate)

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
        count, a, b, values = v.shape
        shared = (count, min(q.shape[1], a), min(q.shape[2], b), q.shape[3])
        if any(size not in (1, heads) for size, heads in ((shared[1], a), (shared[2], b))):
            raise ValueError(f"scan: q {q.shape} does not match v {v.shape}")
        for name, array in (("q", q), ("k", k)):
            _require_shape(name, array, shared)
        channels = (q.shape[3],) if log_decay.ndim == 4 and beta is not None else ()
        _require_shape("log_decay", log_decay, (*v.shape[:3], *channels))
        _require_shape("state", state, (a, b, q.shape[3], values))
        if beta is not None:
            _require_shape("beta", beta, v.shape[:3])
            beta = _floats(beta)
        parts = (_floats(part) for part in (q, k, v, log_decay, state))
        return self.native.scan(*parts, beta, eps)

    def gated_norm(
        self, y: mx.array, gate: mx.array, weight: mx.array, eps: float, gate_first: bool
    ) -> mx.array:
        _require_shape("gate", gate, y.shape)
        _require_shape("weight", weight, (1 if weight.shape[0] == 1 else y.shape[1], y.shape[2]))
        return self.native.gated_norm(_floats(y), _floats(gate), _floats(weight), eps, gate_first)

    def sample(self, logits: mx.array, settings: Settings, bits: int) -> mx.array:
        if logits.ndim != 1 or logits.size == 0:
            raise ValueError(f"sample: expected logits (V,), got {logits.shape}")
        rule = settings.temperature, settings.top_k, settings.top_p, settings.min_p
        return self.native.pick(_floats(logits), *rule, (bits >> 11) * 2.0**-53)


def _require_shape(name: str, x: mx.array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {x.shape}")


def _floats(x: mx.array) -> mx.array:
    if not mx.issubdtype(x.dtype, mx.floating):
        raise ValueError(f"activations must be floating-point, got {x.dtype}")
    return x.astype(mx.float32)


def _ids(ids: mx.array) -> mx.array:
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"ids must be integers, got {ids.dtype}")
    return ids.astype(mx.int32)
