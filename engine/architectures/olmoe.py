"""olmoe: OLMoE-1B-7B.

As `qwen3`, but q and k are normalised as whole projections, before they are split into heads. Every
layer is routed: softmax over all experts, the chosen weights not renormalised.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
