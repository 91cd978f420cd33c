"""The C++ extension. Types are GGML ids, cache types those of `engine.kernels.native`."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

def block_types() -> list[tuple[int, str, int, int]]: ...  # id, name, weights, bytes
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
def pick(
    logits: mx.array,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> mx.array: ...  # () int32
def ready(x: mx.array) -> bool: ...  # whether what was launched has been computed

class Caches:
    # layers: kv heads, key dim, value dim, window and room for tokens of each. states: values of
    # the tail and of the memory. rewind: tokens before a prompt's end, where a state is kept.
    def __init__(
        self,
        layers: list[tuple[int, int, int, int, int]],
        states: list[tuple[int, int]],
        capacity: int,
        type: int,
        rewind: int,
    ) -> None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...  # of all states that are kept
    marks: list[int]  # the mark; the tokens that each kept state has seen, -1 for none
    def states(self) -> list[NDArray[np.uint8]]: ...  # of each state and layer: tail, memory
    def memory(self) -> list[NDArray[np.uint8]]: ...  # the memory itself, for reading and writing
    def reach(self, length: int) -> int: ...
    def undo(self, offset: int) -> None: ...  # of the step from there on, which was given up
    @property
    def slots(self) -> list[int]: ...  # for how many tokens each layer has room
    bases: list[int]  # the token that each layer's memory begins with

class Rope:
    def __init__(self, periods: mx.array, interleaved: bool, magnitude: float) -> None: ...

class Stack:
    def __init__(self) -> None: ...
    @property
    def bytes(self) -> int: ...  # of all weights
    @property
    def done(self) -> float: ...  # the share of its layers that the task under way has behind it
    def give_up(self, yes: bool) -> None: ...  # while True, tasks end after the layer they are at
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
        gated: bool,
        whole_norms: bool,
        norms_last: bool,
        rope: Rope | None,
        sinks: mx.array | None,
        heads: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        window: int,
        scale: float,
        residual: float,
    ) -> None: ...
    def add_latent(
        self,
        *,
        norm: mx.array,
        eps: float,
        q_a: Weight | None,
        q_norm: mx.array | None,
        q: Weight,
        kv_a: Weight,
        kv_norm: mx.array,
        latent_eps: float,
        k_b: Weight,
        v_b: Weight,
        output: Weight,
        rope: Rope,
        heads: int,
        scale: float,
        residual: float,
    ) -> None: ...
    # step, beta: (at, group, step) of each head's column: at + h // group * step + h % group.
    def add_recurrent(
        self,
        *,
        norm: mx.array,
        eps: float,
        inputs: list[Weight],
        output: Weight,
        taps: mx.array,
        bias: mx.array | None,
        mixed_at: int,
        gate_at: int,
        step: tuple[int, int, int],
        beta: tuple[int, int, int] | None,
        step_bias: mx.array,
        rate: mx.array,
        skip: mx.array | None,
        q_at: int,
        k_at: int,
        v_at: int,
        heads: tuple[int, int],
        key_heads: tuple[int, int],
        width: int,
        values: int,
        gated_norm: mx.array,
        gate_first: bool,
        residual: float,
    ) -> None: ...
    def add_dense(
        self,
        *,
        norm: mx.array,
        eps: float,
        gate: Weight,
        up: Weight,
        down: Weight,
        residual: float,
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
        router_bias: mx.array | None,
        gate_bias: mx.array | None,
        up_bias: mx.array | None,
        down_bias: mx.array | None,
        activation: int,
        gating: int,
        selection_bias: mx.array | None,
        used: int,
        groups: int,
        groups_used: int,
        renormalize: bool,
        scale: float,
        shared_gate: Weight | None,
        shared_up: Weight | None,
        shared_down: Weight | None,
        shared_score: mx.array | None,
        residual: float,
    ) -> None: ...
    def run(self, x: mx.array, caches: Caches | None, offset: int) -> mx.array: ...
    def run_and_tell(
        self, x: mx.array, caches: Caches | None, offset: int
    ) -> tuple[mx.array, mx.array]: ...  # (T, D), and the experts chosen (L, T, k) int32

class Head:
    def __init__(self, norm: mx.array, eps: float, output: Weight) -> None: ...
    def run(self, x: mx.array) -> mx.array: ...
