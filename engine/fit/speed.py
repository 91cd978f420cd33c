"""Predict the decode rate from the bytes read for each token and the memory bandwidth.

Callers pass in measurements. The priors below replace any that are missing. One token takes

    (weights x bytes of weights + kv x bytes of the cache + layers x layer_bytes) / bandwidth
    + layers x layer_s + routed layers x routed_s

and more on a CPU if its cores take longer for the bytes of a block type than memory to deliver them
(`engine.fit.decode_cost`). A latent cache is multiplied so often that computing takes longer than
reading; then `reuse` replaces `kv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.gguf.reader import TensorInfo
from engine.kernels.sizes import resident_bytes
from engine.nn.cache.spec import kv_read_bytes
from engine.nn.config import OF_EXPERTS, ModelConfig, token_share, used_tensors

MEASURED, PREDICTED, PRIOR = "measured", "predicted", "prior"
OVERLAP = 0.45  # of reading, while cores decode what they have; fitted to 256 MiB of each type
SLOW = 0.1  # of a token's time
GUESS = 0.8  # widens the range if the bytes per token are estimated
HEAD = ("output.weight", "output.bias", "output_norm.weight", "token_embd.weight")


@dataclass(frozen=True, slots=True)
class BytesPerToken:
    """The bytes read for each token, by purpose.

    experts: the chosen experts. attention: includes recurrent layers. shared: feed-forward weights
    that every token uses, including routers. head: includes one embedding row. kv: keys and values,
    or recurrent states, of earlier tokens. types: the bytes of weights by block type; empty if that
    is unknown. routed_layers: how many layers choose experts. kv_reuse: how often a token
    multiplies each value of a latent cache; 0 for other caches.
    """

    experts_bytes: int
    attention_bytes: int
    shared_bytes: int
    head_bytes: int
    kv_bytes: int
    types: Mapping[str, int] = field(default_factory=dict)
    routed_layers: int = 0
    kv_reuse: float = 0.0

    @property
    def weights_bytes(self) -> int:
        return self.experts_bytes + self.attention_bytes + self.shared_bytes + self.head_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes

    def scaled(self, share: float, type_name: str | None = None) -> BytesPerToken:
        """Return a copy with the weights scaled by `share`, and in another type if it is given."""
        moved = replace(
            self,
            experts_bytes=int(share * self.experts_bytes),
            attention_bytes=int(share * self.attention_bytes),
            shared_bytes=int(share * self.shared_bytes),
            head_bytes=int(share * self.head_bytes),
        )
        types = {name: int(share * part) for name, part in self.types.items()}
        if type_name is not None and types:
            types = {type_name: moved.weights_bytes}
        return replace(moved, types=types)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A machine's memory bandwidth. source: measured or prior.

    costs: a key of DECODE_COSTS, for machines of a kind; None means the backend's. barrier: how
    much longer a layer takes than in DECODE_COSTS, because many cores wait for each other. flops:
    operations a second in products of matrices; None if that is unknown.
    core_s: the seconds that all cores together take for a byte of a block type once they have it,
    with the native kernels. Types that are not listed never take longer than reading.
    """

    bytes_per_s: float
    source: str
    core_s: Mapping[str, float] = field(default_factory=dict)
    costs: str | None = None
    barrier: float = 1.0
    flops: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second, with the likely range."""

    per_s: float
    low: float
    high: float
    source: str  # measured | predicted | prior


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """How much longer generating a token takes than reading its bytes.

    weights, kv: time per byte read, relative to a plain read. reuse: the same for a byte of a
    latent cache and each time that a token multiplies it. layer_bytes, layer_s: overhead per layer,
    in bytes or in seconds. Overhead in bytes, of the stock kernels on CPUs, shrinks as bandwidth
    grows. routed_s: more for a layer that chooses experts. low, high: error bounds, as factors.
    """

    weights: float
    kv: float
    layer_bytes: float = 0.0
    layer_s: float = 0.0
    routed_s: float = 0.0
    reuse: float = 0.0
    low: float = 0.65
    high: float = 1.5


# The native kernels' are fitted to Conifer's runs on an idle and a busy machine. Those of GPUs and
# of CPUs elsewhere are fitted to published rates of other programs, by benchmarks/fit_speed.py.
DECODE_COSTS = {
    "cpu, native": DecodeCost(1.15, 1.22, layer_s=0.038e-3, low=0.8, high=1.2),
    "cpu, stock": DecodeCost(15.0, 15.0, layer_bytes=15e6, low=0.5, high=2.0),
    **{
        chip: DecodeCost(1.15, 1.28, layer_s=layer_s, routed_s=routed_s, reuse=0.325)
        for chips, layer_s, routed_s in (
            (("m1",), 0.236e-3, 0.174e-3),
            (("m2", "m3"), 0.135e-3, 0.1e-3),
            (("m4", "m5"), 0.062e-3, 0.046e-3),
        )
        for chip in chips
    },
    **{
        chip: DecodeCost(1.15, 1.29, 0, layer_s, routed_s, reuse=0.1, low=0.6, high=1.6)
        for chip, layer_s, routed_s in (
            ("ampere", 0.075e-3, 0.057e-3),
            ("ada", 0.067e-3, 0.051e-3),
        )
    },
    "gb10": DecodeCost(1.2, 1.4, layer_s=0.06e-3, reuse=0.1, low=0.75, high=1.3),
    "cpu, others": DecodeCost(1.23, 1.22, layer_s=0.13e-3, reuse=0.1, high=1.4),
}
BACKEND_COSTS = {
    ("cpu", "native"): "cpu, native",
    ("cpu", "stock"): "cpu, stock",
    **{("metal", kernels): "m4" for kernels in ("blocks", "stock")},
    **{("cuda", kernels): "ada" for kernels in ("blocks", "stock")},
}


def decode_cost(bandwidth: Bandwidth, backend: str, kernels: str) -> DecodeCost:
    """Return the costs of a machine: those of its kind, or the backend's."""
    named = None if (backend, kernels) == ("cpu", "stock") else bandwidth.costs
    return DECODE_COSTS[named or BACKEND_COSTS[backend, kernels]]


