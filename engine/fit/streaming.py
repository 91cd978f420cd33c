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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from engine import streaming
from engine.fit.speed import MEASURED, PREDICTED, PRIOR, Rate
from engine.gguf.reader import TensorInfo
from engine.limits import MAX_CHUNK, STREAM_CHUNK
from engine.nn.config import ModelConfig

# Kernels that hold experts as arrays bring the ids of each layer to the host and join the chosen
# experts. A layer took 0.47 ms of processor time more than without that (stock kernels, one core of
# an EPYC); the wait for a GPU is a guess, so such a forecast is a prior.
HOST_S = 5e-4
PROMPT = 1000  # tokens; the prompt that a forecast times
MATRICES = 3  # of an expert: gate, up and down
HIT_ERROR = 0.03  # of a curve of the same family (the report of boyle, docs/streaming.md)
WORDS = 200  # what the sentence counts, a page of text
TOKENS_PER_WORD = 4 / 3  # English text, in the tokenizers of these models
EVEN = "routers that choose evenly, the worst case"


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """The experts of all layers, and the memory of the store that holds some of them.

    layers: those that choose experts. count, used: how many each has and chooses for a token.
    size_bytes: of all experts. slots_bytes: of slots for all of them, which are whole pages.
    least_bytes: of the smallest store. window_bytes: for experts that a prompt reads ahead.
    fewest_bytes: of the smallest window. file_bytes: of all experts in the file. chunk: tokens of a
    prompt that read each expert once. joins: whether kernels join the chosen experts of a layer.
    buffers_bytes: what buffers need beyond those of a model in memory, for the longest chunks.
    """

    layers: int
    count: int
    used: int
    size_bytes: int
    slots_bytes: int
    least_bytes: int
    window_bytes: int
    buffers_bytes: int = 0
    fewest_bytes: int = 0
    file_bytes: int = 0
    chunk: int = STREAM_CHUNK
    joins: bool = False

    @property
    def total(self) -> int:
        """How many experts all layers have."""
        return self.layers * self.count

    @property
    def mean_bytes(self) -> float:
        """The average size of an expert in the file."""
        return (self.file_bytes or self.size_bytes) / self.total

    @property
    def most_bytes(self) -> int:
        """The memory of a store that holds all experts."""
        return self.slots_bytes + self.window_bytes

    def scaled(self, share: float) -> RoutedExperts:
        """Return the experts of another quantisation, whose weights are `share` times as large."""
        names = ("size_bytes", "slots_bytes", "least_bytes", "window_bytes", "fewest_bytes")
        sizes = {name: int(share * getattr(self, name)) for name in (*names, "file_bytes")}
        return replace(self, **sizes)  # type: ignore[arg-type]


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
        return self.cached / self.experts.total

    def missed_bytes(self, hit_rate: float) -> int:
        """Return the bytes that a token reads from the disk."""
        chosen = self.experts.layers * self.experts.used
        return int((1 - hit_rate) * chosen * self.experts.mean_bytes)


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
class DiskSpeed:
    """The rate of random direct reads of an expert's matrices. source: measured or prior."""

    bytes_per_s: float
    low: float
    high: float
    source: str


