"""dots1: dots.llm1.

Attention as in `qwen3`. After the first layers experts are chosen by sigmoid plus a bias, their
weights renormalised and scaled; shared experts, which the file holds as one, always run.
"""

from engine.architectures.qwen3 import build

__all__ = ["build"]