def bytes_per_token(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    device: str,
    kernels: str,
    depth: int,
    kv_type: str,
) -> BytesPerToken:
    """Return the bytes read for a token after `depth` others. kernels: native, blocks or stock."""
    parts = dict.fromkeys(("experts", "attention", "shared", "head"), 0.0)
    types: dict[str, float] = {}
    for info in used_tensors(config, tensors):
        share = token_share(info, config, tensors)
        size_bytes = resident_bytes(info, device, kernels) * float(share)
        parts[_part(info.name)] += size_bytes
        types[info.type.name] = types.get(info.type.name, 0) + size_bytes
    sizes = {f"{part}_bytes": int(size_bytes) for part, size_bytes in parts.items()}
    kv_bytes = kv_read_bytes(config.cache_specs, depth, kv_type)
    names = (info.name for info in tensors.values())
    routed = len({name.split(".")[1] for name in names if OF_EXPERTS.fullmatch(name)})
    return BytesPerToken(
        **sizes,
        kv_bytes=kv_bytes,
        types=_whole(types, kernels),
        routed_layers=routed,
        kv_reuse=latent_reuse(config),
    )


def latent_reuse(config: ModelConfig) -> float:
    """Return how often a token multiplies each value of a latent cache; 0 for other caches."""
    if config.latent is None:
        return 0.0
    rank, turned = config.latent.rank, config.rope.dims
    return max(config.heads) * (2 * rank + turned) / (rank + turned)


def seconds(
    moved: BytesPerToken, layers: int, bandwidth: Bandwidth, backend: str, kernels: str
) -> float:
    """Return how many seconds one token takes, according to the priors."""
    cost = decode_cost(bandwidth, backend, kernels)
    kv = max(cost.kv, cost.reuse * moved.kv_reuse)
    read_bytes = cost.weights * moved.weights_bytes + kv * moved.kv_bytes
    read_s = (read_bytes + layers * cost.layer_bytes) / bandwidth.bytes_per_s
    layers_s = layers * cost.layer_s * bandwidth.barrier + moved.routed_layers * cost.routed_s
    return read_s + layers_s + sum(_waits(moved, bandwidth, backend, kernels).values())


def slow_type(
    moved: BytesPerToken, layers: int, bandwidth: Bandwidth, backend: str, kernels: str
) -> tuple[str, float] | None:
    """Return the block type that slows decoding most, and its rate per byte relative to Q4_K.

    Returns None if no type takes at least SLOW of a token's time beyond reading it.
    """
    waits = _waits(moved, bandwidth, backend, kernels)
    if sum(waits.values()) < SLOW * seconds(moved, layers, bandwidth, backend, kernels):
        return None
    name, cost = max(waits, key=lambda name: waits[name]), decode_cost(bandwidth, backend, kernels)
    return name, _byte_s("Q4_K", bandwidth, cost) / _byte_s(name, bandwidth, cost)


def _waits(
    moved: BytesPerToken, bandwidth: Bandwidth, backend: str, kernels: str
) -> dict[str, float]:
    """Return how many seconds decoding takes beyond reading, by block type."""
    if kernels != "native":
        return {}
    cost = decode_cost(bandwidth, backend, kernels)
    read_s = cost.weights / bandwidth.bytes_per_s
    return {
        name: part * (_byte_s(name, bandwidth, cost) - read_s) for name, part in moved.types.items()
    }


def _byte_s(type_name: str, bandwidth: Bandwidth, cost: DecodeCost) -> float:
    """Return the seconds for a byte of a block type: reading alone, or decoding and the rest."""
    plain = 1 / bandwidth.bytes_per_s
    return max(cost.weights * plain, bandwidth.core_s.get(type_name, 0) + (1 - OVERLAP) * plain)


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
    """Predict the decode rate in tokens per second.

    own, others: measured time divided by predicted `seconds`, for runs on this machine with this
    file and with other files. With `own`, the result is a measurement, extrapolated to the current
    depth. estimated: True if `moved` does not come from a header.
    """
    plain = 1 / seconds(moved, layers, bandwidth, backend, kernels)
    cost = decode_cost(bandwidth, backend, kernels)
    if own:
        return Rate(plain / median(own), plain / max(own), plain / min(own), MEASURED)
    source = PREDICTED if bandwidth.source == MEASURED else PRIOR
    if others:
        plain, source = plain / median(others), PREDICTED
    low, high = (GUESS * cost.low, cost.high / GUESS) if estimated else (cost.low, cost.high)
    return Rate(plain, plain * low, plain * high, source)


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value, without the cost of importing `statistics`."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _whole(types: Mapping[str, float], kernels: str) -> dict[str, int]:
    """Round the bytes by type. Stock kernels hold other types than the file, so none are known."""
    return {name: int(part) for name, part in types.items()} if kernels == "native" else {}


def _part(name: str) -> str:
    if OF_EXPERTS.fullmatch(name):
        return "experts"
    if name in HEAD:
        return "head"
    return "shared" if ".ffn_" in name or ".exp_probs" in name else "attention"
