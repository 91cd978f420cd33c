"""Memory, speed and machines: the arithmetic behind a verdict, from a model's header alone.

`memory` computes the memory use, the largest context and the default one; `speed` predicts the
decode rate; `estimate` does both without a header. `machine` and `bandwidth` measure this machine;
`machine_specs` describes others. No weights are read, and only measuring imports MLX.
"""
