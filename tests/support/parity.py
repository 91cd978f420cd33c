"""How a fixture's logits differ from transformers', beside llama.cpp's, and the record of that.

tests/data/parity.json holds, by kernels and fixture, what was measured of the committed ones: of
the float ones the largest difference in standard deviations, of the quantised ones the median rms
difference over llama.cpp's. docs/models.md is made from it; test_parity.py measures it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import numpy as np

import engine
from engine.kernels import native
from support.models import Stored, committed_models, row_rms

RECORD = Path(__file__).parents[1] / "data" / "parity.json"
KERNELS = ("native", "stock")
# A float difference is rounding: this much, and this many times, varies with the instruction set.
NOISE, FACTOR = 2e-5, 4
RATIO_SLACK = 0.1


def decoded_logits(model: engine.Model, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """The logits after each of `tokens`, fed one at a time behind the prompt."""
    cache = model.new_cache(context=len(prompt) + len(tokens), kv_type="f32")
    model.step(prompt, cache)
    return np.stack([np.array(model.step([token], cache)) for token in tokens])


@cache
def all_logits(
    stored: Stored, kernels: str, isa: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the prompt and of the tokens decoded behind it. Do not write to them."""
    model = engine.load(stored.model, kernels=kernels, isa=isa)
    expected = stored.expected()
    prompt, tokens = expected["tokens"].tolist(), expected["decode_tokens"].tolist()
    if not stored.long:
        return np.array(model.logits(prompt)), decoded_logits(model, prompt, tokens)
    read = len(prompt) - len(expected["hf_logits"])  # what is stored is of the last tokens
    logits = decoded_logits(model, prompt[:read], prompt[read:] + tokens)
    return logits[: -len(tokens)], logits[-len(tokens) :]


def float_difference(stored: Stored, kernels: str) -> float:
    """The largest difference from transformers, in standard deviations of its logits."""
    expected = stored.expected()
    prompt, decoded = all_logits(stored, kernels)
    pairs = (prompt, expected["hf_logits"]), (decoded, expected["decode_hf"])
    largest = np.max([np.abs(ours - theirs).max() for ours, theirs in pairs])  # NaN, if any is
    return float(largest / expected["hf_logits"].std())


def rounded_rows(
    stored: Stored, kernels: str, isa: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rms difference from transformers at each position: ours, and llama.cpp's."""
    expected = stored.expected()
    prompt, decoded = all_logits(stored, kernels, isa)
    ours = [row_rms(prompt, expected["hf_logits"]), row_rms(decoded, expected["decode_hf"])]
    theirs = [
        row_rms(expected["llamacpp_logits"], expected["hf_logits"]),
        row_rms(expected["decode_llamacpp"], expected["decode_hf"]),
    ]
    return np.concatenate(ours), np.concatenate(theirs)


def measured(kernels: str, names: Collection[str] = ()) -> dict[str, float]:
    """What is recorded of the committed fixtures, or of some, by name, to two digits."""
    found = {}
    for stored in committed_models():
        if names and stored.name not in names:
            continue
        if not stored.quantized:
            found[stored.name] = float_difference(stored, kernels)
        elif kernels == "native" or not stored.exact:  # stock kernels lose nothing of the exact
            ours, theirs = rounded_rows(stored, kernels)
            found[stored.name] = float(np.median(ours) / np.median(theirs))
    return {name: float(f"{value:.1e}") for name, value in found.items()}


def stale(now: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """List the fixtures of which the record does not say what was measured now."""
    quantized = {stored.name for stored in committed_models() if stored.quantized}

    def same(name: str) -> bool:
        if name not in now or name not in recorded:
            return False
        low, high = sorted((now[name], recorded[name]))
        return high - low <= RATIO_SLACK if name in quantized else high <= max(FACTOR * low, NOISE)

    return [name for name in sorted({*now, *recorded}) if not same(name)]


def read_record() -> dict[str, dict[str, float]]:
    """The recorded figures, by kernels and fixture."""
    recorded: dict[str, dict[str, float]] = json.loads(RECORD.read_text())["figures"]
    return recorded


def recorded_isa() -> str:
    """Name the instruction sets with which the native figures were measured."""
    isa: str = json.loads(RECORD.read_text())["isa"]
    return isa


def write_record(names: Collection[str] = ()) -> None:
    """Measure the committed fixtures with both kernels, and record it.

    names: measure these alone. The other figures and the instruction set that is named stay.
    """
    if unknown := set(names) - {stored.name for stored in committed_models()}:
        raise SystemExit(f"no such fixture: {', '.join(sorted(unknown))}")
    kept = read_record() if names else {kernels: {} for kernels in KERNELS}
    figures = {kernels: kept[kernels] | measured(kernels, names) for kernels in KERNELS}
    record = {
        "isa": recorded_isa() if names else native.isa(),
        "architectures": {s.name: s.meta["gguf_architecture"] for s in committed_models()},
        "quantized": [s.name for s in committed_models() if s.quantized],
        "figures": {kernels: dict(sorted(figures[kernels].items())) for kernels in KERNELS},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
