"""Forecast a mixture whose experts do not fit: how many are in memory, and what the disk costs.

All else (attention, shared experts, routers, head, KV cache, buffers) stays in memory. The rest of
the budget holds the experts used last, across all layers. One token takes

    time in memory + experts chosen x (1 - hit rate) x bytes of an expert / rate of the disk

The hit rate is a curve over the share of the experts that the budget holds. Curves come from this
machine's own routes, from published figures, or from routers that choose evenly, the worst case.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.fit.speed import MEASURED, PREDICTED, PRIOR, Rate
from engine.gguf.reader import TensorInfo
from engine.kernels.sizes import resident_bytes
from engine.nn.config import OF_EXPERTS, ModelConfig, used_tensors

PROMPT = 1000  # tokens; the prompt that a forecast times
PAGE_BYTES = 4096  # direct reads begin and end at whole pages
MATRICES = 3  # gate, up and down: each is a read of its own
HIT_ERROR = 0.03  # of a curve of the same family (the report of boyle, docs/streaming.md)
WORDS = 200  # what the sentence counts, a page of text
TOKENS_PER_WORD = 4 / 3  # English text, in the tokenizers of these models
EVEN = "routers that choose evenly, the worst case"


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """The experts of all layers. size_bytes: all of them; largest_bytes: the largest one.

    layers: those that choose experts. count, used: how many each has and chooses for a token.
    """

    layers: int
    count: int
    used: int
    size_bytes: int
    largest_bytes: int

    @property
    def total(self) -> int:
        """How many experts all layers have."""
        return self.layers * self.count

    @property
    def mean_bytes(self) -> float:
        """The average size of an expert."""
        return self.size_bytes / max(1, self.total)

    @property
    def slot_bytes(self) -> int:
        """The memory for one expert, whose matrices begin at whole pages."""
        return self.largest_bytes + MATRICES * 2 * PAGE_BYTES

    def scaled(self, share: float) -> RoutedExperts:
        """Return the experts of another quantisation, whose weights are `share` times as large."""
        sizes = int(share * self.size_bytes), int(share * self.largest_bytes)
        return RoutedExperts(self.layers, self.count, self.used, *sizes)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is split. resident_bytes: all but experts, with KV cache, buffers and program.

    store_bytes: for experts in memory, and for those that a prompt reads ahead. cached: how many
    experts it holds. fits_context: the largest context with which all experts fit, or 0.
    """

    experts: RoutedExperts
    resident_bytes: int
    store_bytes: int
    cached: int
    fits_context: int = 0

    @property
    def share(self) -> float:
        """The share of all experts that is in memory."""
        return self.cached / max(1, self.experts.total)


@dataclass(frozen=True, slots=True)
class Curve:
    """Hit rates of a cache of the experts used last.

    points: (share of the experts that it holds, hit rate), both ascending. Below the first point,
    nothing is found again: a token's experts displace those of the token before.
    """

    points: tuple[tuple[float, float], ...]
    source: str

    def hit_rate(self, share: float) -> float:
        """Return the hit rate at a share of the experts, from 0 to 1."""
        if share < self.points[0][0]:
            return 0.0
        after = bisect.bisect_right([at for at, _ in self.points], share)
        if after == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[after - 1], self.points[after]
        return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class Disk:
    """The rate of random direct reads of an expert's matrices. source: measured or prior."""

    bytes_per_s: float
    low: float
    high: float
    source: str


