"""granitemoe: Granite 3.x with experts (1B-A400M, 3B-A800M).

As `granite`; every layer is routed: softmax over the chosen experts, each as wide as
`feed_forward_length`, and in some models a shared expert.
"""

from engine.architectures.granite import build

__all__ = ["build"]