# Direct random reads by 8 to 16 threads: drives of PCIe 4 gave 5.5 to 5.9 GB/s and one of PCIe 5
# gave 11.5 (JustVugg/colibri 486 and 120); the network disk of docs/performance.md gave 1.3.
ASSUMED_DISK = DiskSpeed(5.5e9, 1.3e9, 11.5e9, PRIOR)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What streaming will be like. read_bytes: from the disk for each token.

    in_memory: the rate if all experts were in memory. prompt_s: seconds to the first token of a
    prompt of `PROMPT` tokens; None if unknown.
    """

    plan: Plan
    hit_rate: float
    curve: Curve
    read_bytes: int
    disk: DiskSpeed
    rate: Rate
    in_memory: Rate
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
    config: ModelConfig, tensors: Mapping[str, TensorInfo], kernels: str, device: str = "cpu"
) -> RoutedExperts | None:
    """Return the experts of a model from its header; None if it has none.

    device, kernels: as in `resident_bytes`.
    """
    layers = streaming.expert_layers(config, tensors)
    if not layers or config.experts is None:
        return None
    stored_bytes = sum(layer.stored_bytes for layer in layers)
    count, used = config.experts.count, config.experts.used
    if kernels != "native":
        each = streaming.loaded_sizes(config, tensors, kernels, device)
        all_bytes = count * sum(each.values())
        return _joining(len(layers), count, used, all_bytes, max(each.values()), stored_bytes)
    whole = streaming.plan_store(config, tensors, streaming.most_bytes(config, tensors))
    window_bytes = whole.window_buffers * whole.buffer_bytes
    return RoutedExperts(
        len(layers),
        count,
        used,
        stored_bytes,
        whole.size_bytes - window_bytes,
        streaming.least_bytes(config, tensors),
        window_bytes,
        fewest_bytes=streaming.WINDOW_BUFFERS[0] * whole.buffer_bytes,
    )


def _joining(
    layers: int, count: int, used: int, size_bytes: int, largest: int, file_bytes: int
) -> RoutedExperts:
    """Return the experts for kernels that join them. largest: the size of the largest expert.

    The least memory has one token's experts of a layer, and twice that to join them.
    """
    copies = streaming.COPIES * largest
    window = max(used * copies, min(count * copies, streaming.JOINED_BYTES))
    return RoutedExperts(
        *(layers, count, used, size_bytes, size_bytes, used * (copies + largest), window),
        fewest_bytes=used * copies,
        file_bytes=file_bytes,
        chunk=MAX_CHUNK,
        joins=True,
    )


def guessed_experts(
    layers: int, count: int, used: int, size_bytes: int, kernels: str, file_bytes: int = 0
) -> RoutedExperts | None:
    """Return the experts of a model whose header is unknown; None if it has none.

    size_bytes: in memory. file_bytes: in the file, if that differs. The experts of some layers are
    assumed to be a quarter larger than the average, as in Q4_K_M.
    """
    if not layers or not count:
        return None
    if kernels != "native":
        largest = int(1.25 * size_bytes / (layers * count))
        return _joining(layers, count, used, size_bytes, largest, file_bytes or size_bytes)
    page, (fewest, most) = streaming.PAGE_BYTES, streaming.WINDOW_BUFFERS
    slot = size_bytes // (layers * count) + MATRICES * 2 * page
    largest = int(1.25 * slot)
    buffer = 2 * largest // 3  # gate and up
    window = buffer * max(fewest, min(most, math.ceil(streaming.WINDOW_BYTES / buffer)))
    least = used * largest + fewest * buffer
    slots = layers * count * slot
    few = fewest * buffer
    return RoutedExperts(*(layers, count, used, size_bytes, slots, least, window), fewest_bytes=few)


def plan(
    experts: RoutedExperts, resident_bytes: int, budget_bytes: int, reserve_bytes: int
) -> Plan | None:
    """Split a budget between what stays in memory and experts; None if it is too small.

    reserve_bytes: kept free where the budget allows it.
    """
    left = budget_bytes - resident_bytes
    if left < experts.least_bytes:
        return None
    store_bytes = min(max(experts.least_bytes, left - reserve_bytes), experts.most_bytes)
    window = min(experts.window_bytes, store_bytes // streaming.WINDOW_SHARE)
    window = max(experts.fewest_bytes, window)
    cached = int(experts.total * (store_bytes - window) / experts.slots_bytes)
    return Plan(experts, resident_bytes, store_bytes, min(experts.total, cached))


def even_curve(count: int, used: int) -> Curve:
    """Return the curve of routers that choose evenly: the share in memory is found there."""
    return Curve(((used / count, used / count), (1.0, 1.0)), EVEN)


def published_curve(count: int, used: int) -> Curve:
    """Return the published curve of a family of routers, or else that of even routers."""
    if (count, used) not in PUBLISHED:
        return even_curve(count, used)
    source, points = PUBLISHED[count, used]
    return rising_curve(points, count, used, source)


def curve_of_distances(distances: Sequence[int], count: int, used: int, layers: int) -> Curve:
    """Return the curve of routes that a store has recorded (`StoreStats.distances`).

    A cache that holds n of a layer's experts finds those with fewer than n others since. A first
    choice says only that an expert is further back than all that its layer had chosen so far, which
    is one more for each first choice (the estimator of Kaplan and Meier for such observations).
    """
    *seen, first = distances
    per_layer = first / layers
    unseen, left = 1.0, sum(seen)
    points = []
    for distance, times in enumerate(seen[:count]):
        at_risk = left + layers * max(0.0, per_layer - 1 - distance)
        unseen *= 1 - times / at_risk if at_risk > 0 else 1.0
        left -= times
        points.append(((distance + 1) / count, 1 - unseen))
    kept = [point for point in points if point[0] >= used / count]
    return rising_curve(kept, count, used, MEASURED)


def rising_curve(
    points: Iterable[tuple[float, float]], count: int, used: int, source: str
) -> Curve:
    """Return the curve through points that is nowhere below that of even routers."""
    return Curve(_rising([*even_curve(count, used).points, *points]), source)


def curve_of_reuse(within: Mapping[int, float], count: int, used: int, source: str) -> Curve:
    """Return the curve of routers of which a share of the selections repeats within some tokens.

    within: tokens -> the share of the selections that the same layer chose at most so many tokens
    before. A cache of the experts of the last n tokens finds the share within n.
    """
    shares = working_set(within, count, used)
    points = [(shares[tokens], hit) for tokens, hit in within.items()]
    return rising_curve(points, count, used, source)


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
    disk: DiskSpeed,
    prompt_in_memory_s: float | None = None,
) -> Forecast:
    """Forecast the rate of decoding, and the first token of a prompt of `PROMPT` tokens.

    in_memory: the rate if all experts were in memory. prompt_in_memory_s: the same for the prompt,
    which reads every expert once. A published curve is another model's: until this one has run, its
    routers may choose evenly, which is the lower end of the range.
    """
    experts = split.experts
    hit = worse = curve.hit_rate(split.share)
    if curve.source != MEASURED:
        worse = even_curve(experts.count, experts.used).hit_rate(split.share)
    chosen_bytes = experts.layers * experts.used * experts.mean_bytes

    def per_s(plain: float, hit_rate: float, bytes_per_s: float) -> float:
        return 1 / (1 / plain + (1 - hit_rate) * chosen_bytes / bytes_per_s)

    better = _better(curve, split, hit)
    rate = Rate(
        per_s(in_memory.per_s, hit, disk.bytes_per_s),
        per_s(in_memory.low, worse, disk.low),
        per_s(in_memory.high, better, disk.high),
        PRIOR if PRIOR in (in_memory.source, disk.source) else PREDICTED,
    )
    prompt_s = None
    if prompt_in_memory_s is not None:
        prompt_s = prompt_in_memory_s + prompt_bytes(experts) / disk.bytes_per_s
    return Forecast(split, hit, curve, split.missed_bytes(hit), disk, rate, in_memory, prompt_s)


def prompt_bytes(experts: RoutedExperts) -> float:
    """Return what a prompt of `PROMPT` tokens reads: every expert once for each chunk."""
    return experts.total * experts.mean_bytes * math.ceil(PROMPT / experts.chunk)


def joining(in_memory: Rate, experts: RoutedExperts, chosen_bytes: int, bytes_per_s: float) -> Rate:
    """Return the rate in memory with what kernels that join the chosen experts need beyond it.

    The ids of each layer come to the host, and the chosen experts are copied: read and written.
    """
    if not experts.joins:
        return in_memory
    more = experts.layers * HOST_S + streaming.COPIES * chosen_bytes / bytes_per_s

    def slower(rate: float) -> float:
        return 1 / (1 / rate + more)

    low, high = slower(in_memory.low), slower(in_memory.high)
    return Rate(slower(in_memory.per_s), low, high, PRIOR)


def replanned(found: Forecast, split: Plan) -> Forecast:
    """Return a forecast for another split of the memory."""
    read_s = prompt_bytes(found.plan.experts) / found.disk.bytes_per_s
    in_memory_s = None if found.prompt_s is None else found.prompt_s - read_s
    return forecast(split, found.in_memory, found.curve, found.disk, in_memory_s)


def _better(curve: Curve, split: Plan, hit: float) -> float:
    """Return the highest hit rate to expect: of even routers' cache, what real ones reach."""
    if curve.source == MEASURED:
        return hit
    if curve.source != EVEN:
        return min(1.0, hit + HIT_ERROR)
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