# Direct random reads by 8 to 16 threads: drives of PCIe 4 gave 5.5 to 5.9 GB/s and one of PCIe 5
# gave 11.5 (JustVugg/colibri 486 and 120); the network disk of docs/performance.md gave 1.3.
ASSUMED_DISK = Disk(5.5e9, 1.3e9, 11.5e9, PRIOR)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What streaming will be like. read_bytes: from the disk for each token.

    prompt_s: seconds to the first token of a prompt of `PROMPT` tokens; None if unknown.
    """

    plan: Plan
    hit_rate: float
    curve: Curve
    read_bytes: int
    disk: Disk
    rate: Rate
    prompt_s: float | None


# (experts, used) -> (share in memory, hit rate), all of caches of the experts used last. A family's
# curve is the same at 4 and at 8 bits, so it holds for every quantisation.
#  128, 8: Qwen3-30B-A3B (kekzl/imp 1359): 45 % of selections repeat at the next token, 80 % within
#    8, and 90 to 95 % hit at a share of 40 %; `working_set` turns tokens into shares.
#  256, 8: GLM-5.2 (ml-explore/mlx-lm 1438), 20, 30, 35 and 75 of 407 GB.
#  512, 10: Qwen3.5-397B-A17B (the report of boyle).
PUBLISHED: Mapping[tuple[int, int], tuple[str, tuple[tuple[float, float], ...]]] = {
    (128, 8): ("published routes of Qwen3-30B-A3B", ((0.0625, 0.45), (0.213, 0.8), (0.4, 0.9))),
    (256, 8): (
        "published hit rates of GLM-5.2",
        ((0.049, 0.24), (0.074, 0.40), (0.086, 0.44), (0.184, 0.60)),
    ),
    (512, 10): ("a published hit rate of Qwen3.5-397B-A17B", ((0.36, 0.83),)),
}


def routed_experts(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], device: str, kernels: str
) -> RoutedExperts | None:
    """Return the experts of a model from its header; None if it is dense."""
    if config.experts is None:
        return None
    layers: dict[int, int] = {}
    for info in used_tensors(config, tensors):
        if OF_EXPERTS.fullmatch(info.name):
            layer = int(info.name.split(".")[1])
            layers[layer] = layers.get(layer, 0) + resident_bytes(info, device, kernels)
    if not layers:
        return None
    count = config.experts.count
    largest = math.ceil(max(layers.values()) / count)
    return RoutedExperts(len(layers), count, config.experts.used, sum(layers.values()), largest)


def plan(
    experts: RoutedExperts, resident_bytes: int, budget_bytes: int, reserve_bytes: int
) -> Plan | None:
    """Split a budget between what stays in memory and experts; None if it is too small.

    reserve_bytes: kept free where the budget allows it.
    """
    least = least_store_bytes(experts)
    left = budget_bytes - resident_bytes
    if left < least:
        return None
    store_bytes = max(least, left - reserve_bytes)
    window = window_slots(experts)
    cached = min(experts.total, store_bytes // experts.slot_bytes - window)
    store_bytes = min(store_bytes, (experts.total + window) * experts.slot_bytes)
    return Plan(experts, resident_bytes, store_bytes, cached)


def window_slots(experts: RoutedExperts) -> int:
    """Return how many experts a prompt reads ahead, beside those that decoding keeps."""
    return min(2 * experts.used, experts.count)


def least_store_bytes(experts: RoutedExperts) -> int:
    """Return the least memory for experts: those of a token in one layer, and the window."""
    return (experts.used + window_slots(experts)) * experts.slot_bytes


def even_curve(count: int, used: int) -> Curve:
    """Return the curve of routers that choose evenly: the share in memory is found there."""
    return Curve(((used / count, used / count), (1.0, 1.0)), EVEN)


def published_curve(count: int, used: int) -> Curve:
    """Return the published curve of a family of routers, or else that of even routers."""
    even = even_curve(count, used)
    if (count, used) not in PUBLISHED:
        return even
    source, points = PUBLISHED[count, used]
    return Curve(_rising([*even.points, *points]), source)


def curve_of_reuse(within: Mapping[int, float], count: int, used: int, source: str) -> Curve:
    """Return the curve of routers of which a share of the selections repeats within some tokens.

    within: tokens -> the share of the selections that the same layer chose at most so many tokens
    before. A cache of the experts of the last n tokens finds the share within n.
    """
    shares = working_set(within, count, used)
    points = [(shares[tokens], hit) for tokens, hit in within.items()]
    return Curve(_rising([*even_curve(count, used).points, *points]), source)


def working_set(within: Mapping[int, float], count: int, used: int) -> dict[int, float]:
    """Return which share of a layer's experts the last n tokens choose, for each n of `within`.

    Each further token adds those of its experts that are not among the last n tokens' (Denning's
    working set). Between the given numbers of tokens, the share grows with their logarithm.
    """
    known = sorted(within)
    found, size = {}, 0.0
    for tokens in range(1, known[-1] + 1):
        size += used * (1 - _within(within, known, tokens - 1))
        if tokens in within:
            found[tokens] = min(1.0, size / count)
    return found


def _within(within: Mapping[int, float], known: list[int], tokens: int) -> float:
    if tokens < known[0]:
        return 0.0
    after = bisect.bisect_right(known, tokens)
    if after == len(known):
        return within[known[-1]]
    low, high = known[after - 1], known[after]
    part = math.log(tokens / low) / math.log(high / low)
    return within[low] + part * (within[high] - within[low])


def _rising(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Sort points by share and drop those below an earlier one, so that more never hits less."""
    found: list[tuple[float, float]] = []
    for share, hit in sorted(points):
        if found and share == found[-1][0]:
            found[-1] = share, max(hit, found[-1][1])
        elif not found or hit >= found[-1][1]:
            found.append((share, hit))
    return tuple(found)


