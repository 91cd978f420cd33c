"""Memory, speed and machines: the arithmetic behind a verdict, from a model's header alone.

`memory` computes what a model needs and `speed` how fast it decodes; `estimate` does both from
catalog facts when there is no header. `machine` and `bandwidth` measure this machine;
`machine_specs` describes others. No weights are read, and only measuring imports MLX.
"""
