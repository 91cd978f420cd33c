"""bailingmoe2: Ling 2.0 and Ring 2.0, mini to 1T.

Attention as in `qwen3`, q, k and v stored as one; half of each head turns. After the first layers
experts are chosen by sigmoid plus a bias from the best groups, their weights renormalised and
scaled; a shared expert always runs.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
