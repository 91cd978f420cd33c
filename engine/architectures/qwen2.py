"""qwen2: Qwen2 and Qwen2.5, dense.

As `qwen3` without norms on q and k, and with biases on q, k and v.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