def forecast(
    split: Plan,
    in_memory: Rate,
    curve: Curve,
    disk: Disk,
    prompt_in_memory_s: float | None = None,
) -> Forecast:
    """Forecast the rate of decoding, and the first token of a prompt of `PROMPT` tokens.

    in_memory: the rate if all experts were in memory. prompt_in_memory_s: the same for the prompt,
    which reads every expert once.
    """
    experts = split.experts
    hit = curve.hit_rate(split.share)
    error = 0.0 if curve.source == MEASURED or curve.source == EVEN else HIT_ERROR
    chosen_bytes = experts.layers * experts.used * experts.mean_bytes

    def per_s(plain: float, hit_rate: float, bytes_per_s: float) -> float:
        return 1 / (1 / plain + (1 - hit_rate) * chosen_bytes / bytes_per_s)

    some = hit < 1
    worse = max(0.0, hit - error) if some else 1.0
    better = _better(curve, split, hit, error)
    rate = Rate(
        per_s(in_memory.per_s, hit, disk.bytes_per_s),
        per_s(in_memory.low, worse, disk.low),
        per_s(in_memory.high, better, disk.high),
        PRIOR if PRIOR in (in_memory.source, disk.source) else PREDICTED,
    )
    prompt_s = None
    if prompt_in_memory_s is not None:
        prompt_s = prompt_in_memory_s + experts.size_bytes / disk.bytes_per_s
    return Forecast(split, hit, curve, int((1 - hit) * chosen_bytes), disk, rate, prompt_s)


def _better(curve: Curve, split: Plan, hit: float, error: float) -> float:
    """Return the highest hit rate to expect: of even routers' cache, what real ones reach."""
    if curve.source != EVEN:
        return min(1.0, hit + error)
    lowest = PUBLISHED[256, 8][1]
    return max(hit, Curve(_rising([*curve.points, *lowest]), "").hit_rate(split.share))


def sentence(per_s: float) -> str:
    """Say a rate in terms of text: "about 4 tokens/s; 200 words take a minute"."""
    text = _time(WORDS * TOKENS_PER_WORD / per_s)
    return f"about {_rate(per_s)} tokens/s; {WORDS} words take {text}"


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 9.5 else f"{per_s:.2g}"


def _time(seconds: float) -> str:
    if seconds < 55:
        return f"{seconds:.0f} seconds" if round(seconds) != 1 else "a second"
    minutes = round(seconds / 60)
    if minutes <= 1:
        return "a minute"
    if minutes < 100:
        return f"{minutes} minutes"
    return f"{minutes / 60:.0f} hours"
