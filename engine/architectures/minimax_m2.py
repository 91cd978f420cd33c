"""minimax-m2: MiniMax M2.

As `olmoe`, q and k normalised as whole projections, but part of each head turns. Every layer is
routed: experts are chosen by sigmoid plus a bias, their weights renormalised.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
