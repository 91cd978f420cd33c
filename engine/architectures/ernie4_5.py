"""ernie4_5: ERNIE 4.5 dense, 0.3B.

The llama block: interleaved rotary embedding over the whole head, no biases.
"""

from engine.architectures.llama import build

__all__ = ["build"]
