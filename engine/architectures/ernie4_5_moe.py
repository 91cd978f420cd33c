"""ernie4_5-moe: ERNIE-4.5-21B-A3B and 300B-A47B.

As `ernie4_5`; the layers after the first few are routed: softmax, a bias for choosing only, the
chosen weights renormalised. Shared experts, which the file holds as one, always run.
"""

from engine.architectures.llama import build

__all__ = ["build"]
