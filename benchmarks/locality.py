"""Make a synthetic mixture's routers repeat themselves, as those of real models do.

A router with random weights picks other experts for every token of a random text. These routers
read two bands of the residual stream: what attention wrote (SLOW), an average over the tokens so
far that changes little from one to the next, and a part of the token's own embedding (OWN). Only
attention writes to SLOW. Queries and keys come mostly from a third band (SAME), which is the same
for every token: all heads weigh earlier tokens by their distance alone, the nearest most.

GAIN and OWN_SHARE were chosen so that choices repeat as published for Qwen3-30B-A3B (kekzl/imp
1359): 45 % of them at the next token, 80 % within 8. A test runs a file and counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

BAND = 256  # a block of most types, so that a band of a row is one block
SAME, SLOW, OWN = (slice(start, start + BAND) for start in (0, BAND, 2 * BAND))
SAME_GAIN = 8.0  # of SAME in the norm before attention: nine tenths of a query's energy
GAIN = 0.7  # of queries and keys; its square decides how fast attention fades with distance
OWN_SHARE = 0.039  # of a token's own embedding, relative to an average over all before

Edit = Callable[[np.ndarray], None]  # changes blocks (rows, blocks in a row, bytes) in place


class Locality:
    """What differs in a file whose routers repeat themselves. head: the width of a head."""

    def __init__(self, layers: int, width: int, head: int, seed: int) -> None:
        if width < 4 * BAND:
            raise SystemExit("--locality needs a model that is at least 1,024 wide")
        self._layers, self._width, self._head, self._seed = layers, width, head, seed

    def vector(self, name: str, weights: int) -> np.ndarray | None:
        """Return a norm's weights where they are not 1."""
        if "attn_q_norm" in name or "attn_k_norm" in name:
            return np.full(weights, GAIN, "<f4")
        if name.endswith("attn_norm.weight"):
            gains = np.ones(weights, "<f4")
            gains[SAME] = SAME_GAIN
            return gains
        return None

    def router(self, name: str, rows: int) -> np.ndarray:
        """Return a router's weights: (experts, width)."""
        layer = int(name.split(".")[1])
        rng = np.random.default_rng([self._seed, layer])
        weights = np.zeros((rows, self._width), "<f4")
        # Attention of each layer so far has added to SLOW; the embedding is as large as all layers.
        own = OWN_SHARE * math.sqrt((layer + 1) / (2 * self._layers))
        weights[:, SLOW] = rng.standard_normal((rows, BAND)) / math.sqrt(BAND)
        weights[:, OWN] = rng.standard_normal((rows, BAND)) * own / math.sqrt(BAND)
        return weights

    def edit(self, name: str, tile: np.ndarray) -> Edit | None:
        """Return what to change in a matrix; None if nothing. tile: random blocks of its type."""
        part = name.split(".")[-2]
        if part == "token_embd":

            def embed(rows: np.ndarray) -> None:
                rows[:, 0] = tile[0]
                rows[:, 1] = 0

            return embed
        if part in ("attn_q", "attn_k"):

            def alike(rows: np.ndarray) -> None:
                rows[:, 0] = np.resize(tile[: self._head], (len(rows), tile.shape[1]))

            return alike
        if part == "attn_v":

            def ignore(rows: np.ndarray) -> None:
                rows[:, :2] = 0

            return ignore
        if part in ("attn_output", "ffn_down_exps"):
            kept = SAME.stop if part == "attn_output" else SLOW.stop

            def silence(rows: np.ndarray) -> None:
                rows[:kept] = 0

            return silence
        return None
