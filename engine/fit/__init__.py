"""Work out whether and how fast a model runs on a machine. Only the model's header is read.

`memory` computes memory use and the default and largest contexts. `speed` predicts the decode
rate. `estimate` does both from catalog facts, without a header. `machine` and `bandwidth` measure
this machine, and `machine_specs` describes others. Only the measurements import MLX.
"""
