"""qwen2moe: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B.

Attention as in `qwen2`; every layer is routed: softmax over all experts, the chosen weights not
renormalised; a shared expert, weighed by a sigmoid of its own, always runs.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
