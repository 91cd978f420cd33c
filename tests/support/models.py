"""The stored models of tests/fixtures and CONIFER_FIXTURES: a tiny file and its true logits."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent.parent / "fixtures"
# Block types that stock MLX holds without loss, and float types.
EXACT = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "MXFP4"}
EXACT |= {"Q3_K", "IQ4_NL", "IQ4_XS", "IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "NVFP4"}
EXACT |= {"Q1_0", "Q2_0", "TQ1_0", "TQ2_0"}
LONG = 512  # tokens
# Models that no published one is like. YaRN's ramp ends on whole pairs in this one, which no key
# says: gpt-oss-yarn-exact is as the published model is.
UNLIKE = {"gpt-oss-yarn-rounded"}


@dataclass(frozen=True)
class Stored:
    """One fixture. Logits are (T, V) for the prompt, (N, V) for the decoded tokens."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def model(self) -> Path:
        return self.path / "model.gguf"

    @property
    def meta(self) -> dict:
        return json.loads((self.path / "meta.json").read_text())

    def expected(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path / "expected.npz"))

    @property
    def quantized(self) -> bool:
        return set(self.meta["tensor_types"]) - {"I32"} != {"F32"}

    @property
    def long(self) -> bool:
        """Whether the prompt is too long to be fed one by one, or logits are of its last tokens."""
        expected = self.expected()
        tokens = len(expected["tokens"])
        return tokens >= LONG or tokens > len(expected["hf_logits"])

    @property
    def exact(self) -> bool:
        """Whether stock kernels hold every tensor without loss."""
        return set(self.meta["tensor_types"]) <= EXACT


def stored_models(architectures: set[str]) -> list[Stored]:
    """List the fixtures of these architectures, those of CONIFER_FIXTURES too, sorted by name."""
    extra = os.environ.get("CONIFER_FIXTURES", "").split(os.pathsep)
    folders = [HERE, *(Path(folder) for folder in extra if folder)]
    found = {
        path.parent.name: Stored(path.parent) for f in folders for path in f.glob("*/meta.json")
    }
    return sorted(
        (
            stored
            for name, stored in found.items()
            if name not in UNLIKE and stored.meta["gguf_architecture"] in architectures
        ),
        key=lambda stored: stored.name,
    )


def committed_models() -> list[Stored]:
    """List the fixtures of this repository alone, sorted by name."""
    return [Stored(path.parent) for path in sorted(HERE.glob("*/meta.json"))]


def row_rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference of each row: (T, V) and (T, V) -> (T,)."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.sqrt((difference**2).mean(axis=-1))
