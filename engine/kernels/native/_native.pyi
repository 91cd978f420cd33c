"""The C++ extension. Types are GGML ids, cache types those of `engine.kernels.native`."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

def mlx_version() -> str: ...
def isa() -> str: ...
def set_threads(threads: int) -> None: ...

class Weight:
    def __init__(
        self, buffer: NDArray[np.uint8], type: int, experts: int, rows: int, cols: int
    ) -> None: ...

def matmul(x: mx.array, w: Weight) -> mx.array: ...
def gather_matmul(x: mx.array, ids: mx.array, w: Weight) -> mx.array: ...
def rows(ids: mx.array, w: Weight) -> mx.array: ...
def convolve(
    x: mx.array, tail: mx.array, taps: mx.array, bias: mx.array | None, activate: bool
) -> tuple[mx.array, mx.array]: ...
def scan(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    state: mx.array,
    beta: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]: ...
def gated_norm(
    y: mx.array, gate: mx.array, weight: mx.array, eps: float, gate_first: bool
) -> mx.array: ...
def latent_attention(
    q: mx.array, rows: mx.array, scales: mx.array | None, value_dim: int
) -> mx.array: ...

class Caches:
    def __init__(
        self, layers: list[tuple[int, int, int]], capacity: int, type: int
    ) -> None: ...  # layers: kv heads, key dim, value dim of each
    @property
    def capacity(self) -> int: ...
    def memory(self) -> list[NDArray[np.uint8]]: ...  # the memory itself, for reading and writing

class Rope:
    def __init__(self, periods: mx.array, interleaved: bool, magnitude: float) -> None: ...

class Stack:
    def __init__(self) -> None: ...
    def add_attention(
        self,
        *,
        norm: mx.array,
        eps: float,
        q: Weight,
        k: Weight,
        v: Weight,
        output: Weight,
        q_bias: mx.array | None,
        k_bias: mx.array | None,
        v_bias: mx.array | None,
        output_bias: mx.array | None,
        q_norm: mx.array | None,
        k_norm: mx.array | None,
        rope: Rope,
        heads: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        scale: float,
    ) -> None: ...
    def add_dense(
        self, *, norm: mx.array, eps: float, gate: Weight, up: Weight, down: Weight
    ) -> None: ...
    def add_experts(
        self,
        *,
        norm: mx.array,
        eps: float,
        router: Weight,
        gate: Weight,
        up: Weight,
        down: Weight,
        used: int,
        renormalize: bool,
        scale: float,
    ) -> None: ...
    def run(self, x: mx.array, caches: Caches | None, offset: int) -> mx.array: ...
    def run_and_tell(
        self, x: mx.array, caches: Caches | None, offset: int
    ) -> tuple[mx.array, mx.array]: ...  # (T, D), and the experts chosen (L, T, k) int32

class Head:
    def __init__(self, norm: mx.array, eps: float, output: Weight) -> None: ...
    def run(self, x: mx.array) -> mx.array: ...
