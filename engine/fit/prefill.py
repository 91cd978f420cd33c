"""Predict how fast a prompt is read: the multiplications, and the weights that each chunk reads.

A prompt of T tokens takes

    (2 x T x (weights of a token + g x its experts') + h x scores x T^2) / rate of multiplying

and reads all weights for each chunk: GPUs before they multiply, CPUs while they do. GPUs multiply
at a share of their published rate, CPUs at a rate measured for each instruction set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.device import cores
from engine.fit.decode_cost import SAME_AS
from engine.fit.estimate import ModelEstimate
from engine.fit.speed import MEASURED, PREDICTED, PRIOR, Bandwidth, Rate, median
from engine.gguf.reader import TensorInfo
from engine.limits import MAX_CHUNK
from engine.nn.config import OF_EXPERTS, ModelConfig, token_share, used_tensors

PROMPTS = (512, 4096)  # tokens; what `fit` predicts
# Operations a second for one core, by instruction set, and the share of its published rate that a
# GPU reaches in others' programs. Experts multiply few tokens each, which is slower there. Scores
# are products in float32, which is slower on a CPU.
CORE_FLOPS = {
    "amx": 230e9,
    "avx512": 185e9,
    "avxvnni": 100e9,
    "avx2": 80e9,
    "neon": 36e9,
    "portable": 5e9,
}
GPU_SHARE = {"metal": 0.62, "cuda": 0.4}
EXPERT_COST = {"cpu": 1.0, "metal": 3.0, "cuda": 3.0}
SCORE_COST = {"cpu": 3.0, "metal": 1.0, "cuda": 1.0}
CPU_RANGE, GPU_RANGE = (0.6, 1.6), (0.4, 1.6)


@dataclass(frozen=True, slots=True)
class PromptWork:
    """What reading a prompt takes of a model.

    always, experts: the weights that multiply each token, without the head. scores: the products of
    a token with each earlier one. read_bytes: all weights.
    """

    always: int
    experts: int
    head: int
    scores: int
    read_bytes: int


def prompt_work(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], read_bytes: int
) -> PromptWork:
    """Return the work of a prompt, from a header. read_bytes: the size of the loaded weights."""
    always = experts = head = 0.0
    for info in used_tensors(config, tensors):
        weights = math.prod(info.shape) * float(token_share(info, config, tensors))
        if OF_EXPERTS.fullmatch(info.name):
            experts += weights
        elif info.name in ("output.weight", "token_embd.weight"):
            head += weights
        else:
            always += weights
    return PromptWork(int(always), int(experts), int(head), _scores(config), read_bytes)


def estimated_work(estimate: ModelEstimate, read_bytes: int) -> PromptWork | None:
    """Return the work of a prompt from the shapes in the catalog; None if they are unknown."""
    parts = estimate.parts
    if not parts:
        return None
    experts = int(parts["routed"] * estimate.used)
    always = parts["attention"] + parts["shared"]
    return PromptWork(always, experts, parts["head"], estimate.scores, read_bytes)


def core_flops(isa: str, count: int) -> float:
    """Return the operations a second that `count` cores together do with an instruction set."""
    return CORE_FLOPS.get(isa, CORE_FLOPS[SAME_AS.get(isa, "portable")]) * count


def flops_here(backend: str) -> float | None:
    """Return this machine's rate of multiplying; None on a GPU and without the native kernels."""
    if backend != "cpu":
        return None
    from engine.kernels.native import best_isa, unavailable_reason  # imports MLX

    if unavailable_reason() is not None:
        return None
    return core_flops(best_isa(), cores())


def prompt_seconds(
    work: PromptWork, tokens: int, bandwidth: Bandwidth, backend: str
) -> float | None:
    """Return how long a prompt takes; None if the machine's rate of multiplying is unknown."""
    if bandwidth.flops is None:
        return None
    weights = work.always + EXPERT_COST[backend] * work.experts
    scores = SCORE_COST[backend] * work.scores * tokens**2
    products = 2 * tokens * weights + 2 * work.head + scores
    products_s = products / bandwidth.flops
    reading_s = math.ceil(tokens / MAX_CHUNK) * work.read_bytes / bandwidth.bytes_per_s
    return max(products_s, reading_s) if backend == "cpu" else products_s + reading_s


def predict_prompt(
    work: PromptWork,
    tokens: int,
    bandwidth: Bandwidth,
    backend: str,
    own: Sequence[float] = (),
) -> Rate | None:
    """Predict the rate in tokens per second, averaged over the prompt.

    own: rates of this file on this machine, for prompts about as long.
    """
    if own:
        return Rate(median(own), min(own), max(own), MEASURED)
    taken_s = prompt_seconds(work, tokens, bandwidth, backend)
    if taken_s is None:
        return None
    per_s = tokens / taken_s
    source = PREDICTED if bandwidth.source == MEASURED and backend == "cpu" else PRIOR
    low, high = CPU_RANGE if backend == "cpu" else GPU_RANGE
    return Rate(per_s, low * per_s, high * per_s, source)


def _scores(config: ModelConfig) -> int:
    """Count the products of a token with each earlier one, over the layers without a window."""
    if config.latent is not None:
        each = max(config.heads) * (2 * config.latent.rank + config.rope.dims)
        return each * config.layers
    return sum(
        config.heads[layer] * sum(config.head_dims(layer))
        for layer in range(config.layers)
        if config.kv_heads[layer] and not config.window(layer)
    )
