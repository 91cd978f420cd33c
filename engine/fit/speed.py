"""How fast a model decodes: the bytes that one token moves, over the rate at which memory is read.

It is arithmetic on the header. What was measured on this machine, its rate of reading and how long
real tokens took, is handed in; what was not measured here comes from the priors below, and every
answer says which of the two it is. A token takes

    (weights x bytes of weights + kv x bytes of the cache + layers x layer_bytes) / bandwidth
    + layers x layer_s
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.gguf.reader import TensorInfo
from engine.kernels.sizes import resident_bytes
from engine.nn.cache_spec import kv_read_bytes
from engine.nn.config import OF_EXPERTS, ModelConfig, token_share, used_tensors

MEASURED, PREDICTED, PRIOR = "measured", "predicted", "prior"
GUESS = 0.8  # how much wider the range is where no header says what a token moves
HEAD = ("output.weight", "output.bias", "output_norm.weight", "token_embd.weight")


@dataclass(frozen=True, slots=True)
class BytesPerToken:
    """Bytes that one token moves, by what they are for.

    experts: those chosen. attention: also what takes its place in some layers. shared: feed-forward
    parts that every token uses, routers among them. head: with one row of the embedding. kv: the
    keys and values, or the states, of the tokens so far.
    """

    experts_bytes: int
    attention_bytes: int
    shared_bytes: int
    head_bytes: int
    kv_bytes: int

    @property
    def weights_bytes(self) -> int:
        """The weights among them."""
        return self.experts_bytes + self.attention_bytes + self.shared_bytes + self.head_bytes

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.weights_bytes + self.kv_bytes

    def scaled(self, share: float) -> BytesPerToken:
        """Give the same with weights `share` times as large."""
        if share == 1:
            return self
        names = ("experts_bytes", "attention_bytes", "shared_bytes", "head_bytes")
        return replace(self, **{name: int(share * getattr(self, name)) for name in names})


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The rate at which a machine reads memory, and whether that was measured or is a prior."""

    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second, with the range in which they may lie, and where they are from."""

    per_s: float
    low: float
    high: float
    source: str  # measured | predicted | prior


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """What a token costs beside plain reading. low, high: how far the rate may be off, as factors.

    weights, kv: how many times longer than a plain read it takes to multiply by what is read.
    layer_bytes, layer_s: what else a layer takes, as bytes that could have been read, and in
    seconds; a CPU that reads faster is done with everything else sooner too.
    """

    weights: float
    kv: float
    layer_bytes: float = 0.0
    layer_s: float = 0.0
    low: float = 0.65
    high: float = 1.35


# Where nothing ran yet. For the native kernels fitted to runs on a quiet and on a busy machine; for
# GPUs to other programs' public measurements. docs/fit.md says how well they do.
DECODE_COSTS = {
    ("cpu", "native"): DecodeCost(weights=1.15, kv=1.22, layer_bytes=0.5e6, low=0.8, high=1.2),
    ("cpu", "stock"): DecodeCost(weights=15.0, kv=15.0, layer_bytes=15e6, low=0.5, high=2.0),
    ("metal", "stock"): DecodeCost(weights=1.4, kv=1.4, layer_s=0.1e-3),
    ("cuda", "stock"): DecodeCost(weights=1.4, kv=1.4, layer_s=0.1e-3, low=0.5, high=1.6),
}


def bytes_per_token(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    device: str,
    kernels: str,
    depth: int,
    kv_type: str,
) -> BytesPerToken:
    """Count what one token moves at `depth`. kernels: native or stock, which hold other sizes."""
    parts = dict.fromkeys(("experts", "attention", "shared", "head"), 0.0)
    for info in used_tensors(config, tensors):
        share = token_share(info, config, tensors)
        parts[_part(info.name)] += resident_bytes(info, device, kernels) * float(share)
    sizes = {f"{part}_bytes": int(size_bytes) for part, size_bytes in parts.items()}
    return BytesPerToken(**sizes, kv_bytes=kv_read_bytes(config.cache_specs, depth, kv_type))


def seconds(
    moved: BytesPerToken, layers: int, bandwidth: Bandwidth, backend: str, kernels: str
) -> float:
    """Say how long one token takes by the priors."""
    pace = DECODE_COSTS[backend, kernels]
    stretched = pace.weights * moved.weights_bytes + pace.kv * moved.kv_bytes
    stretched += layers * pace.layer_bytes
    return stretched / bandwidth.bytes_per_s + layers * pace.layer_s


def predict(
    moved: BytesPerToken,
    layers: int,
    bandwidth: Bandwidth,
    backend: str,
    kernels: str,
    own: Sequence[float] = (),
    others: Sequence[float] = (),
    estimated: bool = False,
) -> Rate:
    """Say how many tokens a second there will be.

    own: of real runs of this very file here, how many times longer a token took than `seconds`
    says; others: the same of other files. The first make it a measurement, carried to this depth.
    estimated: what is moved is not from a header.
    """
    plain = 1 / seconds(moved, layers, bandwidth, backend, kernels)
    pace = DECODE_COSTS[backend, kernels]
    if own:
        return Rate(plain / statistics.median(own), plain / max(own), plain / min(own), MEASURED)
    source = PREDICTED if bandwidth.source == MEASURED else PRIOR
    if others:
        plain, source = plain / statistics.median(others), PREDICTED
    low, high = (GUESS * pace.low, pace.high / GUESS) if estimated else (pace.low, pace.high)
    return Rate(plain, plain * low, plain * high, source)


def _part(name: str) -> str:
    """Say what a tensor is for, by its name."""
    if OF_EXPERTS.fullmatch(name):
        return "experts"
    if name in HEAD:
        return "head"
    return "shared" if ".ffn_" in name or ".exp_probs" in name else "attention"
