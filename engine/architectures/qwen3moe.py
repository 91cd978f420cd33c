"""qwen3moe: Qwen3-30B-A3B, 235B-A22B and Qwen3-Coder.

Attention as in `qwen3`; every layer is routed: softmax over all experts, the chosen weights
renormalised, no shared expert.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
