"""How a weight multiplies: the seam between the graph of a model and the machine under it.

A weight is a `QTensor`. It answers four questions, and a model asks no others:

    matmul(x)              (T, in) -> (T, out)
    gather_matmul(x, ids)  (T, 1 or k, in), ids (T, k) -> (T, k, out)    for a stack of E experts
    stack_matmul(x)        (T, E, in) -> (T, E, out)                     for a stack of E heads
    rows(ids)              (T,) -> (T, in)                               for embeddings

`Kernels` makes QTensors out of GGUF blocks. Two implementations are here: `stock`, plain MLX
operations on any MLX device, and `native`, C++ on the CPU. Which one and which backend runs, and
in which precision, is decided here and in `engine.fit.machine`, and nowhere else.

Axes: T tokens, E experts, k chosen experts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from engine.errors import BackendError
from engine.fit.machine import backend
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME

if TYPE_CHECKING:
    import mlx.core as mx

    from engine.nn.cache import Rows
    from engine.nn.decoder import Blocks, Head, Layers, Scorer
    from engine.sampling import Settings

NAMES = ("auto", "native", "stock")
GROUP = 32  # weights that share a scale in MLX's quantised matrices
# Bits in which the stock kernels hold a weight of each block type, without its share of a scale.
RESIDENT_BITS = {
    "Q4_0": 4,
    "Q4_1": 4,
    "Q4_K": 4,
    "Q5_0": 5,
    "Q5_1": 5,
    "Q5_K": 5,
    "Q8_0": 8,
    "Q2_K": 8,
    "Q3_K": 8,
    "Q6_K": 8,
    "IQ4_NL": 8,
    "IQ4_XS": 8,
}


class QTensor(Protocol):
    """A weight matrix (out, in), or a stack of them (E, out, in), in whatever form it is held."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def matmul(self, x: mx.array) -> mx.array:
        """Multiply: x (T, in) -> (T, out)."""

    def gather_matmul(self, x: mx.array, ids: mx.array) -> mx.array:
        """Multiply by chosen experts: x (T, 1 or k, in), ids (T, k) -> (T, k, out)."""

    def stack_matmul(self, x: mx.array) -> mx.array:
        """Multiply by every matrix of a stack: x (T, E, in) -> (T, E, out)."""

    def rows(self, ids: mx.array) -> mx.array:
        """Look up rows: ids (T,) -> (T, in)."""


class Kernels(Protocol):
    """One way to hold and multiply weights on one device."""

    name: str
    fallback_reason: str | None  # why these slower kernels were chosen, if they were

    @property
    def dtype(self) -> mx.Dtype:
        """The type of activations."""

    def load(self, blocks: memoryview, info: TensorInfo) -> QTensor:
        """Make a weight of its GGUF blocks. blocks: the bytes, which must not change."""

    def convolve(
        self, x: mx.array, tail: mx.array, taps: mx.array, bias: mx.array | None, activate: bool
    ) -> tuple[mx.array, mx.array]:
        """Do what `engine.nn.scan.convolve` does."""

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
        """Do what `engine.nn.scan.scan` does."""

    def gated_norm(
        self, y: mx.array, gate: mx.array, weight: mx.array, eps: float, gate_first: bool
    ) -> mx.array:
        """Do what `engine.nn.scan.gated_norm` does."""

    def latent_attention(self, q: mx.array, rows: Rows, value_dim: int) -> mx.array:
        """Attend with all heads to one row of each token, which begins with its value.

        q: (T, H, d), scaled; rows: (L, d), the last T those of the new tokens, of which each sees
        those before it and itself. Returns (T, H, value_dim).
        """

    def pick(self, logits: mx.array, settings: Settings, bits: int) -> mx.array:
        """Do what `engine.sampling.pick` does. The same bits may mean another token."""

    def fuse(self, layers: Blocks, head: Head) -> tuple[Layers, Scorer]:
        """Give back what computes the same, faster where these kernels can."""


def select(name: str = "auto", threads: int | None = None) -> Kernels:
    """Choose the kernels for this machine. Raises BackendError where they are not there.

    name: auto is native on a CPU, and stock where those do not load (`fallback_reason` says why)
    or on a GPU. threads: how many share the work on a CPU; None is one for each core this process
    may use.
    """
    if name not in NAMES:
        raise BackendError(f"no kernels are called {name!r}; there are {', '.join(NAMES)}")
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}, and must be at least 1")
    device = backend()
    reason = None
    if name != "stock" and device == "cpu":
        from engine.kernels.native import NativeKernels, why_not

        reason = why_not()
        if reason is None:
            return NativeKernels(threads)
    if name == "native":
        raise BackendError(reason or f"the native kernels are for CPUs; MLX is here for {device}")
    from engine.kernels.stock import StockKernels

    return StockKernels(device, threads, reason)


def selected(name: str, device: str) -> str:
    """Say which kernels `select` would choose on cpu, metal or cuda: native or stock."""
    if name == "stock" or device != "cpu":
        return "stock"
    from engine.kernels.native import why_not

    return "native" if name == "native" or why_not() is None else "stock"


def resident_bytes(info: TensorInfo, device: str, kernels: str) -> int:
    """Say how many bytes a tensor takes once loaded on cpu, metal or cuda, by its header.

    kernels: native, which read the file where it is mapped, or stock. Of `attn_kv_b`, which is
    split at load, this is the most that it can take.
    """
    if info.name.endswith(".attn_kv_b.weight"):
        return max(info.size_bytes, 2 * math.prod(info.shape))
    if kernels == "native":
        return info.size_bytes
    if info.type.name not in RESIDENT_BITS:  # floats and MXFP4 keep their size
        return info.size_bytes
    weights = math.prod(info.shape)
    scale_and_bias = 2 * (4 if device == "cpu" else 2)
    return weights * RESIDENT_BITS[info.type.name] // 8 + weights // GROUP * scale_and_bias


def runs(quant: str) -> bool:
    """Say whether files of a named quantisation have types that the kernels know, by its name."""
    name = quant.upper().removeprefix("UD-")
    return name.startswith((*RESIDENT_BITS, "F32", "F16", "BF16", "MXFP4"))


def growth(quant: str, device: str, kernels: str) -> float:
    """Estimate by which factor a file of a named quantisation grows once loaded.

    A mix such as Q4_K_M is taken as three parts of Q4_K and one of Q6_K. 1 where there is no type.
    """
    if kernels == "native":
        return 1.0
    name = quant.upper().removeprefix("UD-")
    base = next((kind for kind in RESIDENT_BITS if name.startswith(kind)), None)
    if base is None:
        return 1.0
    mixed = name != base
    return 0.75 * _growth(base, device) + 0.25 * _growth("Q6_K" if mixed else base, device)


def _growth(type_name: str, device: str) -> float:
    kind = TYPE_BY_NAME[type_name]
    block = TensorInfo("", (1, math.lcm(kind.weights, GROUP)), kind, 0, 0)
    in_file = math.prod(block.shape) // kind.weights * kind.size_bytes
    return resident_bytes(block, device, "stock") / in_file
