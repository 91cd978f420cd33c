"""The C++ extension. Weight types are GGML type ids."""

from enum import Enum
from typing import overload

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

def block_types() -> list[tuple[int, str, int, int]]: ...  # id, name, weights, bytes
def isa() -> str: ...  # the instruction set in use, for display
def isas() -> list[str]: ...  # ids of those that this processor supports
def use_isa(id: str | None) -> None: ...  # one of isas(); None: the best
def set_threads(threads: int) -> None: ...
def set_prompt(prompt: bool) -> None: ...  # whether the next steps read a prompt, not decode
def block_tokens() -> int: ...

class Watch:
    """A mapped file that is watched for lost pages, which read as zeros."""

    def __init__(self, mapped: NDArray[np.uint8]) -> None: ...
    @property
    def lost(self) -> bool: ...

class Weight:
    @overload
    def __init__(
        self,
        buffer: NDArray[np.uint8],
        type: int,
        experts: int,
        rows: int,
        cols: int,
        scales: list[float] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        store: ExpertStore,
        layer: int,
        part: int,
        type: int,
        experts: int,
        rows: int,
        cols: int,
        scales: list[float] | None,
    ) -> None: ...  # a part of a layer's experts
    def rows(self, begin: int, end: int) -> Weight: ...  # of a single matrix

class ExpertStore:
    """The experts that stay in the files. layers: the kind of slot, and (bytes, file of each
    expert, offset of each expert) for each part. kinds: (bytes, slots)."""

    def __init__(
        self,
        files: list[str],
        layers: list[tuple[int, list[tuple[int, list[int], list[int]]]]],
        kinds: list[tuple[int, int]],
        window: int,
        window_bytes: int,
        readers: int,
    ) -> None: ...
    def stop(self) -> None: ...
    def resume(self) -> None: ...
    @property
    def begun(self) -> int: ...  # steps of a stack with this store
    def wait(self, step: int, seconds: float) -> bool: ...  # for the end of one of them
    # for tests: delay_s before each read; most bytes that one returns, 0: all; how many succeed,
    # -1: all
    def disturb(self, delay_s: float, most: int, fails_after: int) -> None: ...
    @property
    def failure(self) -> tuple[int, int, int, int, int] | None: ...  # as in `check_failure`
    @property
    def held(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def stats(self) -> tuple[int, int, int, int, int, int, list[int]]: ...  # as in core/store

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
    logits: mx.array, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> mx.array: ...  # () int32
def ready(x: mx.array) -> bool: ...  # True once an array passed to async_eval is computed

class CacheType(Enum):
    f16, f32, q8 = range(3)

class Caches:
    @property
    def capacity(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...  # total size of all saved states
    marks: list[int]  # mark, then tokens in each saved state; -1: empty
    bases: list[int]  # index of the first token in each layer's buffers
    @property
    def slots(self) -> list[int]: ...  # capacity of each layer, in tokens
    def states(self) -> list[NDArray[np.uint8]]: ...  # tail and memory for each state and layer
    def buffers(self) -> list[NDArray[np.uint8]]: ...  # writable views
    def rewindable_length(self, length: int) -> int: ...
    def undo(self, offset: int) -> None: ...  # roll back a cancelled step

# The layers in core/blocks/block.h. Fields can be set but not read. Assign an array or None to a
# field that points to floats, (weight, eps, bias or None, whether it is a layer norm) or None to a
# norm, and (weight, bias or None) to a matrix with a bias.
class _Layer:
    def __setattr__(self, name: str, value: object) -> None: ...

class AttentionLayer(_Layer): ...
class LatentLayer(_Layer): ...
class RecurrentLayer(_Layer): ...
class ConvLayer(_Layer): ...
class DenseLayer(_Layer): ...
class ExpertLayer(_Layer): ...
class EndLayer(_Layer): ...

class Activation(Enum):
    silu, clamped, gelu, capped = range(4)

class Gate(Enum):
    sigmoid, softplus = range(2)

class Place(Enum):
    """What a layer adds its result to, and where it writes the sum."""

    stream, aside, nothing = range(3)

class Gating(Enum):
    softmax, sigmoid, softmax_of_chosen, sparse_mixer = range(4)

class Temperature:
    def __init__(self, scale: float, length: int, shift: int) -> None: ...

class HeadColumns:
    def __init__(self, at: int, group: int, step: int) -> None: ...

class Rope:
    def __init__(self, periods: mx.array, interleaved: bool, magnitude: float) -> None: ...

class Stack:
    def __init__(self) -> None: ...
    @property
    def bytes(self) -> int: ...  # total size of the weights
    @property
    def done(self) -> float: ...  # share of layers finished by the current task
    # lender: the number of the attention cache that the layer reads; -1: its own
    def add(
        self,
        layer: _Layer,
        base: Place = Place.stream,
        to: Place = Place.stream,
        lender: int = -1,
    ) -> None: ...
    def cancel(self, yes: bool) -> None: ...  # while True, tasks stop after their current layer
    # rewind: tokens between the saved state and the prompt's end. slack: extra tokens per window.
    def new_caches(self, capacity: int, type: CacheType, rewind: int, slack: int) -> Caches: ...
    # embedded: the tokens' embeddings in each layer, (T, L n), if the model has them
    def run(
        self, x: mx.array, caches: Caches | None, offset: int, embedded: mx.array | None
    ) -> mx.array: ...
    def run_with_routes(
        self, x: mx.array, caches: Caches | None, offset: int, embedded: mx.array | None
    ) -> tuple[mx.array, mx.array]: ...  # (T, D), and the chosen experts (L, T, k) int32

class Head:
    def __init__(
        self, norm: tuple[mx.array, float, mx.array | None, bool] | None, output: Weight
    ) -> None: ...
    def run(self, x: mx.array) -> mx.array: ...
